"""`python -m benchmarks.gpu.collect DIR|FILE.zip`: recordings checked and kept in the repository.

Only recordings of a card are kept: what a CPU ran teaches nothing about one.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import click

from benchmarks.gpu.battery import RECORDINGS
from memplan.errors import BadInputError, MemplanError
from memplan.trace.history import SUFFIX, load_recording


def collect(source: Path, destination: Path) -> tuple[list[Path], list[str]]:
    """Copy a folder's or an archive's recordings; return the new files and why others stayed.

    Raises:
        BadInputError: the source is neither a folder nor an archive.
        BadTapeError: a recording in it cannot be read.
    """
    if source.is_dir():
        return _collect(source, destination)
    if not zipfile.is_zipfile(source):
        raise BadInputError(f"{source} is neither a folder nor an archive of the battery.")
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(source) as archive:
        folder = Path(name)
        for member in archive.namelist():
            # Flat names only: nothing may be written elsewhere.
            if member.endswith(SUFFIX) and Path(member).name == member:
                (folder / member).write_bytes(archive.read(member))
        return _collect(folder, destination)


def _collect(folder: Path, destination: Path) -> tuple[list[Path], list[str]]:
    destination.mkdir(parents=True, exist_ok=True)
    new, left = [], []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        recording = load_recording(path)
        if recording.facts["machine"]["device"] == "cpu":
            left.append(f"{path.name}: ran on a CPU")
            continue
        target = destination / path.name
        target.write_bytes(path.read_bytes())
        new.append(target)
    return new, left


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--into", type=click.Path(path_type=Path), default=RECORDINGS, hidden=True)
def command(source: Path, into: Path) -> None:
    """Check the recordings of DIR or FILE.zip and keep those of a card."""
    new, left = collect(source, into)
    for line in left:
        print(f"left out  {line}")
    size = sum(path.stat().st_size for path in new)
    print(f"{len(new)} recordings kept, {size / 2**20:.1f} MiB. Next: "
          "python -m benchmarks.gpu.compare")  # fmt: skip


if __name__ == "__main__":
    try:
        command.main(standalone_mode=False)
    except (MemplanError, click.ClickException) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
