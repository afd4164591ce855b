"""`memplan val`: a weights file evaluated on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memplan.cli.inference_options import checked, network_of, shared
from memplan.cli.official_words import official_words
from memplan.errors import UsageError

_TASKS = ("train", "val", "test", "speed")
_ACCEPTED = {"--dnn": "ONNX files run by ONNX Runtime"}
_REFUSED = {
    "--augment": "it would run each image at three sizes",
    "--save-hybrid": "labels among the detections make scores that mean nothing",
}


@click.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The data set's data.yaml.",
)
@shared(confidence=0.001, iou=0.7, most=300, project="runs/val")
@click.option(
    "--task",
    default="val",
    show_default=True,
    metavar="|".join(_TASKS),
    help="The split; speed takes val's, square, at scores from 0.25 and an overlap of 0.45.",
)
@click.option(
    "--batch",
    "--batch-size",
    "batch_size",
    type=int,
    default=32,
    show_default=True,
    metavar="N",
    help="Images at once.",
)
@click.option(
    "--workers",
    "num_workers",
    type=int,
    default=8,
    show_default=True,
    metavar="N",
    help="Most processes that load images.",
)
@click.option("--single-cls", "single_class", is_flag=True, help="Take all classes for one.")
@click.option("--save-json", "saves_json", is_flag=True, help="Write COCO's result file.")
@click.option("--verbose", is_flag=True, help="Accepted: the table by class is always printed.")
@click.option("--noplots", is_flag=True, help="Draw no curves and images.")
@click.option(
    "--min-items",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Leave out images with fewer objects.",
)
@official_words(_ACCEPTED, _REFUSED)
def command(**values: Any) -> None:
    """Evaluate a weights file: precision, recall and mAP by class, and time an image.

    \b
    memplan val --data digits/data.yaml --weights runs/train/exp/weights/best.pt

    mAP is pycocotools'; precision and recall are the official script's, see docs/evaluation.md.
    """
    from memplan.inference import ValidateOptions

    task = values["task"]
    if task not in _TASKS:
        raise UsageError(f"--task {task} is not offered. Give {', '.join(_TASKS)}.")
    if values["min_items"] < 0:
        raise UsageError(f"--min-items {values['min_items']} is below 0.")
    if values["batch_size"] < 1:
        raise UsageError(f"--batch {values['batch_size']} is below 1.")
    is_speed = task == "speed"
    if is_speed:
        values.update(confidence=0.25, iou=0.45, saves_json=False)
    workload = network_of(values["cfg"])
    names = ("data", "batch_size", "num_workers", "single_class", "saves_json", "min_items")
    options = ValidateOptions(
        **checked(values),
        **{name: values[name] for name in names},
        split="val" if is_speed else task,
        square=is_speed,
        draws=not (values["noplots"] or is_speed),
    )
    for line in workload.validate(options):
        click.echo(line)
    click.echo(f"Wrote {options.folder}", err=True)
