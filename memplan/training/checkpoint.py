"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A file holds tensors and plain containers only, so that `torch.load(weights_only=True)` reads it
too and no file can run code. Files appear whole or not at all: a failed save leaves the previous
one. What is read agrees with the file's checksums: a flipped bit is refused, not trained on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from memplan.errors import BadInputError, is_out_of_memory
from memplan.files import Source, converted, replaced
from memplan.files.structures import NotStructuredError
from memplan.files.torch_files import MOST_BYTES, RefusedError, read_torch_file

LAST, PREVIOUS = "last.pt", "previous.pt"
SCHEMA = "memplan.checkpoint/2"
_READABLE = ("memplan.checkpoint/1", SCHEMA)  # the first saved whole epochs only
Tensors = dict[str, torch.Tensor]


class UnsavedError(BadInputError):
    """A checkpoint cannot be written where it belongs, such as on a full disk."""


class DamagedError(BadInputError):
    """A checkpoint is there and cannot be read."""


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
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Of the data set, as `RecognisedData` gives it; empty where the data tells none."""
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


def state_in_place(module: torch.nn.Module) -> Tensors:
    """Return a module's state as a plain dict of the tensors themselves, wherever they are."""
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


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
    told: list[OSError] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            torch.save({"schema": SCHEMA, **values}, cast("IO[bytes]", _Telling(file, told)))
            if path.name == LAST:
                _keep_previous(path)
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and is_out_of_memory(error):
            raise
        # torch.save says "unexpected pos" where the disk said that it is full.
        reason = told[0].strerror if told else getattr(error, "strerror", None)
        reason = reason or str(error).splitlines()[0]
        kept = " The previous file is kept." if path.exists() else ""
        raise UnsavedError(f"{path} cannot be written: {reason}.{kept}") from None


class _Telling:
    """A file to write that remembers why a write failed, which torch.save does not pass on."""

    def __init__(self, file: IO[bytes], told: list[OSError]) -> None:
        self._file = file
        self._told = told

    def write(self, content: bytes) -> int:
        """Write as the file does."""
        try:
            return self._file.write(content)
        except OSError as error:
            self._told.append(error)
            raise

    def flush(self) -> None:
        """Flush as the file does."""
        try:
            self._file.flush()
        except OSError as error:
            self._told.append(error)
            raise


def _keep_previous(path: Path) -> None:
    """Let the file that is about to be replaced keep a name: no byte of it is copied."""
    if not path.exists():
        return
    previous = path.with_name(PREVIOUS)
    link = path.with_name(f".{PREVIOUS}.partial")
    # Some file systems know no links; the run then has one good file as long as it is not damaged.
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
        link.replace(previous)


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
        raise DamagedError(
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
        error=DamagedError,
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


def load_latest(path: Path) -> tuple[Checkpoint, str]:
    """Return a run's newest good checkpoint, and a sentence where that is not in the file itself.

    Args:
        path: as `find_checkpoint` gives it; beside a damaged `last.pt` the one saved before it is
            taken, else `best.pt`.

    Raises:
        BadInputError: none can be used; the message is of the file that was asked for.
    """
    try:
        return load_checkpoint(path), ""
    except DamagedError as error:
        if path.name != LAST:
            raise
        for name in (PREVIOUS, "best.pt"):
            with contextlib.suppress(BadInputError):
                older = path.with_name(name)
                return load_checkpoint(older), (
                    f"{path} is damaged or cut short, so the run goes on from {older}, which was "
                    f"saved before it. The damaged file is kept as {LAST}.damaged."
                )
        raise error from None


def set_damaged_aside(path: Path) -> None:
    """Give a damaged `last.pt` another name, so that the next save does not keep it for good."""
    try:
        load_checkpoint(path)
    except DamagedError:
        with contextlib.suppress(OSError):
            path.replace(path.with_name(f"{path.name}.damaged"))
