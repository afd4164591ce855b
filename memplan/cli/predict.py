"""`memplan predict`: detections in images and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memplan.cli.inference_options import shared
from memplan.errors import UsageError


def _numbers(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> Any:
    """Return class numbers from `0,2` as from `--classes 0 --classes 2`."""
    del ctx, parameter
    texts = [text for one in value for text in one.replace(",", " ").split()]
    wrong = [text for text in texts if not text.isdecimal()]
    if wrong:
        raise UsageError(f"--classes {wrong[0]} is no class number. Give such as --classes 0,2.")
    return tuple(int(text) for text in texts)


class _Spread(click.Command):
    """A command that takes `--classes 0 2` as the official script does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the numbers behind `--classes` before options are read."""
        joined: list[str] = []
        for text in args:
            if text.isdecimal() and joined[-2:-1] == ["--classes"]:
                joined[-1] += f",{text}"
            else:
                joined.append(text)
        return super().parse_args(ctx, joined)


@click.command(cls=_Spread)
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
