"""What `memplan val` and `memplan predict` share: options, and the folder their results go to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from memplan.acceptance import check_weights
from memplan.click_options import blocks_option
from memplan.errors import BadInputError
from memplan.files.writing import numbered_folder

Decorator = Callable[[Any], Any]


def shared(*, confidence: float, iou: float, most: int, project: str) -> Decorator:
    """Return a decorator that adds the options of both, with a command's own defaults."""
    options = [
        click.option("--weights", required=True, type=click.Path(path_type=Path), metavar="FILE",
                     help="A checkpoint (memplan's, official or exported) or an ONNX file."),
        click.option("--cfg", metavar="NAME|PATH",
                     help="Its configuration.  [as the checkpoint says]"),
        blocks_option,
        click.option("--img", "--imgsz", "--img-size", "image_size", type=int, default=640,
                     show_default=True, metavar="PIXELS", help="The longer side of the images."),
        click.option("--device", default="", metavar="cpu|INDEX",
                     help="Where the network runs.  [a GPU if there is one]"),
        click.option("--half", is_flag=True, help="Half precision, on a GPU."),
        click.option("--conf-thres", "--conf", "confidence", type=float, default=confidence,
                     show_default=True, metavar="SCORE", help="The least score that counts."),
        click.option("--iou-thres", "--iou", "iou", type=float, default=iou, show_default=True,
                     metavar="IOU", help="Boxes of a class that overlap more are one detection."),
        click.option("--max-det", "max_detections", type=int, default=most, show_default=True,
                     metavar="N", help="Detections kept in an image."),
        click.option("--save-txt", "saves_txt", is_flag=True, help="Write a label file an image."),
        click.option("--save-conf", "saves_confidence", is_flag=True,
                     help="Add the score to their rows."),
        click.option("--project", type=click.Path(path_type=Path), default=project,
                     show_default=True, metavar="FOLDER", help="Where result folders are made."),
        click.option("--name", default="exp", show_default=True, metavar="NAME",
                     help="The folder; a number is added where it exists."),
        click.option("--exist-ok", is_flag=True, help="Write into a folder that exists."),
    ]  # fmt: skip

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return the shared options by the fields of `memplan.inference.InferenceOptions`.

    The folder is made, and the size rounded up to whole strides as the official code does, which
    is told on standard error.

    Raises:
        BadInputError: a number is out of its range, there is no such device, or no folder can be
            made.
    """
    from memplan.training.setup import find_device

    for option, name in (("--conf-thres", "confidence"), ("--iou-thres", "iou")):
        if not 0 <= values[name] <= 1:
            raise BadInputError(f"{option} {values[name]:g} is not between 0 and 1.")
    check_weights(values["weights"])
    if values["max_detections"] < 1:
        raise BadInputError(f"--max-det {values['max_detections']} is below 1.")
    names = ("weights", "cfg", "blocks", "half", "confidence", "iou", "max_detections", "saves_txt",
             "saves_confidence")  # fmt: skip
    return {
        **{name: values[name] for name in names},
        "image_size": _whole(values["image_size"]),
        "device": str(find_device(values["device"])),
        "folder": numbered_folder(values["project"], values["name"], exist_ok=values["exist_ok"]),
    }


def _whole(size: int, stride: int = 32) -> int:
    """Return a size rounded up to whole strides."""
    rounded = max(-(-size // stride), 1) * stride
    if rounded != size:
        click.echo(f"--img {size} is no multiple of {stride}: {rounded} is taken.", err=True)
    return rounded


def network_of(cfg: str | None) -> Any:
    """Return the workload that reads the weights.

    Raises:
        BadInputError: it runs no weights files.
    """
    from memplan.advise import DEFAULT_WORKLOAD
    from memplan.capabilities import RunsTrained
    from memplan.registry import make_workload

    workload = make_workload(cfg or DEFAULT_WORKLOAD, {})
    if not isinstance(workload, RunsTrained):
        raise BadInputError(f"--cfg {cfg}: {workload.name} runs no weights files.")
    return workload
