"""`train`: from options to a finished run folder."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

from memplan.answers import PlanAnswer
from memplan.errors import (
    BadInputError,
    BadTapeError,
    DeviceOutOfMemoryError,
    MemplanError,
    is_out_of_memory,
)
from memplan.files import drop_partials
from memplan.host_memory import resident_bytes
from memplan.training.checkpoint import (
    Checkpoint,
    set_damaged_aside,
)
from memplan.training.distributed import is_one_of_several, leave
from memplan.training.guard import (
    DataLostError,
    NoRoomError,
    OutOfMemory,
    attempt,
    first_line,
    make_room,
    persist,
)
from memplan.training.host_words import host_memory_words
from memplan.training.loop import Run
from memplan.training.options import TrainOptions, options_from_record
from memplan.training.position import position_of
from memplan.training.progress import Progress
from memplan.training.rescue import drop_rescued
from memplan.training.restart import after_restart, sign
from memplan.training.resuming import find_saved, folder_of, load_saved
from memplan.training.run_folder import RunFolder, create_run_folder
from memplan.training.setup import Setup, WorkloadFactory, prepare
from memplan.training.stopping import StopRequest
from memplan.training.summary import RunSummary, finished_summary
from memplan.training.tensorboard import TensorBoardRecords, check_tensorboard
from memplan.training.validation import validation_batch_size
from memplan.training.way_out import plan_that_fits
from memplan.workload import RecognisedData, TrainingData, Workload

_FEW_STEPS = 16  # of the optimizer in an epoch

_T = TypeVar("_T")
OnEvent = Callable[[str, Mapping[str, Any]], None]


def saved_options(path: Path) -> TrainOptions:
    """Return the options of the run that `--resume PATH` continues, such as its `cfg`.

    Raises:
        BadInputError: there is no checkpoint, or it cannot be used.
    """
    return options_from_record(load_saved(find_saved(path))[0].options)


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
        options: how to train; with `resume`, the saved run's own replace all but device,
            workers and rank_timeout.
        plan: settings that replace batch, accumulation, precision, layout and recompute.
        data: what `open_training` returned beside this workload; None opens it.
        on_event: told each event, by name and facts; `events.jsonl` holds the same. Also `epoch`,
            with each row of `results.csv`.
        stream: for progress and warnings; None is standard error.

    Raises:
        BadInputError: data, weights, checkpoint or device cannot be used.
        UsageError: an option contradicts workload or plan.
        DeviceOutOfMemoryError: not even one image fits.
        StoppedError: Ctrl-C or SIGTERM came; the step under way was finished and saved.
    """
    try:
        return _trained(make_workload, options, plan, data, on_event, stream)
    except Exception as error:
        if isinstance(error, MemplanError) or not is_out_of_memory(error):
            raise
        reason = first_line(error)
    raise DeviceOutOfMemoryError(
        f"Out of memory before or after training ({reason}). Close other programs. What was saved "
        "is kept.",
        0,
    )


def _trained(
    make_workload: Workload | WorkloadFactory,
    options: TrainOptions,
    plan: PlanAnswer | None,
    data: TrainingData | None,
    on_event: OnEvent | None,
    stream: TextIO | None,
) -> RunSummary:
    options = after_restart(options)
    path, checkpoint, note = None, None, ""
    if options.resume is not None:
        path = find_saved(options.resume)
        checkpoint, note = _persisted(lambda: load_saved(path), path)
        if checkpoint.finished:
            place = folder_of(path) or path.parent
            return finished_summary(checkpoint, place, draws=not options.noplots)
        _check_position(checkpoint, path)
        options = _continued(options, checkpoint, path)
        plan = _saved_plan(checkpoint)
    elif options.epochs == 0 and options.weights is None:
        raise BadInputError("--epochs 0 only evaluates, so it needs --weights PATH.")
    if options.tensorboard:
        check_tensorboard()
    with contextlib.ExitStack() as stack:
        setup = _prepared(
            lambda: prepare(make_workload, options, plan=plan, data=data, checkpoint=checkpoint),
            several=is_one_of_several(),
        )
        stack.callback(leave)
        folder = _folder(setup, path, checkpoint)
        stack.callback(folder.release)
        progress = _progress(setup, checkpoint, stream, stack)
        folder.complain = lambda text: progress.note(f"Warning: {text}")
        if options.tensorboard and setup.ranks.is_first:
            done = checkpoint.epoch if checkpoint else 0
            stack.enter_context(TensorBoardRecords(folder, done))
        if not setup.ranks.is_first:
            on_event = None
        announce = _announcer(folder, on_event)
        _tell_results(folder, on_event)
        for text in filter(None, (note, *folder.notes)):
            announce("warning", {"message": text})
            progress.note(f"Warning: {text}")
        _introduce(setup, folder, progress, announce, checkpoint)
        stop = stack.enter_context(StopRequest())
        return _closed(Run(setup, folder, progress, announce, checkpoint, stop))


def _persisted(work: Callable[[], _T], path: Path) -> _T:
    """Return what is read of a file, read again where there was no room for it.

    Raises:
        DeviceOutOfMemoryError: there was none at any try.
    """
    found = persist(work)
    if isinstance(found, OutOfMemory):
        raise DeviceOutOfMemoryError(
            f"{path} finds no room in host memory ({found.message}). Close other programs.", 0
        )
    return found


def _prepared(work: Callable[[], Setup], *, several: bool) -> Setup:
    """Return the set-up run, made again where it found no room.

    Raises:
        DeviceOutOfMemoryError: it finds none. Processes that wait for each other try once.
    """
    found = attempt(work) if several else persist(work)
    if isinstance(found, OutOfMemory):
        raise DeviceOutOfMemoryError(
            f"The model with its average finds no room ({found.message}), whatever the batch. Use "
            "a smaller model, or a device that other programs leave more of.",
            0,
        )
    return found


def _tell_results(folder: RunFolder, on_event: OnEvent | None) -> None:
    """Tell rows of `results.csv` as events `epoch`; the table holds them, so no record does too."""
    if on_event is None:
        return
    others = folder.on_result

    def told(row: Mapping[str, Any]) -> None:
        others(row)
        on_event("epoch", row)

    folder.on_result = told


def _announcer(folder: RunFolder, on_event: OnEvent | None) -> OnEvent:
    def announce(name: str, facts: Mapping[str, Any]) -> None:
        folder.add_event(name, facts)
        if on_event is not None:
            on_event(name, facts)

    return announce


def _progress(
    setup: Setup,
    checkpoint: Checkpoint | None,
    stream: TextIO | None,
    stack: contextlib.ExitStack,
) -> Progress:
    """Return where people look; the processes after the first write nowhere."""
    if not setup.ranks.is_first:
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - by the stack
        stack.callback(stream.close)
    done = 0.0
    if checkpoint is not None:
        position = checkpoint.position or {"images_seen": 0}
        done = checkpoint.epoch + position["images_seen"] / setup.data.num_training_images
    return Progress(setup.options.epochs, done, stream)


def _closed(run: Run) -> RunSummary:
    """Return the run's summary, what it opened closed whatever happens."""
    try:
        return _guarded(run)
    finally:
        run.runner.close()


def _guarded(run: Run) -> RunSummary:
    """Return the run's summary, with what ends it early told to people and records."""
    try:
        return run.go()
    except KeyboardInterrupt:
        run.announce("interrupted", {})
        if run.has_state:
            run.progress.note(f"Interrupted. Continue with: {run.resume_command()}")
        else:
            run.progress.note("Interrupted before anything was saved: there is nothing to resume.")
        raise
    except DataLostError as error:
        raise BadInputError(f"{error} {run.rescue()}") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        told = isinstance(error, NoRoomError)
        reason = first_line(error)
    # Outside the handler: what the failed pass held is free by now.
    make_room()
    run.announce("out_of_memory", {"message": reason})
    text = reason if told else f"Out of memory ({reason}). Lower --batch{_way_out(run.setup)}."
    sentences = (text, plan_that_fits(run.setup), run.rescue())
    raise DeviceOutOfMemoryError(" ".join(filter(None, sentences)), 0)


def _way_out(setup: Setup) -> str:
    """Return what else than a smaller batch helps, by why nothing was repeated smaller."""
    if not setup.options.guard:
        return ", or train with --guard"
    return "" if setup.guards else ", or leave out --sync-bn, with which the guard is off"


def _continued(options: TrainOptions, checkpoint: Checkpoint, path: Path) -> TrainOptions:
    """Return the saved run's options on this machine's device.

    Where the records go is not the file's to say: into the run folder that it stands in, else
    where the caller's options have them.
    """
    saved = options_from_record(checkpoint.options)
    folder = folder_of(path)
    return replace(
        saved,
        resume=options.resume,
        cfg=options.cfg or saved.cfg,
        device=options.device,
        workers=options.workers,
        rank_timeout=options.rank_timeout,
        noplots=saved.noplots or options.noplots,
        blocks=options.blocks,
        hyp=None,
        hyperparameters=checkpoint.hyperparameters,
        project=options.project if folder is None else folder.parent,
        name=options.name if folder is None else folder.absolute().name or options.name,
        exist_ok=options.exist_ok and folder is None,
    )


def _check_position(checkpoint: Checkpoint, path: Path) -> None:
    """Refuse a place in an epoch that is none, before anything is made for it."""
    record = checkpoint.position
    if record is None:
        return
    try:
        position = position_of(record)
        counts = (position.images_seen, position.num_steps)
        is_place = all(type(count) is int and 0 <= count < _MOST_STEPS for count in counts)
        is_place = is_place and 0 <= float(record["seconds"]) < math.inf
    except (KeyError, TypeError, ValueError, AttributeError):
        is_place = False
    if not is_place:
        raise BadInputError(
            f"{path} does not say where in its epoch it stands. An older good one may be beside "
            "it, such as best.pt."
        )


_MOST_STEPS = 1 << 50


def _saved_plan(checkpoint: Checkpoint) -> PlanAnswer | None:
    if checkpoint.plan is None:
        return None
    try:
        return PlanAnswer.from_json(checkpoint.plan)
    except BadTapeError as error:
        raise BadInputError(f"The checkpoint's plan cannot be used: {error}") from None


def _folder(setup: Setup, path: Path | None, checkpoint: Checkpoint | None) -> RunFolder:
    """Return the resumed run's own folder, or a new one with the settings written.

    It is locked; processes after the first know it and leave it alone.
    """
    if not setup.ranks.is_first:
        return RunFolder(Path(setup.ranks.share(None)), writes=False)
    folder = _own_folder(setup, path, checkpoint)
    setup.ranks.share(str(folder.path))
    return folder


def _own_folder(setup: Setup, path: Path | None, checkpoint: Checkpoint | None) -> RunFolder:
    options = setup.options
    own = None if path is None else folder_of(path)
    if own is None:
        folder = create_run_folder(options.project, options.name, exist_ok=options.exist_ok)
    else:
        folder = RunFolder(own)
        folder.check_files()
        folder.lock()
    try:
        drop_partials(folder.path)
        drop_partials(folder.weights)
        if own is None:
            folder.write_settings(options, setup.workload.name, setup.hyperparameters, setup.plan)
            sign(folder.path)
            drop_rescued(folder.path)  # of an earlier run that had this name
        else:
            assert checkpoint is not None
            assert path is not None
            _persisted(lambda: set_damaged_aside(path), path)
            folder.rewind(checkpoint.epoch, checkpoint.steps if checkpoint.position else None)
    except BaseException:
        folder.release()
        raise
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
    steps = setup.schedule(setup.micro_batch_size)
    facts = {
        "workload": setup.workload.name,
        "device": str(setup.step.device),
        "precision": setup.step.spec.precision,
        "micro_batch_size": setup.micro_batch_size,
        "accumulation_steps": setup.accumulation_steps,
        "devices": setup.ranks.size,
        "effective_batch_size": setup.images_a_step,
        "nominal_batch_size": setup.workload.nominal_batch_size,
        "weight_decay": setup.step.numbers.weight_decay,
        "learning_rate": setup.recipe.lr0,
        "training_images": data.num_training_images,
        "validation_images": data.num_validation_images,
        "warmup_iterations": steps.warmup_iterations,
        # Interpreter, libraries, network and data: what no plan's figure contains.
        "host_resident_bytes": resident_bytes(),
    }
    if checkpoint is None:
        announce("started", facts)
    else:
        seen = checkpoint.position["images_seen"] if checkpoint.position else 0
        announce("resumed", {**facts, "epoch": checkpoint.epoch, "images": seen})
        midway = f" and {seen} of {data.num_training_images} images" if seen else ""
        progress.note(f"Resuming after {checkpoint.epoch} of {options.epochs} epochs{midway}.")
    if setup.weights_report is not None:
        announce("weights_loaded", {"message": setup.weights_report})
        progress.note(setup.weights_report)
    changed = _changed_data(setup, checkpoint)
    for text in (*setup.warnings, *changed, *_warmup_warning(setup), *_steps_warning(setup)):
        announce("warning", {"message": text})
        progress.note(f"Warning: {text}")
    if not options.epochs:
        at_once = validation_batch_size(setup, setup.micro_batch_size)
        progress.note(
            f"Evaluating {setup.workload.name} on {setup.step.device} in "
            f"{setup.step.spec.precision}: {data.num_validation_images} images, "
            f"{at_once} at once; records in {folder.path}"
        )
        return
    progress.note(
        f"Training {setup.workload.name} on {setup.step.device} in "
        f"{setup.step.spec.precision}: {data.num_training_images} images, "
        f"{_batch_in_words(setup)}, {_count_steps(setup.steps_an_epoch)} an epoch; "
        f"records in {folder.path}"
    )
    line, too_little = host_memory_words(setup)
    if line:
        progress.note(line)
    if too_little:
        announce("warning", {"message": too_little})
        progress.note(f"Warning: {too_little}")


def _changed_data(setup: Setup, checkpoint: Checkpoint | None) -> list[str]:
    """Return a warning where a resumed run's data are not those it was trained on."""
    if checkpoint is None or not isinstance(setup.data, RecognisedData):
        return []
    now = setup.data.fingerprint()
    changed = [name for name, was in checkpoint.fingerprint.items() if now.get(name) != was]
    if not changed:
        return []
    text = (
        f"{setup.options.data} has changed since this run was saved: {', '.join(changed)}. What "
        "follows is trained and evaluated on other data than what came before; for a run of its "
        "own, start with --weights."
    )
    return [text]


def _batch_in_words(setup: Setup) -> str:
    """Return what a step will be, and what follows from its images."""
    size, steps = setup.ranks.size, setup.accumulation_steps
    each = "" if size == 1 else f" on each of {size} devices"
    images, meant = setup.images_a_step, setup.effective_batch_size
    wish = "" if images == meant else f", {meant:g} asked for"
    return (
        f"{setup.micro_batch_size} at once{each} x {steps} = {images} a step (nominal "
        f"{setup.workload.nominal_batch_size}{wish}), weight decay "
        f"{setup.step.numbers.weight_decay:.3g}, learning rate {setup.recipe.lr0:g}"
    )


def _count_steps(steps: int) -> str:
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _steps_warning(setup: Setup) -> list[str]:
    """Return a warning where an epoch's steps are too few to learn much from."""
    steps, images = setup.steps_an_epoch, setup.data.num_training_images
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
    schedule = setup.schedule(setup.micro_batch_size)
    total = setup.options.epochs * schedule.batches_per_epoch
    if not 0 < total <= schedule.warmup_iterations:
        return []
    lasts = f"Warm-up lasts {schedule.warmup_iterations} micro-batches and this run has {total}"
    way_out = "Train for more --epochs, or use a --hyp with warmup_epochs: 0."
    return [f"{lasts}, so it will hardly learn. {way_out}"]
