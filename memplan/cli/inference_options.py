"""The options that `memplan val` and `memplan predict` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from memplan.cli.official_words import Side
from memplan.click_options import blocks_option

Decorator = Callable[[Any], Any]


def shared(*, confidence: float, iou: float, most: int, project: str) -> Decorator:
    """Return a decorator that adds the options of both, with a command's own defaults."""
    options = [
        click.option("--weights", required=True, type=click.Path(path_type=Path), metavar="FILE",
                     help="A checkpoint (memplan's, official or exported), ONNX or OpenVINO."),
        click.option("--cfg", metavar="NAME|PATH",
                     help="Its configuration.  [as the checkpoint says]"),
        blocks_option,
        click.option("--img", "--imgsz", "--img-size", "image_size", type=Side(), default=640,
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
