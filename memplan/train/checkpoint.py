"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A file holds tensors and plain containers only, so that `torch.load(weights_only=True)` reads it
too and no file can run code. Files appear whole or not at all: a failed save leaves the previous
one. What is read agrees with the file's checksums: a flipped bit is refused, not trained on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memplan.errors import BadInputError
from memplan.files import Source, converted, replaced
from memplan.files.structures import NotStructuredError
from memplan.files.torch_files import MOST_BYTES, RefusedError, read_torch_file

SCHEMA = "memplan.checkpoint/2"
_READABLE = ("memplan.checkpoint/1", SCHEMA)  # the first saved whole epochs only
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps of the optimizer."""

    epoch: int
    """Epochs done; the next one to train, 0-based."""
    finished: bool
    """Whether the run came to its end, by its epochs or by patience."""
    model: Tensors
    """The trained weights and buffers, in their own precision."""
    ema: Tensors | None
    """The averaged weights and buffers; None where no average is kept."""
    ema_updates: int
    """Steps that the average has followed."""
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    micro_batch_size: int
    """Images in a micro-batch; below the option's after memory ran out."""
    best_fitness: float
    best_epoch: int
    """The epoch of the best fitness, 0-based."""
    best_metrics: dict[str, float]
    metrics: dict[str, float]
    """Of the last evaluation."""
    random_states: dict[str, Any]
    options: dict[str, Any]
    """As `TrainOptions.as_record` gives them."""
    hyperparameters: dict[str, float]
    workload: str
    """The workload's name."""
    num_classes: int
    plan: dict[str, Any] | None
    """The plan the run follows, as JSON values."""
    versions: dict[str, str]
    data: dict[str, Any] = field(default_factory=dict)
    """What the order of images depends on besides seed and epoch; empty in most runs."""
    position: dict[str, Any] | None = None
    """Where the epoch under way stands, as `EpochPosition.as_record` gives it, with the `seconds`
    spent on it; None between epochs."""
    steps: int = 0
    """Steps of the optimizer since the run began."""
    validation_size: int | None = None
    """Images validated at once; None as the workload says."""
    ranks: int = 1
    """Processes that train together."""
    other_random_states: list[dict[str, Any]] = field(default_factory=list)
    """`random_states` of the processes after the first."""


def plain_state(module: torch.nn.Module) -> Tensors:
    """Return a module's state as a plain dict of tensors on the CPU; CPU tensors are not copied."""
    return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


def _plain(value: Any, where: str) -> Any:
    """Return a value made of what `weights_only` reads: a checkpoint must not refuse itself.

    Raises:
        BadInputError: something in it is no tensor, number, text or container of those.
    """
    if value is None or type(value) in {bool, int, float, str, bytes}:
        return value
    if isinstance(value, torch.Tensor):
        # An expanded tensor is refused when read, as one that would make much of little.
        return value.contiguous() if 0 in value.stride() and value.numel() > 1 else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        kept = [_plain(one, f"{where}[{at}]") for at, one in enumerate(value)]
        return kept if isinstance(value, list) else tuple(kept)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise BadInputError(
        f"The checkpoint's {where} is a {type(value).__name__}, which cannot be read again safely. "
        "Give tensors, numbers, text, or lists and dicts of them."
    )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that the file is either the new one or still the previous one.

    Raises:
        BadInputError: the file cannot be written, or could not be read again; the previous one is
            untouched.
    """
    values = {
        field.name: _plain(getattr(checkpoint, field.name), field.name)
        for field in fields(Checkpoint)
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            torch.save({"schema": SCHEMA, **values}, file)
    except (OSError, RuntimeError) as error:
        # torch.save turns a full disk into a RuntimeError of several lines.
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        kept = " The previous file is kept." if path.exists() else ""
        raise BadInputError(f"{path} cannot be written: {reason}.{kept}") from None


def strip_checkpoint(path: Path) -> None:
    """Leave in a finished run's checkpoint what is needed to use its weights.

    The averaged weights, else the trained ones, stay in half precision where it holds them; the
    optimizer and all else that only resuming needs goes, as in the official recipe.

    Raises:
        BadInputError: the file cannot be read or written.
    """
    whole = load_checkpoint(path)
    state = whole.model if whole.ema is None else whole.ema
    nothing: dict[str, Any] = {}
    save_checkpoint(
        path,
        replace(
            whole,
            finished=True,
            model={name: _halved(tensor) for name, tensor in state.items()},
            ema=None,
            optimizer=nothing,
            scaler=nothing,
            random_states=nothing,
            data=nothing,
            position=None,
            other_random_states=[],
        ),
    )


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    """Return a float32 tensor in half precision, unless a value is too large for that."""
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a file, tensors on the CPU.

    Raises:
        BadInputError: the file is missing, damaged, refused as unsafe, or not one of memplan's.
    """
    content = _read(path)
    schema = content.get("schema") if isinstance(content, Mapping) else None
    if schema not in _READABLE:
        raise BadInputError(
            f"{path} is no memplan checkpoint of schema {SCHEMA!r} (found {schema!r}), so it "
            "cannot be resumed. To start from its weights, give it as --weights."
        )
    values = {name: value for name, value in content.items() if name != "schema"}
    try:
        return converted(values, Checkpoint)
    except NotStructuredError as error:
        raise BadInputError(
            f"{path} is no whole checkpoint: {error}. An older good one may be beside it, such as "
            "best.pt."
        ) from None


def _read(path: Path) -> Any:
    source = Source(
        path=path,
        what="a checkpoint",
        way_out="It may be truncated or damaged; an older good one may be beside it, such as "
        "best.pt.",
        most_bytes=MOST_BYTES,
    )
    try:
        return read_torch_file(source)
    except RefusedError:
        raise BadInputError(
            f"{path} is refused: it holds more than tensors and plain values, so reading it might "
            "run code. To start from an official checkpoint's weights, give it as --weights."
        ) from None


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint file that `--resume PATH` means.

    Args:
        path: a file, a run folder, or a folder with run folders below it, whose newest `last.pt`
            is taken; the bare option means the working directory.

    Raises:
        BadInputError: there is none.
    """
    if path.is_file():
        # Where it stands decides where a resumed run writes.
        is_clear = path.parent.name not in {"", ".."}
        return path if is_clear else Path(os.path.abspath(path))  # noqa: PTH100 - without `..`
    if (path / "weights" / "last.pt").is_file():
        return path / "weights" / "last.pt"
    if not path.exists():
        raise BadInputError(f"No checkpoint at {path}. Give a run folder or its weights/last.pt.")
    found = sorted(path.rglob("last.pt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise BadInputError(f"No last.pt below {path}. Give a run folder or its weights/last.pt.")
    return found[-1]


def check_unfinished(checkpoint: Checkpoint, path: Path) -> None:
    """Check that there is something left to train.

    Raises:
        BadInputError: the run is finished; the message says how to train on.
    """
    if checkpoint.finished:
        raise BadInputError(
            f"{path} is of a run that finished after {checkpoint.epoch} epochs. To train on from "
            f"its weights, start a new run with --weights {path}."
        )
