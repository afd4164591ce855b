"""`train`: from options to a finished run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from memplan.answers import PlanAnswer
from memplan.errors import BadInputError, BadTapeError, DeviceOutOfMemoryError
from memplan.train.checkpoint import (
    Checkpoint,
    check_unfinished,
    find_checkpoint,
    load_checkpoint,
)
from memplan.train.loop import Run
from memplan.train.options import TrainOptions, options_from_record
from memplan.train.progress import Progress
from memplan.train.run_folder import RunFolder, create_run_folder
from memplan.train.schedule import accumulation_steps
from memplan.train.setup import Setup, WorkloadFactory, prepare
from memplan.train.summary import RunSummary
from memplan.workload import TrainingData, Workload

_FEW_STEPS = 16  # of the optimizer in an epoch

OnEvent = Callable[[str, Mapping[str, Any]], None]


def saved_options(path: Path) -> TrainOptions:
    """Return the options of the run that `--resume PATH` continues, such as its `cfg`.

    Raises:
        BadInputError: there is no checkpoint, or it cannot be used.
    """
    return options_from_record(load_checkpoint(find_checkpoint(path)).options)


def train(
    make_workload: Workload | WorkloadFactory,
    options: TrainOptions,
    *,
    plan: PlanAnswer | None = None,
    data: TrainingData | None = None,
    on_event: OnEvent | None = None,
    stream: TextIO | None = None,
) -> RunSummary:
    """Return what a training run came to; its records are in the summary's folder.

    Args:
        make_workload: a workload, or a factory as `open_training` describes.
        options: how to train; with `resume`, the saved run's own replace all but device and
            workers.
        plan: settings that replace batch, accumulation, precision, layout and recompute.
        data: what `open_training` returned beside this workload; None opens it.
        on_event: told each event, by name and facts; `events.jsonl` holds the same.
        stream: for progress and warnings; None is standard error.

    Raises:
        BadInputError: data, weights, checkpoint or device cannot be used.
        UsageError: an option contradicts workload or plan.
        DeviceOutOfMemoryError: not even one image fits.
    """
    path, checkpoint = None, None
    if options.resume is not None:
        path = find_checkpoint(options.resume)
        checkpoint = load_checkpoint(path)
        check_unfinished(checkpoint, path)
        options = _continued(options, checkpoint)
        plan = _saved_plan(checkpoint)
    elif options.epochs == 0 and options.weights is None:
        raise BadInputError("--epochs 0 only evaluates, so it needs --weights PATH.")
    setup = prepare(make_workload, options, plan=plan, data=data, checkpoint=checkpoint)
    folder = _folder(setup, path, checkpoint)
    progress = Progress(options.epochs, checkpoint.epoch if checkpoint else 0, stream)

    def announce(name: str, facts: Mapping[str, Any]) -> None:
        folder.add_event(name, facts)
        if on_event is not None:
            on_event(name, facts)

    _introduce(setup, folder, progress, announce, checkpoint)
    try:
        return Run(setup, folder, progress, announce, checkpoint).go()
    except KeyboardInterrupt:
        announce("interrupted", {})
        if (folder.weights / "last.pt").exists():
            progress.note(f"Interrupted. Continue with --resume {folder.path}")
        else:
            progress.note("Interrupted before an epoch was saved, so there is nothing to resume.")
        raise
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        announce("out_of_memory", {"message": reason})
        raise DeviceOutOfMemoryError(
            f"Out of memory ({reason}). Lower --batch, or train with --guard.", 0
        ) from None


def _continued(options: TrainOptions, checkpoint: Checkpoint) -> TrainOptions:
    """Return the saved run's options on this machine's device."""
    saved = options_from_record(checkpoint.options)
    return replace(
        saved,
        resume=options.resume,
        device=options.device,
        workers=options.workers,
        hyp=None,
        hyperparameters=checkpoint.hyperparameters,
    )


def _saved_plan(checkpoint: Checkpoint) -> PlanAnswer | None:
    if checkpoint.plan is None:
        return None
    try:
        return PlanAnswer.from_json(checkpoint.plan)
    except BadTapeError as error:
        raise BadInputError(f"The checkpoint's plan cannot be used: {error}") from None


def _folder(setup: Setup, path: Path | None, checkpoint: Checkpoint | None) -> RunFolder:
    """Return the resumed run's own folder, or a new one with the settings written."""
    options = setup.options
    if path is not None and checkpoint is not None and path.parent.name == "weights":
        folder = RunFolder(path.parents[1])
        folder.rewind(checkpoint.epoch)
        return folder
    folder = create_run_folder(options.project, options.name, exist_ok=options.exist_ok)
    folder.write_settings(options, setup.workload.name, setup.hyperparameters, setup.plan)
    return folder


def _introduce(
    setup: Setup,
    folder: RunFolder,
    progress: Progress,
    announce: OnEvent,
    checkpoint: Checkpoint | None,
) -> None:
    """Say what begins, and everything the user should know beforehand."""
    options, data = setup.options, setup.data
    steps = setup.schedule(options.batch)
    facts = {
        "workload": setup.workload.name,
        "device": str(setup.step.device),
        "precision": setup.step.settings.precision,
        "micro_batch_size": options.batch,
        "effective_batch_size": setup.effective_batch_size,
        "training_images": data.num_training_images,
        "validation_images": data.num_validation_images,
        "warmup_iterations": steps.warmup_iterations,
    }
    if checkpoint is None:
        announce("started", facts)
    else:
        announce("resumed", {**facts, "epoch": checkpoint.epoch})
        progress.note(f"Resuming after epoch {checkpoint.epoch} of {options.epochs}.")
    if setup.weights_report is not None:
        announce("weights_loaded", {"message": setup.weights_report})
        progress.note(setup.weights_report)
    for text in (*setup.warnings, *_warmup_warning(setup), *_steps_warning(setup)):
        announce("warning", {"message": text})
        progress.note(f"Warning: {text}")
    progress.note(
        f"Training {setup.workload.name} on {setup.step.device} in "
        f"{setup.step.settings.precision}: {data.num_training_images} images, "
        f"{options.batch} at once, about {setup.effective_batch_size:g} a step, "
        f"{_count_steps(_steps_an_epoch(setup))} an epoch; "
        f"records in {folder.path}"
    )


def _steps_an_epoch(setup: Setup) -> int:
    """Return the steps of the optimizer in an epoch after warm-up."""
    micro_batches = setup.data.num_batches(setup.options.batch)
    accumulation = accumulation_steps(setup.effective_batch_size, setup.options.batch)
    return math.ceil(micro_batches / accumulation)


def _count_steps(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _steps_warning(setup: Setup) -> list[str]:
    """Return a warning where an epoch's steps are too few to learn much from."""
    steps, images = _steps_an_epoch(setup), setup.data.num_training_images
    if not setup.options.epochs or steps >= _FEW_STEPS:
        return []
    # The largest power of two that gives enough steps; batch norm needs more than one image.
    enough = 1 << max(images // _FEW_STEPS, 1).bit_length() - 1
    if not 1 < enough < setup.effective_batch_size:
        return []
    is_few = f"An epoch of {images} images is {_count_steps(steps)} of the optimizer"
    way_out = f"Train for many --epochs, or give --effective-batch {enough}."
    return [f"{is_few}, which learns slowly. {way_out}"]


def _warmup_warning(setup: Setup) -> list[str]:
    """Return a warning where a run is over before its learning rate has come up."""
    schedule = setup.schedule(setup.options.batch)
    total = setup.options.epochs * schedule.batches_per_epoch
    if not 0 < total <= schedule.warmup_iterations:
        return []
    lasts = f"Warm-up lasts {schedule.warmup_iterations} micro-batches and this run has {total}"
    way_out = "Train for more --epochs, or use a --hyp with warmup_epochs: 0."
    return [f"{lasts}, so it will hardly learn. {way_out}"]
