"""The backward of memory-efficient attention, whose block shape follows a card's shared memory.

Source: `workspace_elements_gq`, `workspace_elements_gk` and `GradQTempStorage` in
aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernel_backward.h, and the kernels that
kernels/generate_kernels.py lists, PyTorch 2.11. Which kernel fits a card was read off PyTorch's own
host code on phantom cards of compute capability 7.5, 8.0 and 8.6.
"""

from __future__ import annotations

from typing import ClassVar

from memplan.launches.launch import Launch, Processors, ceil_div

_HEADER_BYTES = 16  # a lock and a counter before each block of the query's gradient
_LARGE_SHARED_MEMORY = 160 << 10  # 8.0, 9.0 and 10.0
_MIDDLE_SHARED_MEMORY = 96 << 10  # 8.6, 8.9 and 12.0; 7.5 has less


class EfficientAttention(Launch, frozen=True, kw_only=True, tag="efficient_attention"):
    """One backward; lengths in elements."""

    BUFFERS: ClassVar = ("efficient_attention_workspace",)
    VARYING: ClassVar = ("heads", "queries", "keys")

    heads: int
    """Of all images together."""
    queries: int
    keys: int
    width: int
    half: bool
    """Whether tensors have two bytes an element."""

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes in which gradients of query, and where needed key and value, add up."""
        high, wide, adds_up = self._kernel(card.shared_memory_per_block_bytes)
        blocks = ceil_div(self.queries, high) * ceil_div(self.width, wide)
        each = blocks * (4 * high * wide + _HEADER_BYTES)
        if adds_up:
            each += 2 * 4 * 64 * ceil_div(self.keys, 64) * 128 * ceil_div(self.width, 128)
        return (self.heads * each,)

    def _kernel(self, shared_memory_bytes: int) -> tuple[int, int, bool]:
        """Return queries and elements a block, and whether key and value do not fit registers."""
        large = shared_memory_bytes >= _LARGE_SHARED_MEMORY
        middle = not large and shared_memory_bytes >= _MIDDLE_SHARED_MEMORY
        if self.width <= 64:
            return 64, 64, False
        if not self.half:
            return (128 if large else 64), 64, False
        if self.width > 128:
            return 128, 64, True
        if large:
            return 128, 128, False
        return (64, 64, True) if middle and self.width > 96 else (128, 64, False)
