"""Prefix sums of floating-point numbers under deterministic algorithms.

Source: `inclusive_deterministic_scan` in aten/src/ATen/cuda/cub.cuh, PyTorch 2.11.
"""

from __future__ import annotations

from typing import ClassVar

from memplan.launches.launch import Launch, Processors, ceil_div

_TILE = 512 * 16


class DeterministicScan(Launch, frozen=True, kw_only=True, tag="deterministic_scan"):
    """Numbers that thread blocks add up in a fixed order."""

    BUFFERS: ClassVar = ("block_sums",)
    VARYING: ClassVar = ("elements",)

    elements: int
    element_bytes: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of a sum for each block, at most one a multiprocessor."""
        blocks = min(ceil_div(self.elements, _TILE), card.multiprocessors)
        return (blocks * self.element_bytes,)
