"""Starts trainings, planned first where that is requested, and goes on with interrupted ones."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from memplan.advise.batch_plan import batch_plan
from memplan.advise.train_request import TrainRequest, factory, option_of
from memplan.errors import BadInputError, UsageError
from memplan.registry import SavedName, runs_code
from memplan.training import (
    RunSummary,
    TrainOptions,
    find_checkpoint,
    saved_options,
)
from memplan.training import train as run_training
from memplan.workload import Workload

OnEvent = Callable[[str, Mapping[str, Any]], None]
_GO_WITH_RESUME = frozenset(
    {"resume", "device", "workers", "noplots", "workload", "blocks", "rank_timeout"}
)
_FOLDER = frozenset({"project", "name", "exist_ok"})


def start_training(
    request: TrainRequest, *, on_event: OnEvent | None = None, stream: TextIO | None = None
) -> RunSummary:
    """Return what a requested training came to; the request holds the plan that it followed.

    Args:
        request: what was given.
        on_event: called with each event, by name and facts.
        stream: for progress and warnings; None is standard error.

    Raises:
        MemplanError: something in the request cannot be used.
        StoppedError: Ctrl-C or SIGTERM came; the step under way was finished and saved.
    """
    if request.values["resume"] is not None:
        workload, options = resumed(request)
        return run_training(workload, options, on_event=on_event, stream=stream)
    made, data, options, device = request.opened()
    if request.values["auto_batch"]:
        request.plan = batch_plan(request, made, data, options, device)
    return run_training(
        made, options, plan=request.plan, data=data, on_event=on_event, stream=stream
    )


def resumed(request: TrainRequest) -> tuple[Workload | Callable[..., Workload], TrainOptions]:
    """Return what an interrupted run trains, and its options on this machine.

    Raises:
        BadInputError: there is no checkpoint, or it cannot be used.
        UsageError: an option cannot go with it.
    """
    values, given = request.values, request.given
    _check_resume(given - _GO_WITH_RESUME - _FOLDER)
    path = find_checkpoint(values["resume"])
    own_folder = path.parent.name == "weights"
    if own_folder:
        _check_resume(given & _FOLDER)
    if not own_folder and "name" not in given:
        raise UsageError(
            f"{path} is in no run folder (its weights/last.pt), and a file does not choose "
            "where to write. Give --name, and --project where it is not runs/train."
        )
    saved = saved_options(path)
    options = replace(
        saved,
        resume=path,
        device=values["device"],
        workers=values["workers"],
        rank_timeout=values["rank_timeout"],
        noplots=saved.noplots or values["noplots"],
        blocks=_typed_blocks(values["blocks"], saved.blocks, path),
        **{name: values[name] for name in _FOLDER},
    )
    if request.workload is not None:
        return request.workload, options
    return factory(_resumed_name(values["workload"], saved.cfg, path)), options


def _check_resume(extra: set[str]) -> None:
    """Refuse options that a run which goes on cannot take."""
    if extra:
        raise UsageError(
            f"--resume goes on with the run's own options, so {option_of(min(extra))} cannot be "
            "given with it. Leave it out, or start a new run with --weights."
        )


def _typed_blocks(typed: str | None, saved: str | None, path: Path) -> str | None:
    """Return the module of a run's own blocks as it was typed.

    Raises:
        BadInputError: the run has one and it was not typed: importing it runs it.
    """
    if saved and not typed:
        shown = shlex.quote(saved) if saved.isprintable() else "MODULE"
        raise BadInputError(
            f"{path} was made with --blocks {saved!r}, which runs code of its own, so a file "
            f"cannot choose it. If you trust that code, type it: --blocks {shown}."
        )
    return typed


def _resumed_name(typed: str | None, saved: str, path: Path) -> str | SavedName:
    """Return what to train: as typed where it runs code, else as the file says.

    Raises:
        BadInputError: the file's name must be typed.
        UsageError: another one was typed than the run is of.
    """
    if typed is None:
        return SavedName(saved, str(path))
    if saved and saved != typed and not runs_code(saved):
        raise UsageError(
            f"{path} is of a run of {saved!r}, not of --workload {typed}. Leave that out."
        )
    return typed
