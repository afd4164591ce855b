"""Predictions beside the GPU memory that the xMem study measured, and beside its rivals'.

Ground truth there is the device's used memory less its first sample, so the CUDA context is not
in it; what is loaded later (kernels, library handles) is. Predicted is the peak of reserved
memory alone: no public figure parts late loading from the context, so nothing is added.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from benchmarks.common import RESULTS, publish, require
from benchmarks.picture import draw_errors
from benchmarks.xmem_step import TORCH_VERSION, Training, record_training, replay_training
from benchmarks.xmem_transformers import SEQUENCE_LENGTH, TRANSFORMERS, transformer_training
from benchmarks.xmem_workloads import CNNS, cnn_training
from memplan.device import catalogue
from memplan.device.cudnn import installed_version
from memplan.device.one_by_one import OneByOne
from memplan.errors import BadInputError, MemplanError
from memplan.present.section import aligned as table
from memplan.trace.fake_cuda import warm_up
from memplan.units import MIB

ROWS = Path(__file__).parent / "data" / "xmem_dev.csv"
TOOLS = {"xMem": "xmem", "DNNMem": "dnnmem", "SchedTune": "schedtune"}
# Records of the second campaign say how gradients were zeroed, but the csv lacks the column, so the
# one that says 1 is named. Those of the first say null. The study's loop reads null as 0; its
# trainer, told nothing, says 1. Which of the two happened is not documented: `--null-mode`.
_ZEROES_AFTER_FORWARD = {"ConvNeXtBase_Adam_209_0_d8bb"}
HEADER = (
    "Model", "Optimizer", "Batch", "Card", "Measured MiB", "Predicted MiB", "Error",
    *TOOLS, "Weights MiB", "Ran out", "Predicted so", "Wrong verdicts",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One record of the study: what ran, what was measured, what the published tools said."""

    path: PurePosixPath
    model: str
    optimizer: str
    batch_size: int
    gpu: str
    capacity_bytes: int
    ground_bytes: int
    ran_out: bool
    estimates: dict[str, int]
    xmem_seconds: float

    @property
    def is_first_campaign(self) -> bool:
        """Whether it ran before zeroing was recorded, with `CUBLAS_WORKSPACE_CONFIG=:0:0`."""
        return self.path.parts[4] == "001"

    def zeroes_before_forward(self, null_mode: int) -> bool:
        """Return whether gradients were dropped before the batch was copied.

        Args:
            null_mode: what a record that says nothing is taken to say, 0 or 1.
        """
        if self.is_first_campaign:
            return null_mode == 0
        return self.path.parts[5] not in _ZEROES_AFTER_FORWARD

    @property
    def is_transformer(self) -> bool:
        """Whether it is no convolutional network."""
        return self.model in TRANSFORMERS

    @property
    def name(self) -> str:
        """Model, optimizer and batch in one word."""
        return f"{self.model}_{self.optimizer}_{self.batch_size}"


def read_rows(path: Path) -> list[Row]:
    """Return the records of a file with the study's columns.

    Raises:
        BadInputError: it is missing, or a column is.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return [_row(cells) for cells in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise BadInputError(
            f"{path} cannot be read as records of the study ({type(error).__name__}: {error}). "
            f"Give a file with the columns of {ROWS.name}."
        ) from None


def _row(cells: dict[str, str]) -> Row:
    path = PurePosixPath(cells["path"])
    _ = path.parts[5]
    return Row(
        path=path,
        model=cells["model"],
        optimizer=cells["optimizer"],
        batch_size=int(cells["batch"]),
        gpu=cells["gpu"],
        capacity_bytes=int(cells["total_gpu_memory"]),
        ground_bytes=int(cells["ground_bytes"]),
        ran_out=cells["real_oom"].lower() == "true",
        estimates={tool: int(float(cells[f"{column}_bytes"])) for tool, column in TOOLS.items()},
        xmem_seconds=float(cells["xmem_runtime_s"]),
    )


@dataclass(frozen=True)
class Prediction:
    """What we say of one record."""

    row: Row
    reserved_bytes: int
    runs_out: bool
    parameter_bytes: int
    seconds: float
    unknown_operators: frozenset[str]
    open_bytes: tuple[int, ...] = ()
    """Reserved where 1x1 convolutions need less workspace than asked, see `one_by_one`."""

    def error(self, tool: str | None = None) -> float:
        """Return the signed relative error, ours or a published tool's."""
        estimate = self.row.estimates[tool] if tool else self.reserved_bytes
        return estimate / self.row.ground_bytes - 1

    def is_wrong(self, tool: str | None = None) -> bool:
        """Return whether the verdict on running out is wrong, ours or a published tool's.

        Published estimates are taken to run out above the card's memory: xMem's and DNNMem's
        contain the context, SchedTune's are of the device.
        """
        if tool is None:
            return self.runs_out != self.row.ran_out
        return (self.row.estimates[tool] > self.row.capacity_bytes) != self.row.ran_out


def training_of(row: Row, null_mode: int = 0) -> Training:
    """Return what a record trained.

    Raises:
        BadInputError: the study's name means no model known here.
    """
    if row.model not in {*CNNS, *TRANSFORMERS}:
        raise BadInputError(f"Model {row.model!r} is none of the study's that are known here.")
    make = transformer_training if row.is_transformer else cnn_training
    return make(
        row.model,
        row.optimizer,
        row.batch_size,
        zeroes_before_forward=row.zeroes_before_forward(null_mode),
    )


def predict(row: Row, null_mode: int = 0) -> Prediction:
    """Return what a record's training reserves on its card.

    Raises:
        BadInputError: model or optimizer is not known.
        UnknownNameError: the card is not in the catalogue.
    """
    start = time.perf_counter()
    card = catalogue.card(row.gpu).with_capacity(row.capacity_bytes)
    recording = record_training(training_of(row, null_mode))
    run, *others = (
        replay_training(
            recording, card, has_matrix_workspace=not row.is_first_campaign, one_by_one=workspaces
        )
        for workspaces in OneByOne
    )
    return Prediction(
        row=row,
        reserved_bytes=run.reserved_bytes,
        runs_out=run.runs_out,
        open_bytes=tuple(other.reserved_bytes for other in others),
        parameter_bytes=recording.parameter_bytes,
        seconds=time.perf_counter() - start,
        unknown_operators=frozenset(recording.unknown_operators),
    )


def _predictions(rows: Sequence[Row], null_mode: int) -> Iterator[Prediction]:
    for number, row in enumerate(rows, 1):
        try:
            done = predict(row, null_mode)
        except MemplanError as error:
            print(f"{number}/{len(rows)} {row.name}: left out. {error}", file=sys.stderr)
            continue
        said = "runs out" if done.runs_out else "fits"
        by = "" if row.ran_out else f", {done.error():+.1%}"
        print(f"{number}/{len(rows)} {row.name}: {said}{by}, {done.seconds:.1f} s", file=sys.stderr)
        yield done


def _cells(one: Prediction) -> tuple[str, ...]:
    row = one.row
    errors = [one.error(), *(one.error(tool) for tool in TOOLS)]
    shown = ["-" if row.ran_out else f"{error:+.1%}" for error in errors]
    wrong = [
        name
        for name, tool in {"memplan": None, **{t: t for t in TOOLS}}.items()
        if one.is_wrong(tool)
    ]
    return (
        row.model,
        row.optimizer,
        str(row.batch_size),
        row.gpu.rpartition(" ")[2],
        f"{row.ground_bytes / MIB:.0f}",
        f"{one.reserved_bytes / MIB:.0f}",
        *shown,
        f"{one.parameter_bytes / MIB:.0f}",
        "yes" if row.ran_out else "no",
        "yes" if one.runs_out else "no",
        ", ".join(wrong) or "none",
    )


def summary(predictions: Sequence[Prediction], tool: str | None = None) -> str:
    """Return one line on a tool's errors and verdicts; ours where none is named."""
    finished = [one.error(tool) for one in predictions if not one.row.ran_out]
    wrong = [one for one in predictions if one.is_wrong(tool)]
    false_fits = sum(one.row.ran_out for one in wrong)
    verdicts = f"wrong verdicts {len(wrong)} of {len(predictions)}, {false_fits} of them «fits»"
    if not finished:
        return f"{tool or 'memplan'}: {verdicts}."
    size = np.abs(finished)
    median, tail = np.median(size), np.percentile(size, 90)
    under = sum(error < 0 for error in finished)
    far_under = sum(error < -0.05 for error in finished)
    if tool is None:
        seconds = [one.seconds for one in predictions]
    else:
        seconds = [one.row.xmem_seconds for one in predictions] if tool == "xMem" else []
    took = f"{np.median(seconds):.1f} s a case, worst {max(seconds):.1f}" if seconds else "no times"
    return (
        f"{tool or 'memplan'}: median error {median:.1%}, 90th percentile {tail:.1%}, worst "
        f"{size.max():.1%}; under-estimates {under} of {len(finished)}, {far_under} by more than "
        f"5 %; {verdicts}; {took}."
    )


def _remarks(predictions: Sequence[Prediction]) -> list[str]:
    finished = [one for one in predictions if not one.row.ran_out]
    late = sum(
        0 <= one.reserved_bytes - one.row.ground_bytes <= one.parameter_bytes for one in finished
    )
    unknown = sorted(set().union(*(one.unknown_operators for one in predictions)))
    groups = {
        "Convolutional networks": [one for one in predictions if not one.row.is_transformer],
        "All rows": predictions,
    }
    if len(groups["Convolutional networks"]) in {0, len(predictions)}:
        groups = {"All rows": predictions}
    return [
        *(
            f"{name}: {summary(ones, tool)}"
            for name, ones in groups.items()
            for tool in (None, *TOOLS)
        ),
        "Errors are of rows that did not run out; verdicts are of all rows. Predicted is the peak "
        "of reserved memory; nothing is added for what is loaded after the context, and nothing "
        "is fitted to any row.",
        f"Measured can be low by up to the model's weights: the study's first sample may come "
        f"after part of them has moved. {late} of {len(finished)} predictions lie above the "
        "measured figure by no more than that.",
        f"cuDNN {installed_version()} and torch 2.11's operators stand in for the study's torch "
        f"{TORCH_VERSION} with cuDNN 9.1.0; allocator rules are those of torch {TORCH_VERSION}.",
        "Records of the first campaign do not say when gradients were zeroed; before the batch is "
        "copied is taken, as the study's loop reads a null. That choice was made after its "
        "transformers had been seen to agree with it and not with the other (`--null-mode 1`).",
        f"Transformers: {SEQUENCE_LENGTH} tokens a text. Texts were cut there, and the lengths of "
        "batches were not recorded.",
        f"Operators without a memory rule: {', '.join(unknown) or 'none'}.",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict every row and print the table; the whole default file's is kept as a result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy_xmem", description=__doc__)
    parser.add_argument("--rows", type=Path, default=ROWS, help="csv with the study's columns")
    parser.add_argument("--only", default="", help="part of MODEL_OPTIMIZER_BATCH")
    parser.add_argument(
        "--null-mode", type=int, choices=(0, 1), default=0, help="zero_grad_mode read into null"
    )
    options = parser.parse_args(arguments)
    is_kept = options.rows == ROWS and not options.only and not options.null_mode
    if is_kept:
        require("transformers")
    try:
        rows = [row for row in read_rows(options.rows) if options.only.lower() in row.name.lower()]
    except BadInputError as error:
        sys.exit(str(error))
    warm_up()
    predictions = list(_predictions(rows, options.null_mode))
    if not predictions:
        sys.exit(f"No row of {options.rows} could be predicted.")
    predictions.sort(key=lambda one: one.row.is_transformer)
    cells = [_cells(one) for one in predictions]
    if is_kept:
        title = "Device memory the xMem study measured in training, and predicted"
        publish("accuracy_xmem", title, HEADER, cells, _remarks(predictions))
        finished = [one for one in predictions if not one.row.ran_out]
        errors = {
            name: [one.error(tool) for one in finished]
            for name, tool in {"memplan": None, **{tool: tool for tool in TOOLS}}.items()
        }
        draw_errors(
            RESULTS / "accuracy_xmem.png",
            f"Predicted against {len(finished)} measured runs",
            errors,
        )
        return
    print(table(HEADER, cells, left=2))
    print("\n".join(f"- {remark}" for remark in _remarks(predictions)))


if __name__ == "__main__":
    main()
