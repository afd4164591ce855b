"""Out of memory, told apart from other errors, and what it takes to repeat a step smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from memplan.errors import DeviceOutOfMemoryError
from memplan.workload import Batch

_T = TypeVar("_T")
# Libraries under PyTorch, and its CPU allocator, report exhaustion as plain runtime errors.
_MESSAGES = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "DefaultCPUAllocator: not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
)


@dataclass(frozen=True)
class OutOfMemory:
    """A piece of work that found no room; holds no tensor."""

    message: str
    """The first line of what was reported."""


def attempt(work: Callable[[], _T]) -> _T | OutOfMemory:
    """Return what the work returns, or `OutOfMemory` where it found no room.

    The exception, which keeps the failed pass's tensors alive, is gone by then; cached memory is
    given back to the device.
    """
    try:
        return work()
    except (torch.OutOfMemoryError, DeviceOutOfMemoryError) as error:
        refusal = OutOfMemory(_first_line(error))
    except RuntimeError as error:
        if not any(message in str(error) for message in _MESSAGES):
            raise
        refusal = OutOfMemory(_first_line(error))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    return refusal


def _first_line(error: BaseException) -> str:
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


class BufferSnapshot:
    """Remembers a model's buffers (batch-norm statistics) as they were before a step.

    A step that is repeated would otherwise move the statistics twice for some images. Costs one
    copy of the buffers, well under a MiB.

    Args:
        model: on its device.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._copies = [buffer.detach().clone() for buffer in self._buffers]

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
