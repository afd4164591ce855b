"""The Python function `train`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TextIO, Unpack

from memplan.advise.question import silent
from memplan.advise.run_pages import draw_run, is_worth_drawing
from memplan.advise.train_request import TrainRequest, is_first
from memplan.advise.training import start_training
from memplan.answers import PlanAnswer
from memplan.errors import UnknownNameError
from memplan.fit.predictor import Say
from memplan.spec import LEVERS, Levers
from memplan.training import RunSummary, TrainOptions
from memplan.workload import Workload

# Fields of TrainOptions that are none of the keyword arguments of a run.
_NO_OPTIONS = frozenset({"cfg", "resume", "spec", "given"})


class TrainArguments(Levers, total=False):
    """Keyword arguments of `memplan.train`, by the names of the options; see `TrainOptions`."""

    img: int
    blocks: str | None
    official_gains: bool
    batch: int
    batch_per_device: int | None
    val_batch: int | None
    epochs: int
    workers: int
    device: str
    weights: str | Path | None
    hyp: str | None
    hyperparameters: Mapping[str, float] | None
    project: str | Path
    name: str
    exist_ok: bool
    close_mosaic: int
    min_items: int
    cos_lr: bool
    flat_cos_lr: bool
    fixed_lr: bool
    label_smoothing: float
    patience: int
    freeze: tuple[int, ...]
    save_period: int
    seed: int
    single_cls: bool
    multi_scale: bool
    rect: bool
    image_weights: bool
    quad: bool
    cache: str
    noval: bool
    nosave: bool
    save_every: float
    noplots: bool
    tensorboard: bool
    accumulate: int | None
    effective_batch: int | None
    rank_timeout: float
    guard: bool


def train(
    workload: str | Workload | None = None,
    *,
    data: str | Path | None = None,
    auto_batch: bool = False,
    plan: PlanAnswer | str | Path | None = None,
    resume: str | Path | None = None,
    gpu: str | int | None = None,
    calibration: str | Path | None = None,
    safety: float | None = None,
    objects_per_image: int | None = None,
    on_event: Callable[[str, Mapping[str, Any]], None] | None = None,
    stream: TextIO | None = None,
    say: Say = silent,
    **options: Unpack[TrainArguments],
) -> RunSummary:
    """Return what a training run came to; its records are in the summary's folder.

    As `memplan train` does, with the options by their names: `batch=16, epochs=100, fused=True`.

    Args:
        workload: a name as on the command line, or a workload; None takes what plan or weights are
            of.
        data: the data set's description; what it recommends for itself is taken where nothing else
            is given.
        auto_batch: whether the batch, and how a step runs, is planned first; levers among
            `options` stay as they are given.
        plan: one to follow instead, or the file of one.
        resume: a run folder or `last.pt` to go on with, which says all but `device`, `workers`,
            `noplots` and `blocks`.
        gpu: with `auto_batch`, the card to plan for; None takes the one trained on.
        calibration: with `auto_batch`, the file of what was measured on the card.
        safety: with `auto_batch`, part of the card left alone, in 0-1.
        objects_per_image: with `auto_batch`, labelled objects in an image; None takes the data's.
        on_event: called with each event, by name and facts; `events.jsonl` holds the same. Also
            with `epoch` and each row of `results.csv`.
        stream: for progress and warnings; None is standard error.
        say: called with a line on what a plan is being made of.
        **options: of the run, by the fields of `memplan.training.TrainOptions`, with `img` for the
            size of images.

    Raises:
        InfeasibleError: with `auto_batch`, not even one image fits.
        DeviceOutOfMemoryError: not even one image fits, as was found while training.
        StoppedError: Ctrl-C or SIGTERM came; the step under way was finished and saved.
        MemplanError: something cannot be used.
    """
    request = _request(
        workload,
        plan,
        dict(options),
        {
            "auto_batch": auto_batch or None,
            "resume": None if resume is None else Path(resume),
            "gpu": gpu,
            "calibration": None if calibration is None else Path(calibration),
            "safety": safety,
            "objects_per_image": objects_per_image,
            "data": None if data is None else Path(data),
        },
    )
    request.tell = lambda line: print(line, file=stream or sys.stderr)
    request.say = say
    summary = start_training(request, on_event=on_event, stream=stream)
    if is_first() and is_worth_drawing(summary):
        draw_run(summary.run_folder, request.plan, request.command, request.tell)
    return summary


def _request(
    workload: str | Workload | None,
    plan: PlanAnswer | str | Path | None,
    options: dict[str, Any],
    beside: dict[str, Any],
) -> TrainRequest:
    """Return what is requested by keyword arguments; None among those `beside` is not given."""
    defaults = _defaults()
    if unknown := options.keys() - defaults.keys():
        raise UnknownNameError("option", min(unknown), defaults.keys())
    if "project" in options:
        options["project"] = Path(options["project"])
    is_file = plan is not None and not isinstance(plan, PlanAnswer)
    named = {
        "workload": workload if isinstance(workload, str) else None,
        "plan_file": Path(plan) if is_file else None,  # type: ignore[arg-type]
    }
    beside = beside | named
    given = options | {name: value for name, value in beside.items() if value is not None}
    return TrainRequest(
        values={"cfg": None} | defaults | dict.fromkeys(beside) | given,
        given=set(given),
        workload=workload if isinstance(workload, Workload) else None,
        plan=plan if isinstance(plan, PlanAnswer) else None,
        command="memplan.train",
    )


def _defaults() -> dict[str, Any]:
    """Return the options that have a default, by name; levers are not given."""
    values = {
        {"image_size": "img"}.get(one.name, one.name): one.default
        for one in fields(TrainOptions)
        if one.default is not MISSING
    }
    levers = {one.name: None for one in LEVERS if "train" in one.commands}
    return {name: one for name, one in values.items() if name not in _NO_OPTIONS} | levers
