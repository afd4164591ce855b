"""The positions of nonzero elements, as `nonzero` and masks as indices look for them.

Source: `nonzero_cuda_out_impl` in aten/src/ATen/native/cuda/Nonzero.cu, PyTorch 2.11; CUB 3.0's
`DeviceReduce::Sum` and `DeviceSelect::Flagged` (cub/device/dispatch/tuning/tuning_select_if.cuh).
Held against PyTorch's own host code on phantom cards of all architectures.

Limits: 2^31 elements and more, which PyTorch takes in portions, are counted as one.
"""

from __future__ import annotations

from typing import ClassVar

from memplan.launches.launch import (
    CUB_SUBSCRIPTION,
    Launch,
    Processors,
    look_back_bytes,
    together,
)

# The sum: blocks of so many threads, so many items each; up to one block's, no scratch to speak of.
_SUM_THREADS = 256
_SUM_TILE = _SUM_THREADS * 16
# The selection: items a thread block, by the compute capability from which on they hold.
_SELECTION_TILES = {
    (10, 0): 320 * 22,
    (9, 0): 384 * 22,
    (8, 6): 128 * 10,
    (8, 0): 384 * 12,
    (0, 0): 128 * 10,
}


class Nonzero(Launch, frozen=True, kw_only=True, tag="nonzero"):
    """Elements of which the nonzero ones are counted, and their positions selected."""

    BUFFERS: ClassVar = ("nonzero_sum", "nonzero_selection")
    VARYING: ClassVar = ("elements",)

    elements: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of the sum's partial results and of the selection's states."""
        partial = 4 * CUB_SUBSCRIPTION * card.resident_blocks(_SUM_THREADS)
        return (
            1 if self.elements <= _SUM_TILE else together(partial),
            together(look_back_bytes(self.elements, card.since(_SELECTION_TILES))),
        )
