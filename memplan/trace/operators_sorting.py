"""Sorting, selecting, scanning: the scratch of CUB and the copies around it.

Source: CUB 3.0 (in CUDA 13.0) under cub/device/dispatch, and aten/src/ATen/native/cuda/Sort.cpp,
SortStable.cu, TensorTopK.cu, ScanKernels.cpp, PyTorch 2.11.

"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.launches.launch import look_back_bytes, together
from memplan.launches.radix_sort import Permutation, RadixSort
from memplan.launches.scan import DeterministicScan
from memplan.launches.topk import TopK
from memplan.trace.operators_base import (
    Output,
    Release,
    Request,
    Scratch,
    Temporary,
    all_outputs,
    balance,
    copy_bytes,
    grown,
    held,
    is_dense,
    rule,
)


def radix_sort(
    count: int, key_bytes: int, value_bytes: int, greatest_key: int = 0
) -> Iterator[Request]:
    """Yield the scratch of one radix sort, which is held.

    Args:
        count: of items, >= 1.
        key_bytes: of one key.
        value_bytes: of one value, 0 for keys alone.
        greatest_key: above which there is none; 0 compares all bits.
    """
    launch = RadixSort(
        count=count, key_bytes=key_bytes, value_bytes=value_bytes, greatest_key=greatest_key
    )
    yield Scratch(launch, "radix_sort")


# Items a tile of a prefix sum, and bytes that a tile keeps in each buffer, by the bytes of an item.
_SCANS = {
    8: (192 * 7, (24,)),
    4: (256 * 15, (16,)),
    2: (256 * 15, (4, 2, 1, 1)),
    1: (256 * 15, (8,)),
}


def scan_bytes(count: int, item_bytes: int) -> int:
    """Return the scratch of one prefix sum.

    Source: tiles and states as PyTorch's own host code asks for them on phantom cards, alike on all
    architectures.
    """
    tile, states = _SCANS[item_bytes]
    return together(*(look_back_bytes(count, tile, each) for each in states))


# Items a row that are sorted in shared memory.
_SORTED_IN_PLACE = 4096


def _dim(tensor: torch.Tensor, dim: int) -> int:
    return dim % tensor.dim() if tensor.dim() else 0


def sort_scratch(tensor: torch.Tensor, dim: int) -> Iterator[Request]:
    """Yield what a sort asks for beside its two outputs.

    Up to 4096 items a row are sorted in shared memory, in the outputs, after their numbers were
    written there.

    Source: `sort_cuda_kernel` in Sort.cpp, `launch_stable_sort_kernel` in SortStable.cu.
    """
    dim = _dim(tensor, dim)
    row = tensor.shape[dim] if tensor.dim() else 1
    if tensor.numel() == 0:
        return
    if row <= _SORTED_IN_PLACE:
        yield Temporary(8 * row)
        yield from grown(8)
        return
    if not (is_dense(tensor) and tensor.stride(dim) == 1):
        yield Temporary(tensor.nbytes)
        if dim != tensor.dim() - 1:  # the outputs are laid out unlike the copy
            yield Temporary(tensor.nbytes)
            yield Temporary(8 * tensor.numel())
    yield from _sorted_rows(tensor.numel(), row, tensor.element_size())


def _sorted_rows(count: int, row: int, key_bytes: int) -> Iterator[Request]:
    rows = count // row
    if rows == 1 or row >= 1_000_000:
        yield Temporary(8 * row)
        for _ in range(rows):
            yield from radix_sort(row, key_bytes, 8)
            yield Release()
    elif rows < 128:
        yield Temporary(8 * count)
        yield Temporary(8 * count)
        yield Temporary(key_bytes * count)
        yield from radix_sort(count, key_bytes, 8)
        yield Release(2)
        yield from radix_sort(count, 8, 0, rows - 1)
    else:
        yield Temporary(8 * count)
        # Segments are sorted one by one through a second pair of buffers.
        yield Temporary(together(key_bytes * count, 8 * count))


@rule("aten::sort")
def _sort(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Both outputs, then scratch for rows of more than 4096.

    Source: aten/src/ATen/native/cuda/Sort.cpp, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from sort_scratch(args[0], args[1])


@rule("aten::sort.stable")
def _stable_sort(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The same as an unstable sort: large rows are always sorted stably.

    Source: aten/src/ATen/native/cuda/Sort.cpp, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from sort_scratch(args[0], args[2])


def _topk_scratch(rows: int, row: int, element_bytes: int) -> Iterator[Request]:
    """Yield what a `topk` holds while several thread blocks share a row, in its order.

    Source: `mbtopk::launch` in TensorTopK.cu.
    """
    launch = TopK(rows=rows, row=row, element_bytes=element_bytes)
    for buffer in ("found", "sought", "sought", "digit_counts", "digit_sums"):
        yield Scratch(launch, f"topk_{buffer}")
    for _ in range(2):
        yield Scratch(launch, "topk_block_numbers")
    for _ in range(2):
        yield Scratch(launch, "topk_scan")
        yield Release()
    yield Release(7)


@rule("aten::topk")
def _topk(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Both outputs, a contiguous copy, counters where many blocks share a row; the sort in place.

    Source: aten/src/ATen/native/cuda/TensorTopK.cpp and TensorTopK.cu, PyTorch 2.11.
    """
    tensor, k, dim, _, wants_order = args[:5]
    yield from all_outputs(outputs)
    row = tensor.shape[_dim(tensor, dim)] if tensor.dim() else 1
    if k == 0 or tensor.numel() == 0:
        return
    yield from held(copied := copy_bytes(tensor))
    rows = tensor.numel() // row
    yield from _topk_scratch(rows, row, tensor.element_size())
    if copied:
        yield Release()
    if wants_order and k > _SORTED_IN_PLACE:
        values = outputs[0]
        yield Temporary(8 * values.numel())
        yield Temporary(values.nbytes)
        scratch = list(sort_scratch(values, dim))
        yield from scratch
        yield Release(sum(map(balance, scratch)))
        yield Temporary(8 * values.numel())


def _scanned(count: int, dtype: torch.dtype) -> Iterator[Request]:
    """Yield the scratch of the prefix sum of a single row."""
    if dtype.is_floating_point and torch.are_deterministic_algorithms_enabled():
        launch = DeterministicScan(elements=count, element_bytes=dtype.itemsize)
        yield Scratch(launch, "block_sums")
    else:
        yield Temporary(scan_bytes(count, dtype.itemsize))


@rule("aten::cumsum", "aten::cumprod", "aten::cummax", "aten::cummin", "aten::logcumsumexp")
def _scan(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Outputs, a copy in the result's type, a contiguous copy, scratch for a single row.

    Source: `impl_func_cum_ops` in aten/src/ATen/native/ReduceOps.cpp, cuda/ScanKernels.cpp,
    cuda/ScanUtils.cuh, PyTorch 2.11.
    """
    tensor, dim = args[0], args[1]
    yield from all_outputs(outputs)
    if tensor.numel() == 0 or tensor.dim() == 0:
        return
    dtype = outputs[0].dtype
    if tensor.dtype is not dtype:
        yield Temporary(tensor.numel() * dtype.itemsize)
    yield from held(tensor.numel() * dtype.itemsize if copy_bytes(tensor) else 0)
    if len(outputs) == 1 and tensor.numel() == tensor.shape[dim]:
        yield from _scanned(tensor.numel(), dtype)


@rule("aten::randperm")
def _permutation(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, the greatest number alone, then all numbers, sorted by random keys.

    Source: `randperm_out_cuda` in aten/src/ATen/native/cuda/Randperm.cu, PyTorch 2.11.
    """
    count, item_bytes = args[0], outputs[0].element_size()
    yield Output(0)
    yield Temporary(item_bytes)
    yield Release()
    if count == 0:
        return
    launch = Permutation(count=count, item_bytes=item_bytes)
    yield Temporary(item_bytes * count)
    yield from grown(item_bytes)
    for buffer in Permutation.BUFFERS:
        yield Scratch(launch, buffer)
