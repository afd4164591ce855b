"""Out of memory, told apart from other errors, and what it takes to repeat a step smaller."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from memplan.errors import BadInputError, DeviceOutOfMemoryError, is_out_of_memory
from memplan.training.random_states import capture_random_states, restore_random_states
from memplan.workload import Batch

_T = TypeVar("_T")


@dataclass(frozen=True)
class OutOfMemory:
    """A piece of work that found no room; holds no tensor."""

    message: str
    """The first line of what was reported."""
    is_too_small: bool = False
    """Whether a part was too small to be run, as batch norm has it of a single value."""


def attempt(work: Callable[[], _T]) -> _T | OutOfMemory:
    """Return what the work returns, or `OutOfMemory` where it found no room.

    The exception, which keeps the failed pass's tensors alive, is gone by then; cached memory is
    given back to the device.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        refusal = OutOfMemory(first_line(error))
    make_room()
    return refusal


def make_room() -> None:
    """Give back what nothing refers to any more, and cached memory to the device."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with contextlib.suppress(RuntimeError):  # what the device itself is out of order with
            torch.cuda.empty_cache()


def persist(work: Callable[[], _T]) -> _T | OutOfMemory:
    """Return what work that leaves no trace when it fails returns, tried again after making room.

    For work that a smaller micro-batch would not help, such as reading data or saving.
    """
    answer = attempt(work)
    for _ in range(_MORE_TRIES):
        if not isinstance(answer, OutOfMemory):
            break
        answer = attempt(work)
    return answer


_MORE_TRIES = 2


def persisted(work: Callable[[], _T], what: str, way_out: str) -> _T:
    """Return what `persist` does.

    Args:
        work: that a smaller micro-batch would not help.
        what: finds no room, the beginning of a sentence.
        way_out: a sentence.

    Raises:
        NoRoomError: it found none at any try.
    """
    found = persist(work)
    if isinstance(found, OutOfMemory):
        raise NoRoomError(f"{what} ({found.message}). {way_out}")
    return found


def first_line(error: BaseException) -> str:
    """Return what an error says first; its class where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def num_samples(batch: Batch) -> int:
    """Return how many training images a batch is made of: four to an image with `--quad`."""
    each = batch.get("images_each")
    return num_images(batch) if each is None else int(each.sum())


def num_images(batch: Batch) -> int:
    """Return how many images a batch holds."""
    return next(iter(batch.values())).shape[0]


def split(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Return the same images in the same order as batches of at most `size`."""
    return [
        {name: tensor[start : start + size] for name, tensor in batch.items()}
        for batch in batches
        for start in range(0, num_images(batch), size)
    ]


def evenly(batch: Batch, size: int) -> list[Batch]:
    """Return a batch's images in order as batches of at most `size`, none much smaller than others.

    A single image that was left over might be one that batch norm refuses.
    """
    rows = num_images(batch)
    count = -(-rows // size)
    ends = [-(-rows * place // count) for place in range(count + 1)]
    return [
        {name: tensor[start:end] for name, tensor in batch.items()}
        for start, end in itertools.pairwise(ends)
    ]


class BufferSnapshot:
    """Remembers a model's buffers (batch-norm statistics) as they were before a step.

    A step that is repeated would otherwise move the statistics twice for some images. Costs one
    copy of the buffers, well under a MiB, on the model's device, or on the host where that has no
    room.

    Args:
        model: on its device.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = list(model.buffers())
        copies = persist(lambda: [buffer.detach().clone() for buffer in self._buffers])
        if isinstance(copies, OutOfMemory):
            copies = [buffer.detach().to("cpu", copy=True) for buffer in self._buffers]
        self._copies = copies

    @torch.no_grad()
    def take(self) -> None:
        """Remember the present values."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the remembered values back."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)


class StepStart:
    """Remembers what a step changes before its update: buffers and random states.

    A step that is repeated draws the same numbers again, as for dropout.

    Args:
        model: on its device.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = BufferSnapshot(model)
        self._states: dict[str, Any] = {}

    def take(self) -> None:
        """Remember the present values."""
        self._buffers.take()
        self._states = capture_random_states()

    def restore(self) -> None:
        """Put the remembered values back."""
        self._buffers.restore()
        if self._states:
            restore_random_states(self._states)


class DataLostError(BadInputError):
    """Training images cannot be read any more; the state is that of the last finished step."""


class NoRoomError(DeviceOutOfMemoryError):
    """Memory ran out where nothing that the run may do makes room; the state is a whole one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 0)
