"""Sorting, selecting, scanning: the scratch of CUB and the copies around it.

Source: CUB 3.0 (in CUDA 13.0) under cub/device/dispatch, and aten/src/ATen/native/cuda/Sort.cpp,
SortStable.cu, TensorTopK.cu, ScanKernels.cpp, PyTorch 2.11.

Limits: tile sizes of sorts are those CUB has for compute capability 8.0; keys of two bytes are
taken to be sorted as those of four are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.launch import ceil_div
from memplan.nonzero import Nonzero
from memplan.topk import TopK
from memplan.trace.operators_base import (
    Output,
    Release,
    Request,
    Scratch,
    Temporary,
    all_outputs,
    broadcast,
    copy_bytes,
    held,
    is_dense,
    rule,
)

_RADIX_DIGITS = 256
_OFFSET_BYTES = 8  # PyTorch counts in int64, so CUB does
_ALIGNMENT = 256


def _together(*sizes: int) -> int:
    """Return the bytes of several buffers in one allocation.

    Source: `AliasTemporaries` in cub/util_temporary_storage.cuh.
    """
    return sum(ceil_div(size, _ALIGNMENT) * _ALIGNMENT for size in sizes) + _ALIGNMENT - 1


def radix_sort_bytes(count: int, key_bytes: int, value_bytes: int, bits: int | None = None) -> int:
    """Return the scratch of one radix sort of so many pairs, keys and values kept apart.

    Args:
        count: of items, >= 1.
        key_bytes: of one key.
        value_bytes: of one value, 0 for keys alone.
        bits: of the keys that are compared; None takes all.

    Source: `DispatchRadixSort::InvokeOnesweep`, cub/device/dispatch/dispatch_radix_sort.cuh, and
    `Policy800` in tuning/tuning_radix_sort.cuh.
    """
    largest = max(4, key_bytes, value_bytes)
    if count <= 256 * max(1, 19 * 4 // largest):
        return 1
    items = 17 if key_bytes == 4 and value_bytes else 21
    tile = 384 * max(1, items * 4 // largest)
    passes = ceil_div(bits if bits is not None else 8 * key_bytes, 8)
    portion = ((1 << 28) - 1) // tile * tile
    portions = ceil_div(count, portion)
    again = passes > 1
    return _together(
        portions * passes * _RADIX_DIGITS * _OFFSET_BYTES,
        ceil_div(min(count, portion), tile) * _RADIX_DIGITS * 4,
        count * key_bytes if again else 0,
        count * value_bytes if again else 0,
        portions * passes * 4,
    )


def scan_bytes(count: int, item_bytes: int) -> int:
    """Return the scratch of one prefix sum.

    Source: `ScanTileState::AllocationSize`, cub/agent/single_pass_scan_operators.cuh; a tile is 128
    threads of 15 four-byte items.
    """
    tiles = ceil_div(count, 128 * max(1, 15 * 4 // max(4, item_bytes)))
    return _together((tiles + 32) * 2 * max(4, item_bytes))


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
            yield Temporary(radix_sort_bytes(row, key_bytes, 8))
            yield Release()
    elif rows < 128:
        yield Temporary(8 * count)
        yield Temporary(8 * count)
        yield Temporary(key_bytes * count)
        yield Temporary(radix_sort_bytes(count, key_bytes, 8))
        yield Release(2)
        yield Temporary(radix_sort_bytes(count, 8, 0, max(1, (rows - 1).bit_length())))
    else:
        yield Temporary(8 * count)
        # Segments are sorted one by one through a second pair of buffers.
        yield Temporary(_together(key_bytes * count, 8 * count))


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
        yield from sort_scratch(values, dim)
        yield Temporary(8 * values.numel())


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
        yield Temporary(scan_bytes(tensor.numel(), dtype.itemsize))


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
    # Keys have enough bits for a duplicate to be rare: one in ten permutations has any.
    likely = count - (6 * count * count + 1) / (12 * math.log(0.9))
    bits = min(64, math.ceil(math.log2(likely)))
    key_bytes = 4 if bits <= 32 else 8
    yield Temporary(item_bytes * count)
    yield Temporary(key_bytes * count)
    yield Temporary(key_bytes * count)
    yield Temporary(radix_sort_bytes(count, key_bytes, item_bytes, bits))


@rule("aten::nonzero")
def _nonzero(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A contiguous copy, the count, the output and the scratch of the selection.

    Source: `nonzero_cuda_out_impl` in aten/src/ATen/native/cuda/Nonzero.cu, PyTorch 2.11.
    """
    del outputs
    return _positions(args[0], Output(0))


def _positions(mask: torch.Tensor, found: Output | Temporary) -> Iterator[Request]:
    """Yield what `nonzero` asks for: all goes back but what it found."""
    launch = Nonzero(elements=mask.numel())
    copied = copy_bytes(mask)
    keep = int(isinstance(found, Temporary))
    yield from held(copied)
    yield Temporary(4)
    yield Scratch(launch, "nonzero_sum")
    yield Release()
    yield found
    if mask.dim():
        yield Scratch(launch, "nonzero_selection")
        yield Release()
    yield Release(1, keep=keep)
    if copied:
        yield Release(1, keep=keep)


def positions_of_mask(mask: torch.Tensor, rows: int) -> Iterator[Request]:
    """Yield what a mask as an index asks for: its positions are held, a number a dimension.

    Source: `expandTensors` in aten/src/ATen/native/IndexingUtils.h, PyTorch 2.11.
    """
    return _positions(mask, Temporary(8 * rows * max(1, mask.dim())))


@rule("aten::masked_select")
def _masked_select(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The positions that the mask selects, one number a dimension, then the values there.

    Source: `masked_select_out_cuda_impl` in aten/src/ATen/native/cuda/IndexKernel.cpp and
    `expandTensors` in IndexingUtils.h, PyTorch 2.11.
    """
    tensor, mask = args[0], args[1]
    shape = broadcast(tensor.shape, mask.shape)
    yield from positions_of_mask(mask.expand(shape), outputs[0].numel())
    yield Output(0)


@rule("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive")
def _unique(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A contiguous copy and a sorted one, the scratch of the sort, then the outputs.

    Source: aten/src/ATen/native/cuda/Unique.cu, UniqueCub.cu, PyTorch 2.11.

    Limits: the intermediate of inverse indices is counted as one more copy of them.
    """
    tensor = args[0]
    count = tensor.numel()
    yield from held(copy_bytes(tensor))
    if count:
        yield Temporary(tensor.nbytes)
        yield Temporary(radix_sort_bytes(count, tensor.element_size(), 0))
        yield Release()
        if any(isinstance(a, bool) and a for a in args[2:]):
            yield Temporary(8 * count)
    yield from all_outputs(outputs)
