"""The plain scripts on an A100 again, with another cuDNN asked for workspaces.

    python -m venv other
    other/bin/python -m pip install torch==2.8.0 numpy PyYAML
    python -m benchmarks.card_truth.other_cudnn other/bin/python

The other torch brings its cuDNN, which is asked on a phantom card as memplan asks its own; steps
are recorded by the installed torch.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.card_truth.cards import plain_scripts
from benchmarks.card_truth.page import percent
from benchmarks.card_truth.row import Row
from benchmarks.common import RESULTS
from memplan.convolution import ConvolutionProblem
from memplan.device import catalogue, cudnn_asking
from memplan.phantom.launch import environment
from memplan.present.section import aligned as table
from memplan.units import MIB

NAME = "card_truth_cudnn"
_HEADER = ("Case", "Measured MiB", "Predicted", "Error")
_ANSWER = """
import json, sys
from memplan.device import cudnn_asking
print(json.dumps(cudnn_asking.answer(**json.load(sys.stdin))))
"""
_VERSION = """
from memplan.device.cudnn_descriptors import installed_version
print(installed_version())
"""
_ROOT = Path(__file__).parents[2]


def _run(interpreter: str, code: str, text: str = "") -> str:
    """Return what an interpreter with memplan's modules prints on a phantom card."""
    variables = environment(catalogue.card("a100-40gb"), interpreter=interpreter)
    done = subprocess.run(
        [interpreter, "-c", code],
        env=variables | {"PYTHONPATH": str(_ROOT)},
        input=text, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def asking(interpreter: str) -> Callable[..., list[tuple[int, ...]]]:
    """Return a function as `cudnn_asking.workspaces` that asks an interpreter's cuDNN."""

    def workspaces(
        device: str, problems: Sequence[ConvolutionProblem], *, every: bool, folder: Path | None
    ) -> list[tuple[int, ...]]:
        del folder  # it is the interpreter's own that is asked
        asked: dict[str, Any] = {"device": device, "every": every}
        asked["problems"] = [asdict(one) for one in problems]
        return [tuple(one) for one in json.loads(_run(interpreter, _ANSWER, json.dumps(asked)))]

    return workspaces


def _cells(row: Row) -> tuple[str, ...]:
    assert row.predicted_bytes is not None, row.remark
    sizes = (f"{size / MIB:.0f}" for size in (row.measured_bytes, row.predicted_bytes))
    return (row.case, *sizes, percent(row.error))


@click.command()
@click.argument("interpreter", type=click.Path(exists=True, dir_okay=False))
def main(interpreter: str) -> None:
    """Ask the cuDNN of INTERPRETER's torch and write the table."""
    version = _run(interpreter, _VERSION)
    os.environ["MEMPLAN_CACHE"] = "off"
    cudnn_asking.workspaces = asking(interpreter)
    rows = [_cells(row) for row in plain_scripts()]
    lines = [f"# Plain scripts on an A100, cuDNN {version} asked for workspaces", "", "```"]
    lines += [table(_HEADER, rows), "```", "", "- Device-used, the card's own context included."]
    lines += ["- Command: see benchmarks/card_truth/other_cudnn.py.", ""]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")
    with (RESULTS / f"{NAME}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([_HEADER, *rows])
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
