"""`memplan predict`: detections in images and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memplan.cli.inference_options import shared
from memplan.cli.official_words import joining, official_words
from memplan.errors import UsageError


def _numbers(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Any:
    """Return class numbers from `0,2` as from `--classes 0 --classes 2`."""
    del ctx, parameter
    texts = [text for one in value for text in one.replace(",", " ").split()]
    wrong = [text for text in texts if not text.isdecimal()]
    if wrong:
        raise UsageError(f"--classes {wrong[0]} is no class number. Give such as --classes 0,2.")
    return tuple(int(text) for text in texts)


_ACCEPTED = {
    "--view-img": "no window is opened; look at the files that are written",
    "--update": "the weights file stays as it is",
    "--dnn": "ONNX files run by ONNX Runtime",
}
_REFUSED = {
    "--augment": "it would run each image at three sizes",
    "--visualize": "memplan draws no feature maps",
}


@click.command(cls=joining("--classes", "--img", "--imgsz", "--img-size"))
@click.option(
    "--source",
    required=True,
    metavar="PATH|GLOB",
    help="An image, a video, a folder, a quoted pattern, or a .txt with a path a line.",
)
@shared(confidence=0.25, iou=0.45, most=1000, project="runs/detect")
@click.option("--data", type=click.Path(path_type=Path), metavar="FILE", help="Names the classes.")
@click.option(
    "--classes",
    multiple=True,
    callback=_numbers,
    metavar="N,...",
    help="Class numbers that count.  [all]",
)
@click.option("--agnostic-nms", "agnostic", is_flag=True, help="Suppress across classes too.")
@click.option("--save-crop", "saves_crops", is_flag=True, help="Write each found object too.")
@click.option("--nosave", is_flag=True, help="Write no images and videos.")
@click.option(
    "--line-thickness", type=int, default=3, show_default=True, metavar="PIXELS", help="Of boxes."
)
@click.option("--hide-labels", is_flag=True, help="Draw boxes without names.")
@click.option("--hide-conf", is_flag=True, help="Draw names without scores.")
@click.option(
    "--vid-stride",
    "video_stride",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Look at every N-th frame of a video.",
)
@official_words(_ACCEPTED, _REFUSED)
def command(**values: Any) -> None:
    """Detect objects in images and videos, and write them with their boxes drawn.

    \b
    memplan predict --weights best.pt --source photos/
    """
    from memplan.advise.trained import predict

    predict(
        saves_images=not values.pop("nosave"),
        shows_labels=not values.pop("hide_labels"),
        shows_confidence=not values.pop("hide_conf"),
        **values,
        say=click.echo,
    )
