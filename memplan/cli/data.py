"""`memplan data`: the embedded sample data set."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Protocol, runtime_checkable

import click

from memplan.cli.common import wrote
from memplan.errors import BadInputError
from memplan.registry import make_workload


@runtime_checkable
class BringsSample(Protocol):
    """A workload that has a small data set of its own."""

    def write_sample(self, directory: Path, *, force: bool = False) -> Path:
        """Write the data set and return the path of its description."""


@click.group()
def command() -> None:
    """Write the embedded sample data set.

    \b
    memplan data sample digits
    """


@command.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write into a folder that holds files.")
@click.option("--workload", default="yolov9-t", show_default=True, metavar="NAME",
              help="Whose sample set, and what the next command trains.")  # fmt: skip
def sample(directory: Path, *, force: bool, workload: str) -> None:
    """Write a small detection data set, handwritten digits on photographs, in YOLO layout.

    For a --workload with masks, such as gelan-c-seg, labels are polygons.

    \b
    memplan data sample digits
    """
    made = make_workload(workload)
    if not isinstance(made, BringsSample):
        raise BadInputError(f"Workload {workload!r} brings no sample set. Use yolov9-t.")
    description = made.write_sample(directory, force=force)
    images = [path for path in directory.rglob("*") if path.suffix == ".jpg"]
    for split in sorted({path.parent for path in images}):
        count = sum(path.parent == split for path in images)
        click.echo(f"{split}: {count} images with labels")
    wrote(description)
    option = "--workload" if ":" in workload else "--cfg"
    train = ["memplan", "train", "--auto-batch", option, workload, "--device", "cpu"]
    train += ["--data", str(description), "--img", "160", "--epochs", "2"]
    click.echo(f"Next: {shlex.join(train)}")
