"""The plain scripts on an A100 again, with another cuDNN asked for workspaces.

    pip download --no-deps -d wheels nvidia-cudnn-cu12==9.10.2.21 nvidia-cublas-cu12==12.8.4.1 \
        nvidia-cuda-nvrtc-cu12==12.8.93
    for wheel in wheels/*.whl; do unzip -q -o "$wheel" -d other; done
    python -m benchmarks.card_truth.other_cudnn other

The steps are recorded in a process of its own, since torch brings its own cuDNN.
"""

from __future__ import annotations

import csv
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.common import RESULTS
from benchmarks.one_by_one import OneByOne
from memplan import tape as tapes
from memplan.cli.common import table
from memplan.device import catalogue, cudnn_descriptors
from memplan.errors import BadInputError
from memplan.units import MIB

NAME = "card_truth_cudnn"
_HEADER = ("Case", "Measured MiB", "Predicted", "Error", "1x1 as products", "Its error")
# What cuDNN loads by name, so that it finds these and not the installed ones.
_NEEDED = ("cublas/lib/libcublasLt.so.*", "cuda_nvrtc/lib/libnvrtc.so.*")
_RECORD = (
    "import sys; from benchmarks.card_truth.cards import save_plain_tapes; "
    "save_plain_tapes(sys.argv[1])"
)


def use(folder: Path) -> str:
    """Let the cuDNN of an unpacked wheel answer in this process, and return its version.

    Raises:
        BadInputError: the folder has none, or it cannot be asked.
    """
    library = folder / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    if not library.exists():
        raise BadInputError(f"{folder} holds no nvidia/cudnn/lib. Unpack a cuDNN 9 wheel there.")
    for pattern in _NEEDED:
        for path in sorted((folder / "nvidia").glob(pattern)):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    os.environ["MEMPLAN_CACHE"] = "off"
    cudnn_descriptors._path = lambda: str(library)  # noqa: SLF001 - no other way in is wanted
    return cudnn_descriptors.installed_version()


def rows_of(folder: Path) -> list[tuple[str, ...]]:
    """Return a row for each saved tape: measured, as asked, and 1x1 convolutions as products."""
    from benchmarks.card_truth.replays import replays

    card = catalogue.card("a100-40gb")
    products = list(OneByOne).index(OneByOne.PRODUCTS)
    rows = []
    for path in sorted(folder.glob("*.tape"), key=lambda path: int(path.name.partition("-")[0])):
        _, case, measured = path.stem.split("-", 2)
        found = [one.device_used_peak_bytes for one in replays(tapes.load_tape(path), card)]
        errors = [found[place] / MIB / int(measured) - 1 for place in (0, products)]
        sizes = [f"{found[place] / MIB:.0f}" for place in (0, products)]
        cells = [f"{error:+.1%}" for error in errors]
        rows.append((case, measured, sizes[0], cells[0], sizes[1], cells[1]))
    return rows


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Ask the cuDNN in FOLDER and write the table."""
    version = use(folder)
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([sys.executable, "-c", _RECORD, made], check=True)
        rows = rows_of(Path(made))
    lines = [f"# Plain scripts on an A100, cuDNN {version} asked for workspaces", "", "```"]
    lines += [table(_HEADER, rows), "```", "", "- Device-used, the card's own context included."]
    lines += ["- Command: see benchmarks/card_truth/other_cudnn.py.", ""]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")
    with (RESULTS / f"{NAME}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([_HEADER, *rows])
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
