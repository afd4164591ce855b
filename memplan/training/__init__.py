"""The training run: loop, accumulation, checkpoints and resume, the guard against out of memory.

torch is imported by the first call, so that checking options stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from memplan.training.options import ACCEPTED, REFUSED, TrainOptions
from memplan.training.summary import RunSummary

if TYPE_CHECKING:
    from memplan.answers import PlanAnswer
    from memplan.training.setup import WorkloadFactory
    from memplan.workload import TrainingData, Workload

__all__ = [
    "ACCEPTED",
    "REFUSED",
    "RunSummary",
    "TrainOptions",
    "find_checkpoint",
    "open_training",
    "saved_options",
    "train",
]


def train(
    make_workload: Workload | WorkloadFactory,
    options: TrainOptions,
    *,
    plan: PlanAnswer | None = None,
    data: TrainingData | None = None,
    on_event: Callable[[str, Mapping[str, Any]], None] | None = None,
    stream: TextIO | None = None,
) -> RunSummary:
    """Return what a training run came to; see `run.train`."""
    from memplan.training.run import train as run

    return run(make_workload, options, plan=plan, data=data, on_event=on_event, stream=stream)


def open_training(
    make_workload: Workload | WorkloadFactory, options: TrainOptions
) -> tuple[Workload, TrainingData]:
    """Return the workload with the data's classes, and the data; see `setup.open_training`."""
    from memplan.training.setup import open_training as open_both

    return open_both(make_workload, options)


def saved_options(path: Path) -> TrainOptions:
    """Return the options of the run that `--resume PATH` continues; see `run.saved_options`."""
    from memplan.training.run import saved_options as read

    return read(path)


def find_checkpoint(path: Path) -> Path:
    """Return the file that `--resume PATH` means; see `resuming.find_saved`."""
    from memplan.training.resuming import find_saved as find

    return find(path)
