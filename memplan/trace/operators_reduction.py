"""Reductions: casts of the input, and the buffers of partial results across thread blocks.

Source: aten/src/ATen/TensorIterator.cpp (`reorder_dimensions`, `coalesce_dimensions`) and
aten/src/ATen/native/ReduceOps.cpp, ReduceOpsUtils.h, PyTorch 2.11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memplan.launches.reduction import Reduction
from memplan.trace.operators_base import (
    Output,
    Release,
    Request,
    Scratch,
    Temporary,
    all_outputs,
    copy_bytes,
    grown,
    held,
    rule,
    strides_of_layout,
)

_LOW = (torch.float16, torch.bfloat16)


@dataclass
class _Axes:
    """The dimensions a kernel walks, innermost first: sizes, input strides, and which are reduced.

    Strides count elements.
    """

    sizes: list[int]
    strides: list[int]
    reduced: list[bool]


def _comes_later(axes: _Axes, inner: int, outer: int) -> int:
    """Return 1 when the dimensions must swap, -1 when they must not, 0 when it does not matter."""
    if axes.reduced[inner] != axes.reduced[outer]:
        return 1 if axes.reduced[outer] else -1
    first, second = axes.strides[inner], axes.strides[outer]
    if 0 in (first, second):
        return 0
    if first != second:
        return 1 if first > second else -1
    return 1 if axes.sizes[inner] > axes.sizes[outer] else 0


def _ordered(axes: _Axes) -> _Axes:
    """Return the dimensions with the reduced ones first, each group by growing stride."""
    order = list(range(len(axes.sizes)))[::-1]
    for start in range(1, len(order)):
        place = start
        for before in range(start - 1, -1, -1):
            verdict = _comes_later(axes, order[before], order[place])
            if verdict > 0:
                order[before], order[place] = order[place], order[before]
                place = before
            elif verdict < 0:
                break
    return _Axes(
        [axes.sizes[i] for i in order],
        [axes.strides[i] for i in order],
        [axes.reduced[i] for i in order],
    )


def _coalesced(axes: _Axes) -> _Axes:
    """Return the dimensions with those merged that lie end to end in memory."""
    merged = _Axes([], [], [])
    for size, stride, reduced in zip(axes.sizes, axes.strides, axes.reduced, strict=True):
        if merged.sizes and _merges(merged, size, stride, reduced=reduced):
            if merged.sizes[-1] == 1:
                merged.strides[-1], merged.reduced[-1] = stride, reduced
            merged.sizes[-1] *= size
            continue
        merged.sizes.append(size)
        merged.strides.append(stride)
        merged.reduced.append(reduced)
    return merged


def _merges(axes: _Axes, size: int, stride: int, *, reduced: bool) -> bool:
    if size == 1 or axes.sizes[-1] == 1:
        return True
    return axes.reduced[-1] == reduced and axes.sizes[-1] * axes.strides[-1] == stride


def _axes(tensor: torch.Tensor, dims: Sequence[int], layout: torch.memory_format | None) -> _Axes:
    rank = tensor.dim()
    chosen = {dim % rank for dim in dims} if rank else set()
    strides = list(tensor.stride())
    if layout is not None and copy_bytes(tensor, layout):
        strides = strides_of_layout(tensor.shape, layout)  # the kernel reads the copy
    reduced = [dim in chosen for dim in range(rank)]
    return _coalesced(_ordered(_Axes(list(tensor.shape), strides, reduced)))


def reduction_scratch(
    tensor: torch.Tensor,
    dims: Sequence[int],
    *,
    element_bytes: int,
    layout: torch.memory_format | None = None,
) -> Iterator[Request]:
    """Yield the buffer of partial results and the semaphores of a reduction; a card may want none.

    Args:
        tensor: the input.
        dims: those reduced; empty means all.
        element_bytes: of one partial result.
        layout: the input has been copied to before, where it was not so; None reads it as it is.
    """
    if tensor.numel() == 0:
        return
    axes = _axes(tensor, list(dims) or list(range(tensor.dim())), layout)
    reduction = Reduction(
        sizes=tuple(axes.sizes),
        strides=tuple(axes.strides),
        reduced=tuple(axes.reduced),
        offset=int(tensor.storage_offset()),
        element_bytes=element_bytes,
    )
    for buffer in Reduction.BUFFERS:
        yield Scratch(reduction, buffer)


def _accumulator_bytes(dtype: torch.dtype) -> int:
    """Return the bytes of the type a CUDA kernel accumulates in."""
    return 4 if dtype in _LOW else dtype.itemsize


def _dims(argument: Any) -> list[int]:
    if argument is None:
        return []
    return [argument] if isinstance(argument, int) else list(argument)


def reduction_with_cast(
    tensor: torch.Tensor, dims: Sequence[int], dtype: torch.dtype
) -> Iterator[Request]:
    """Yield the cast and the partial results of a sum, a mean or a norm into `dtype`.

    Half precision is read as it is when the result is float32; any other type is copied first.

    Source: `make_reduction` in aten/src/ATen/native/ReduceOpsUtils.h, PyTorch 2.11.
    """
    if tensor.dtype is not dtype and not (tensor.dtype in _LOW and dtype is torch.float32):
        yield from held(tensor.numel() * dtype.itemsize)
    yield from reduction_scratch(tensor, dims, element_bytes=_accumulator_bytes(dtype))


@rule("aten::sum", "aten::mean", "aten::prod", "aten::norm.Scalar")
def _full_reduction(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output, then cast and partial results.

    Source: aten/src/ATen/native/ReduceOps.cpp, PyTorch 2.11.
    """
    yield Output(0)
    yield from reduction_with_cast(args[0], [], outputs[0].dtype)


@rule("aten::sum.dim_IntList", "aten::mean.dim", "aten::prod.dim_int")
def _reduction(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output, then cast and partial results.

    Source: aten/src/ATen/native/ReduceOps.cpp, PyTorch 2.11.
    """
    yield Output(0)
    yield from reduction_with_cast(args[0], _dims(args[1]), outputs[0].dtype)


@rule("aten::linalg_vector_norm", "aten::norm.ScalarOpt_dim")
def _norm(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output, then cast and partial results.

    Source: aten/src/ATen/native/LinearAlgebra.cpp, cuda/ReduceNormKernel.cu, PyTorch 2.11.
    """
    yield Output(0)
    yield from reduction_with_cast(args[0], _dims(args[2]), outputs[0].dtype)


@rule("aten::count_nonzero.dim_IntList", "aten::count_nonzero")
def _count(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A mask, then its sum.

    Source: `count_nonzero_cuda` in aten/src/ATen/native/TensorAdvancedIndexing.cpp, PyTorch 2.11.
    """
    mask = torch.empty_like(args[0], dtype=torch.bool, device="meta")
    yield Temporary(mask.nbytes)
    yield Output(0)
    yield from reduction_with_cast(mask, _dims(args[1]), outputs[0].dtype)


@rule("aten::logsumexp")
def _log_sum(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The maxima and whether they are finite, the exponentials, the output as their sum.

    Source: `logsumexp_out_impl` in aten/src/ATen/native/ReduceOps.cpp, PyTorch 2.11.
    """
    tensor, dims = args[0], _dims(args[1])
    yield Temporary(outputs[0].nbytes)
    scratch = list(reduction_scratch(tensor, dims, element_bytes=tensor.element_size()))
    yield from scratch
    yield Release(len(scratch))
    yield Temporary(outputs[0].nbytes)
    yield from grown(outputs[0].element_size())
    yield Temporary(outputs[0].numel())
    yield Release(2)
    yield Temporary(tensor.nbytes)
    yield Output(0)
    yield from reduction_with_cast(tensor, dims, outputs[0].dtype)


@rule(
    "aten::amax",
    "aten::amin",
    "aten::any.dim",
    "aten::any.dims",
    "aten::all.dim",
    "aten::all.dims",
    "aten::any",
    "aten::all",
)
def _extreme(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output, then partial results in the type of the values.

    Source: aten/src/ATen/native/ReduceOps.cpp (`get_allany_iter` casts nothing on CUDA) and
    cuda/ReduceMaxValuesKernel.cu, ReduceLogicKernel.cu, PyTorch 2.11.
    """
    del outputs
    dims = _dims(args[1]) if len(args) > 1 else []
    yield Output(0)
    yield from reduction_scratch(args[0], dims, element_bytes=args[0].dtype.itemsize)


@rule("aten::max", "aten::min")
def _full_extreme(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output, a contiguous copy, then partial results.

    Source: aten/src/ATen/native/ReduceAllOps.cpp, PyTorch 2.11.
    """
    yield Output(0)
    yield from held(copy_bytes(args[0]))
    yield from reduction_scratch(
        args[0],
        [],
        element_bytes=outputs[0].dtype.itemsize,
        layout=torch.contiguous_format,
    )


# A value and its position, aligned to eight bytes.
_PAIR_BYTES = 16
# Mean, sum of squares, count as integer and as float: `WelfordData<float, int>`.
_WELFORD_BYTES = 16


@rule("aten::argmax", "aten::argmin")
def _arg_extreme(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output; without a dimension a flat copy; then partial pairs of value and position.

    Source: `argmax_argmin_impl` in aten/src/ATen/native/ReduceOps.cpp, PyTorch 2.11.
    """
    del outputs
    tensor, dim = args[0], args[1]
    yield Output(0)
    layout = None
    if dim is None:
        yield from held(copy_bytes(tensor))
        layout = torch.contiguous_format
    elif tensor.dim() and tensor.shape[dim] == 1:
        return
    yield from reduction_scratch(tensor, _dims(dim), element_bytes=_PAIR_BYTES, layout=layout)


@rule("aten::max.dim", "aten::min.dim")
def _extreme_with_place(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Both outputs, then partial pairs of value and position.

    Source: aten/src/ATen/native/TensorCompare.cpp, cuda/TensorCompare.cpp, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from reduction_scratch(args[0], _dims(args[1]), element_bytes=_PAIR_BYTES)


@rule("aten::aminmax")
def _both_extremes(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Both outputs, then partial pairs of values.

    Source: aten/src/ATen/native/TensorCompare.cpp and cuda/ReduceMinMaxKernel.cu, PyTorch 2.11.
    """
    tensor, dim = args[0], args[1]
    yield from all_outputs(outputs)
    yield from reduction_scratch(tensor, _dims(dim), element_bytes=2 * tensor.element_size())


@rule("aten::var.correction", "aten::std.correction", "aten::var_mean.correction")
def _variance(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Outputs, then partial moments.

    Source: aten/src/ATen/native/ReduceOps.cpp, cuda/ReduceMomentKernel.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from reduction_scratch(args[0], _dims(args[1]), element_bytes=_WELFORD_BYTES)
