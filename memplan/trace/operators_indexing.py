"""Reading and writing by index: casts and copies of indices, the sort behind accumulation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.trace.operators_base import (
    Output,
    Release,
    Request,
    Temporary,
    all_outputs,
    balance,
    broadcast,
    copy_bytes,
    grown,
    held,
    is_here,
    only_outputs,
    rule,
)
from memplan.trace.operators_reduction import reduction_scratch
from memplan.trace.operators_selection import positions_of_mask
from memplan.trace.operators_sorting import radix_sort, scan_bytes

_MASKS = (torch.bool, torch.uint8)

only_outputs(
    "aten::gather",
    "aten::index_select",
    "aten::masked_fill.Scalar",
    "aten::masked_fill.Tensor",
    "aten::masked_fill_.Scalar",
    "aten::masked_fill_.Tensor",
    "aten::scatter_.value",
    "aten::scatter.value",
    "aten::index_fill_.int_Scalar",
    "aten::select_backward",
    "aten::slice_backward",
    "aten::diagonal_backward",
    "aten::select_scatter",
    "aten::slice_scatter",
    "aten::embedding",
    "aten::tril",
    "aten::triu",
)


def _present(indices: Sequence[Any]) -> list[torch.Tensor]:
    return [index for index in indices if index is not None]


def _expanded_strides(index: torch.Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of the index broadcast to a shape."""
    lead = len(shape) - index.dim()
    own = zip(index.shape, index.stride(), shape[lead:], strict=True)
    return (0,) * lead + tuple(0 if size == 1 and size != wide else s for size, s, wide in own)


def _all_positions(indices: Sequence[torch.Tensor], rows: int) -> list[torch.Tensor]:
    """Return indices with each mask as the `rows` positions that it has, one tensor a dimension."""
    found: list[torch.Tensor] = []
    for index in indices:
        if index.dtype in _MASKS:
            found += [torch.empty(rows, dtype=torch.int64, device="meta")] * max(index.dim(), 1)
        else:
            found.append(index)
    return found


def _long_indices(indices: Sequence[torch.Tensor], rows: int) -> Iterator[Request]:
    """Yield the positions of masks and the 64-bit copies of 32-bit indices.

    Source: `expandTensors` in aten/src/ATen/native/IndexingUtils.h, `make_info` in
    TensorAdvancedIndexing.cpp, PyTorch 2.11.
    """
    for index in indices:
        if index.dtype in _MASKS:
            yield from positions_of_mask(index, rows)
        elif index.dtype is not torch.int64:
            yield Temporary(8 * index.numel())


def _aligned_indices(indices: Sequence[torch.Tensor]) -> Iterator[Request]:
    """Yield contiguous copies of indices that are not all laid out alike.

    Source: `AdvancedIndex::AdvancedIndex` in aten/src/ATen/native/TensorAdvancedIndexing.cpp,
    PyTorch 2.11.
    """
    shape = broadcast(*(index.shape for index in indices))
    if len({_expanded_strides(index, shape) for index in indices}) <= 1:
        return
    for index in indices:
        whole = math.prod(shape) == index.numel() and index.is_contiguous()
        yield from held(0 if whole else 8 * math.prod(shape))


@rule("aten::index.Tensor", "aten::_unsafe_index.Tensor")
def _index(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copies of the indices, then the output.

    Source: aten/src/ATen/native/TensorAdvancedIndexing.cpp, PyTorch 2.11.
    """
    indices = _present(args[1])
    rows = masked_rows(args[0], args[1], outputs[0])
    rows = 1 if rows is None else rows
    yield from _long_indices(indices, rows)
    yield from _aligned_indices(_all_positions(indices, rows))
    yield Output(0)


def masked_rows(
    tensor: torch.Tensor, all_indices: Sequence[Any], values: torch.Tensor
) -> int | None:
    """Return how many positions the masks among indices have, read off what is read or written.

    None where there are no masks, or values that are broadcast leave it open.

    Args:
        tensor: that is indexed.
        all_indices: one a dimension, or a mask for several; None where a dimension is whole.
        values: what is read or written there.
    """
    indices = _present(all_indices)
    if not any(index.dtype in _MASKS for index in indices):
        return None
    plain = [index for index in indices if index.dtype not in _MASKS]
    rows = max((index.shape[-1] for index in plain if index.dim()), default=1)
    if rows != 1:
        return rows
    taken = sum(index.dim() if index.dtype in _MASKS else 1 for index in indices)
    places = [place for place, index in enumerate(all_indices) if index is not None]
    before = 0 if _moves(all_indices) else places[0]
    place = values.dim() - (tensor.dim() - taken - before) - 1
    if place < 0 or values.shape[place] == 1:
        return None
    return values.shape[place]


@rule("aten::index_put")
def _index_put(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A copy of the tensor as the output, then what writing in place asks for.

    Without an output it stands for the write of `index_backward`, whose indices are not checked.

    Source: `index_put` and `index_backward` in
    aten/src/ATen/native/TensorAdvancedIndexing.cpp, PyTorch 2.11.
    """
    yield Output(0)
    is_unsafe = not outputs
    yield from _index_put_in_place((*args[:4], is_unsafe), outputs)


@rule("aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index_put")
def _index_put_in_place(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Nothing but copies of indices; the sort of positions when values are added up.

    Adding up, and any write under `torch.use_deterministic_algorithms`, sorts first. A number of
    the host's is filled in where masks alone say where, and goes to the device first elsewhere.

    Source: `_index_put_impl_` in aten/src/ATen/native/TensorAdvancedIndexing.cpp, PyTorch 2.11.
    """
    del outputs
    tensor, all_indices, values, adds = args[:4]
    indices = _present(all_indices)
    if not is_here(values):
        if not adds and all(index.dtype in _MASKS for index in indices):
            return
        yield Temporary(values.nbytes)
    rows = masked_rows(tensor, all_indices, values)
    rows = 1 if rows is None else rows
    # A single number may have been broadcast by the recorder.
    is_one = values.numel() == 1 or not any(values.stride())
    is_deterministic = torch.are_deterministic_algorithms_enabled() and not is_one
    if adds or is_deterministic:
        is_unsafe = len(args) > 4 and args[4]
        yield from sorted_writes(tensor, all_indices, values, rows, is_checked=not is_unsafe)
        return
    yield from _long_indices(indices, rows)
    yield from _aligned_indices(_all_positions(indices, rows))


def _extents(tensor: torch.Tensor, all_indices: Sequence[Any]) -> tuple[int, int]:
    """Return the elements before and after the indexed dimensions, as they lie when written.

    Dimensions that are not adjacent are moved to the front.
    """
    indexed: list[int] = []
    place = 0
    for index in all_indices:
        width = index.dim() if index is not None and index.dtype in _MASKS else 1
        indexed += range(place, place + width) if index is not None else []
        place += width
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    through = math.prod(tensor.shape[dim] for dim in indexed)
    before = math.prod(tensor.shape[: indexed[0]]) if adjacent else 1
    return before, tensor.numel() // max(before * through, 1)


def _linear_positions(
    positions: Sequence[torch.Tensor], num_bytes: int, is_checked: bool
) -> Iterator[Request]:
    """Yield one 64-bit position an element, worked out index by index.

    Each index is held against its dimension's size, reduced by that and multiplied by its stride.

    Source: `wrapIndexOnce` and `computeLinearIndex` in aten/src/ATen/native/cuda/Indexing.cu,
    PyTorch 2.11.
    """
    for position, index in enumerate(positions):
        for _ in ("greatest", "least") if is_checked else ():
            yield Temporary(8)
            flat = torch.contiguous_format
            made: list[Request] = [*held(copy_bytes(index))]
            made += reduction_scratch(index, [], element_bytes=8, layout=flat)
            yield from made
            yield Release(len(made))
            yield Temporary(1)
            yield Release()
            yield Release()
        yield Temporary(num_bytes)
        yield Temporary(num_bytes)
        yield Release(1, keep=1)
        if position:
            yield Release()


def sorted_writes(
    tensor: torch.Tensor,
    all_indices: Sequence[Any],
    values: torch.Tensor,
    rows: int = 0,
    *,
    is_checked: bool = True,
) -> Iterator[Request]:
    """Yield what writing in the order of positions asks for.

    Args:
        tensor: written to.
        all_indices: one a dimension, None where a dimension is whole.
        values: what is written.
        rows: positions that each mask has.
        is_checked: whether indices are held against the dimensions' sizes.

    Source: `index_put_with_sort_kernel` in aten/src/ATen/native/cuda/Indexing.cu, PyTorch 2.11.
    """
    indices = _present(all_indices)
    yield from held(copy_bytes(tensor))
    made = list(_long_indices(indices, rows))
    yield from made
    positions = _all_positions(indices, rows)
    count = math.prod(broadcast(*(index.shape for index in positions)))
    yield from _linear_positions(positions, 8 * count, is_checked)
    yield Release(sum(map(balance, made)), keep=1)
    before, after = _extents(tensor, all_indices)
    whole = count * before * after
    if values.numel() != whole or not values.is_contiguous():
        yield from held(whole * values.element_size())
    if not whole:
        return
    if before == 1 and _moves(all_indices):
        yield Temporary(tensor.nbytes)
    for _ in ("sorted", "original", "range"):
        yield Temporary(8 * count)
    yield from grown(8)
    largest = (tensor.numel() - 1) // after
    yield from radix_sort(count, 8, 8, largest)


def _moves(all_indices: Sequence[Any]) -> bool:
    """Return whether indexed dimensions stand apart, so that the tensor is laid out anew."""
    places = [place for place, index in enumerate(all_indices) if index is not None]
    return places != list(range(places[0], places[-1] + 1))


@rule(
    "aten::scatter.src",
    "aten::scatter_.src",
    "aten::scatter_add",
    "aten::scatter_add_",
)
def _scatter(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, where there is one; deterministic algorithms write by sorted index instead.

    Source: `scatter_impl`, `scatter_add` and `_scatter_via_index_put` in
    aten/src/ATen/native/TensorAdvancedIndexing.cpp, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    tensor, dim, index, values = args[:4]
    if not torch.are_deterministic_algorithms_enabled() or index.numel() == 0:
        return
    dim %= max(tensor.dim(), 1)
    others = [place for place in range(index.dim()) if place != dim]
    if all(index.stride(place) == 0 for place in others):
        bare = index[tuple(slice(None) if place == dim else 0 for place in range(index.dim()))]
        yield from sorted_writes(tensor, [None] * dim + [bare], values)
        return
    for place in others:
        yield Temporary(8 * index.shape[place])
        yield from grown(8)
    indices = [index if place == dim else _ranged(index, place) for place in range(index.dim())]
    yield from sorted_writes(tensor, indices, values)


def _ranged(index: torch.Tensor, place: int) -> torch.Tensor:
    """Return the numbers along a dimension, as an index of the same shape."""
    numbers = torch.empty(index.shape[place], dtype=torch.int64, device="meta")
    shape = [-1 if place == dim else 1 for dim in range(index.dim())]
    return numbers.view(shape).expand(index.shape)


@rule("aten::index_add", "aten::index_add_", "aten::index_copy", "aten::index_copy_")
def _index_add(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, where there is one; deterministic algorithms write by sorted index.

    What is added is copied first.

    Source: `index_add_cuda_impl` in aten/src/ATen/native/cuda/Indexing.cu and `index_copy` in
    aten/src/ATen/native/TensorAdvancedIndexing.cpp, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    if not torch.are_deterministic_algorithms_enabled():
        return
    tensor, dim, index, values = args[:4]
    if len(args) > 4:
        yield from held(values.nbytes)
    yield from sorted_writes(tensor, [None] * (dim % tensor.dim()) + [index], values)


_ask_pytorch = torch.nn.functional.one_hot


def one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """Return what `torch.nn.functional.one_hot` returns, as a device computes it.

    Stands in for PyTorch's function while recording: tensors without data are compared there.

    Source: `one_hot` in aten/src/ATen/native/Onehot.cpp, PyTorch 2.11.
    """
    if num_classes < 0 or tensor.numel() == 0:
        return _ask_pytorch(tensor, num_classes)
    zeros = tensor.new_zeros((*tensor.shape, num_classes))
    return zeros.scatter_(-1, tensor.unsqueeze(-1), 1)


@rule("aten::embedding_dense_backward")
def _embedding_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A contiguous gradient; up to 3072 indices the output alone, more are sorted first.

    Source: aten/src/ATen/native/cuda/Embedding.cu, PyTorch 2.11.

    Limits: the partial sums of the sorted path are not modelled.
    """
    del outputs
    gradient, indices, rows = args[0], args[1], args[2]
    yield from held(copy_bytes(gradient))
    yield from held(copy_bytes(indices))
    count = indices.numel()
    if count <= 3072:
        yield Output(0)
        return
    width = indices.element_size()
    for _ in ("sorted", "original", "range"):
        yield Temporary(width * count)
    yield from radix_sort(count, width, 8, rows)
    yield Release()
    yield Output(0)


@rule("aten::masked_scatter", "aten::masked_scatter_")
def _masked_scatter(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output, contiguous mask, the positions of its set elements as int64, contiguous source.

    Source: `masked_scatter__cuda` in aten/src/ATen/native/cuda/IndexKernel.cpp and
    `launch_masked_scatter_kernel` in cuda/IndexKernel.cu, PyTorch 2.11.
    """
    del outputs
    tensor, mask, source = args[0], args[1], args[2]
    yield Output(0)
    if mask.shape != tensor.shape or copy_bytes(mask):
        yield Temporary(tensor.numel() * mask.element_size())
    yield Temporary(8 * tensor.numel())
    yield Temporary(scan_bytes(tensor.numel(), 8))
    yield Release()
    yield from held(copy_bytes(source))
