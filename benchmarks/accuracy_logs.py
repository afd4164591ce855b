"""Predictions beside what public runs of the official YOLOv9 code printed."""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.common import publish
from memplan.device import catalogue
from memplan.device.card import Card
from memplan.device.life import Life
from memplan.device.replay import replay
from memplan.registry import make_workload
from memplan.spec import StepSpec
from memplan.tape import Tape
from memplan.trace.fake_cuda import warm_up
from memplan.trace.record import record

LOGS = Path(__file__).parent / "data" / "yolov9_logs.csv"
# No log states how crowded its images are; this is the workload's own default.
OBJECTS_PER_IMAGE = 20


def recorded(row: dict[str, str], checkout: Path | None = None) -> tuple[Tape, Card]:
    """Return a step of what a row trained, and its card.

    Args:
        row: of the table of logs.
        checkout: of the official repository, whose code is recorded; None records our own step.
    """
    arguments: dict[str, Any] = {
        "num_classes": int(row["nc"]),
        "image_size": int(row["imgsz"]),
        "objects_per_image": OBJECTS_PER_IMAGE,
    }
    name = row["cfg"].removesuffix(".yaml")
    if checkout is not None:
        workload = make_workload(f"official:{checkout}", {**arguments, "cfg": name})
    else:
        workload = make_workload(name, arguments)
    card = catalogue.card("a100-80gb" if "A100" in row["gpu"] else "t4")
    # The official recipe asks for deterministic algorithms.
    return record(workload, int(row["batch"]), StepSpec(deterministic=True)), card


def lives(row: dict[str, str]) -> tuple[Life, Life]:
    """Return the lives whose memory a row's log printed: training alone, and with validation."""
    accumulates = round(64 / int(row["batch"])) > 1
    return (
        Life(accumulates=accumulates, validates=False),
        Life(accumulates=accumulates, validates=True),
    )


def predict(row: dict[str, str], checkout: Path | None) -> tuple[float, float]:
    """Return predicted reserved memory in decimal GB: training alone, and a whole life.

    Args:
        row: of the table of logs.
        checkout: as `recorded` takes it.
    """
    tape, card = recorded(row, checkout)
    training, whole = (replay(tape, card, life=life) for life in lives(row))
    return training.reserved_peak_bytes / 1e9, whole.reserved_peak_bytes / 1e9


@click.command()
@click.option(
    "--official",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Record the code of this checkout of the official repository instead of our own step.",
)
def main(official: Path | None) -> None:
    """Predict every row, print errors signed, and count under-estimates apart."""
    warm_up()
    rows, first_errors, life_errors, seconds = [], [], [], []
    with LOGS.open() as file:
        for row in csv.DictReader(file):
            start = time.perf_counter()
            training, life = predict(row, official)
            seconds.append(time.perf_counter() - start)
            first, most = float(row["gpu_mem_gb_first_epoch"]), float(row["gpu_mem_gb_max"])
            first_errors.append(training / first - 1)
            life_errors.append(life / most - 1)
            rows.append(
                (
                    row["cfg"].removesuffix(".yaml"),
                    row["batch"],
                    row["imgsz"],
                    row["gpu"],
                    f"{first:.2f}",
                    f"{training:.2f}",
                    f"{first_errors[-1]:+.1%}",
                    f"{most:.2f}",
                    f"{life:.2f}",
                    f"{life_errors[-1]:+.1%}",
                )
            )
    header = (
        "Model", "Batch", "Img", "GPU",
        "First epoch GB", "Predicted", "Error", "Whole life GB", "Predicted", "Error",
    )  # fmt: skip
    step = "Our own step is recorded" if official is None else "A checkout's code is recorded"
    publish(
        "accuracy_logs" if official is None else "accuracy_logs_official",
        "Reserved memory of public YOLOv9 runs, measured by their authors, and predicted",
        header,
        rows,
        [
            _summary("First epoch", first_errors),
            _summary("Whole life", life_errors),
            f"{statistics.median(seconds):.1f} s a case (median), {max(seconds):.1f} s the worst.",
            f"Nothing is fitted to these rows. {step}, with {OBJECTS_PER_IMAGE} objects an image; "
            "torch 2.11 and cuDNN 9 stand in for the logs' torch 2.1 to 2.5 and cuDNN 8 or 9.",
            *(_ON_VALIDATION if official is not None else ()),
        ],
        None if official is None else "accuracy_logs --official PATH",
    )


_ON_VALIDATION = (
    "Both e networks grow by some 6 GB in their first validation, at batch 4 on a T4 and at 16 on "
    "an A100. Nothing in the recorded step does; a plan of cuDNN 8 whose workspace is that of "
    "transformed weights would, but that is not shown.",
)


def _summary(what: str, errors: list[float]) -> str:
    absolute = [abs(error) for error in errors]
    under = [error for error in errors if error < -0.05]
    return (
        f"{what}: median error {statistics.median(absolute):.1%}, worst {max(absolute):.1%}; "
        f"{sum(error < 0 for error in errors)} of {len(errors)} under-estimated, "
        f"{len(under)} by more than 5 %."
    )


if __name__ == "__main__":
    main()
