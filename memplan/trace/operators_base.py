"""What a rule may ask of the allocator, the table of rules, and the sizes they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memplan.convolution import ConvolutionProblem
from memplan.launches import AnyLaunch

aten = torch.ops.aten


@dataclass(frozen=True)
class Output:
    """The operator's output at this position is allocated, if it has memory of its own.

    Attributes:
        index: of the output.
        num_bytes: of its memory, where that is more than its elements take.
    """

    index: int
    num_bytes: int | None = None


@dataclass(frozen=True)
class Temporary:
    """Bytes held until the operator returns, or until a `Release` before that."""

    num_bytes: int


@dataclass(frozen=True)
class Release:
    """Temporaries go back before the operator returns.

    Attributes:
        count: how many.
        keep: how many younger ones stay.
    """

    count: int = 1
    keep: int = 0


@dataclass(frozen=True)
class Scratch:
    """A launch's buffer, held as a `Temporary`; its size is the card's to say."""

    launch: AnyLaunch
    buffer: str
    """One of the launch's `BUFFERS`. Buffers of one launch share the object."""


@dataclass(frozen=True)
class Workspace:
    """The convolution library's scratch, allocated and freed at once."""

    convolution: ConvolutionProblem


@dataclass(frozen=True)
class MatrixWorkspace:
    """The matrix library's workspace, allocated once a thread and kept."""


@dataclass(frozen=True)
class LightMatrixWorkspace:
    """The workspace of the matrix library's light interface (cuBLASLt), once a thread and kept."""


Request = (
    Output | Temporary | Scratch | Release | Workspace | MatrixWorkspace | LightMatrixWorkspace
)
Rule = Callable[[Sequence[Any], Sequence[Any]], Iterator[Request]]

RULES: dict[str, Rule] = {}
OUTPUTS_ONLY: set[str] = set()
# Operators that begin with an output of nothing and let another function give it its memory.
GROWING = frozenset(
    f"aten::{name}"
    for name in (
        "abs", "arange", "arange.start", "arange.start_step", "eye", "eye.m",
        "embedding", "index_select", "masked_select", "where.self", "logsumexp",
        "var.correction", "std.correction", "var_mean.correction", "kthvalue", "median.dim",
        "soft_margin_loss", "multi_margin_loss", "nll_loss2d_forward", "glu_backward",
        "_adaptive_avg_pool2d", "reflection_pad2d",
    )
)  # fmt: skip


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name, such as `aten::sum.dim_IntList`.

    A name without an overload stands for the one without a name (`default`).
    """

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


def only_outputs(*names: str) -> None:
    """Register operators whose device kernels allocate their outputs, in order, and no more."""
    OUTPUTS_ONLY.update(names)


def all_outputs(outputs: Sequence[Any]) -> Iterator[Request]:
    """Yield every output in order."""
    return (Output(index) for index in range(len(outputs)))


def held(num_bytes: int) -> Iterator[Request]:
    """Yield a temporary of so many bytes; nothing for none, as the allocator does."""
    if num_bytes:
        yield Temporary(num_bytes)


def grown(item_bytes: int) -> Iterator[Request]:
    """Yield what an output asks that grows from nothing, once it has its memory.

    Deterministic algorithms fill the new memory, through a tensor that is made of one element.

    Source: `fill_resize_deterministic_` in aten/src/ATen/native/TensorFactories.h, PyTorch 2.11.
    """
    is_filled: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if is_filled and torch.are_deterministic_algorithms_enabled():
        yield Temporary(item_bytes)
        yield Release()


def balance(request: Request) -> int:
    """Return by how much a request changes the number of temporaries held."""
    if isinstance(request, Temporary | Scratch):
        return 1
    return -request.count if isinstance(request, Release) else 0


# The card that launch configurations are worked out for where they depend on one: an A100. The
# buffers concerned are small (at most a few MiB) and grow with the number of multiprocessors.
MULTIPROCESSORS = 108
THREADS_PER_MULTIPROCESSOR = 2048
MAX_INT32 = 2**31 - 1

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def last_power_of_two(number: int) -> int:
    """Return the greatest power of two that is not above `number`, at least 1."""
    return 1 << max(number.bit_length() - 1, 0)


def copy_bytes(tensor: torch.Tensor, layout: torch.memory_format = torch.contiguous_format) -> int:
    """Return the bytes of `tensor.contiguous(layout)`, 0 when it is so already.

    A channels-last layout is for tensors of its rank; others are made plainly contiguous.
    """
    if layout is not torch.contiguous_format and _CHANNELS_LAST.get(tensor.dim()) is not layout:
        layout = torch.contiguous_format
    return 0 if tensor.is_contiguous(memory_format=layout) else tensor.nbytes


def strides_of_layout(shape: Sequence[int], layout: torch.memory_format) -> list[int]:
    """Return the strides of an empty tensor of this shape and layout."""
    rank = len(shape)
    order = list(range(rank))[::-1]
    if _CHANNELS_LAST.get(rank) is layout:
        order = [1, *range(rank - 1, 1, -1), 0]
    strides, step = [0] * rank, 1
    for dim in order:
        strides[dim] = step
        step *= max(shape[dim], 1)
    return strides


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that these broadcast to."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def suggested_layout(tensor: torch.Tensor) -> torch.memory_format:
    """Return the layout PyTorch reads off a tensor's strides: channels-last, else contiguous.

    Source: c10/core/MemoryFormat.h `is_channels_last_strides_*` through
    `TensorImpl::is_strides_like_channels_last`, PyTorch 2.11.
    """
    layout = _CHANNELS_LAST.get(tensor.dim())
    if layout is None or not _strides_like_channels_last(tensor):
        return torch.contiguous_format
    return layout


def _strides_like_channels_last(tensor: torch.Tensor) -> bool:
    rank = tensor.dim()
    smallest = 0
    if tensor.stride(1) == 0:
        return False
    for position in (1, *range(rank - 1, 1, -1), 0):
        size, stride = tensor.shape[position], tensor.stride(position)
        if size == 0 or stride < smallest:
            return False
        # A 1 x 1 image of one channel is not called channels-last.
        if position == 0 and smallest == tensor.stride(1):
            return False
        smallest = stride * size if size > 1 else stride
    return True


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements fill one stretch of memory, each once."""
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    pairs = sorted((stride, size) for stride, size in steps if size != 1)
    expected = 1
    for stride, size in pairs:
        if size == 0:
            return True
        if stride != expected:
            return False
        expected *= size
    return True


def is_here(tensor: Any) -> bool:
    """Return whether this is a tensor of the recorded device, fake or real."""
    if not isinstance(tensor, torch.Tensor):
        return False
    place = getattr(tensor, "fake_device", None) or tensor.device
    return bool(place.type == "cuda")
