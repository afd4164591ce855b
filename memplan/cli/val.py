"""`memplan val`: a weights file evaluated on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memplan.cli.inference_options import shared
from memplan.cli.official_words import official_words

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
    metavar="train|val|test|speed",
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
    from memplan.advise.trained import val

    draws = not values.pop("noplots")
    values.pop("verbose")
    found = val(**values, draws=draws, say=click.echo)
    click.echo(f"Wrote {found.folder}", err=True)
