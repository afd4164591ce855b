"""Selecting by masks, and what is left of equal elements: positions, scratch, outputs with room.

Source: aten/src/ATen/native/cuda/Nonzero.cu, IndexKernel.cpp, Unique.cu and UniqueCub.cu,
PyTorch 2.11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.launches.launch import look_back_bytes, together
from memplan.launches.nonzero import Nonzero
from memplan.launches.unique import Numbering, Unique
from memplan.trace.operators_base import (
    Output,
    Release,
    Request,
    Scratch,
    Temporary,
    all_outputs,
    broadcast,
    copy_bytes,
    grown,
    held,
    rule,
)
from memplan.trace.operators_sorting import radix_sort


@rule("aten::nonzero")
def _nonzero(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A contiguous copy, the count, the output and the scratch of the selection.

    Source: `nonzero_cuda_out_impl` in aten/src/ATen/native/cuda/Nonzero.cu, PyTorch 2.11.
    """
    return _positions(args[0], outputs[0].shape[0], Output(0))


def _positions(mask: torch.Tensor, rows: int, found: Output | Temporary) -> Iterator[Request]:
    """Yield what `nonzero` asks for: all goes back but the so many rows that it found."""
    launch = Nonzero(elements=mask.numel())
    copied = copy_bytes(mask)
    keep = int(isinstance(found, Temporary))
    yield from held(copied)
    yield Temporary(4)
    yield Scratch(launch, "nonzero_sum")
    yield Release()
    yield found
    if rows:
        yield from grown(8)
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
    return _positions(mask, rows, Temporary(8 * rows * max(1, mask.dim())))


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


# Elements a tile of counting those that are alike; each tile keeps 16 bytes.
_COUNTED_TILE = 128 * 6


def _numbered(tensor: torch.Tensor) -> Iterator[Request]:
    """Yield what numbers the elements, and goes with the places that they begin at."""
    yield Scratch(Numbering(elements=tensor.numel()), "numbering")
    yield Release(2)


def _chosen(tensor: torch.Tensor, wants_counts: bool) -> Iterator[Request]:
    """Yield the unique elements and how many there are, with counts where they are wanted."""
    count = tensor.numel()
    yield Output(0, tensor.nbytes)
    yield Temporary(8)
    if wants_counts:
        yield Output(2, 8 * count)
        yield from grown(8)
        yield Temporary(together(look_back_bytes(count, _COUNTED_TILE)))
    else:
        yield Scratch(Unique(elements=count, element_bytes=tensor.element_size()), "unique_choice")


@rule("aten::_unique2")
def _unique(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A sorted copy, the inverse through a prefix sum, the unique elements and their counts.

    Outputs are made for as many elements as there are, and keep that memory.

    Source: `unique_cuda_template` in aten/src/ATen/native/cuda/UniqueCub.cu, PyTorch 2.11.
    """
    tensor, _, wants_inverse, wants_counts = args[:4]
    count = tensor.numel()
    if not count:
        yield from all_outputs(outputs)
        return
    yield from held(copy_bytes(tensor))
    yield Temporary(tensor.nbytes)
    if wants_inverse:
        yield Temporary(8 * count)
        yield from grown(8)
        yield Temporary(8 * count)
    yield from radix_sort(count, tensor.element_size(), 8 * bool(wants_inverse))
    yield Release()
    if wants_inverse:
        yield Release(1, keep=1)
        yield Temporary(8 * count)
        yield Output(1)
        yield from _numbered(tensor)
    yield from _chosen(tensor, wants_counts)


@rule("aten::unique_consecutive")
def _unique_consecutive(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The inverse through a prefix sum, the unique elements and their counts, nothing sorted.

    Source: `unique_cuda_template` in aten/src/ATen/native/cuda/UniqueCub.cu, PyTorch 2.11.
    """
    tensor, wants_inverse, wants_counts = args[:3]
    count = tensor.numel()
    if not count:
        yield from all_outputs(outputs)
        return
    yield from held(copy_bytes(tensor))
    if wants_inverse:
        yield Output(1)
        yield Temporary(4 * count)
        yield from _numbered(tensor)
    yield from _chosen(tensor, wants_counts)
