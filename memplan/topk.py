"""The `topk` of long rows, which several thread blocks share.

Source: `mbtopk::launch` and `get_items_per_thread` in aten/src/ATen/native/cuda/TensorTopK.cu,
PyTorch 2.11; scratch of the scans: `DispatchScanByKey`, CUB 3.0.
"""

from __future__ import annotations

from typing import ClassVar

from memplan.launch import Launch, Processors, ceil_div

_THREADS = 256
_REGISTERS_PER_THREAD = 40
_REGISTERS_PER_MULTIPROCESSOR = 65536
_MOST_BLOCKS_PER_MULTIPROCESSOR = 32
_RADIX_DIGITS = 256
_SCAN_TILE = 128 * 9
_ALIGNMENT = 256


class TopK(Launch, frozen=True, kw_only=True, tag="topk"):
    """Rows whose largest elements several blocks each look for, digit by digit."""

    BUFFERS: ClassVar = ("topk_digit_counts", "topk_block_numbers", "topk_scan")
    VARYING: ClassVar = ("rows", "row")

    rows: int
    row: int
    """Elements in a row."""

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of digits' counts, of a number a block, and of a scan over blocks."""
        at_once = card.multiprocessors * min(
            _REGISTERS_PER_MULTIPROCESSOR // (_REGISTERS_PER_THREAD * _THREADS),
            _MOST_BLOCKS_PER_MULTIPROCESSOR,
        )
        items = min(max(ceil_div(self.row * self.rows, at_once * _THREADS), 4), 64)
        blocks = self.rows * ceil_div(self.row, items * _THREADS)
        tiles = ceil_div(blocks, _SCAN_TILE)
        scan = _aligned((tiles + 32) * 16) + _aligned(4 * (tiles + 1)) + _ALIGNMENT - 1
        return 2 * _RADIX_DIGITS * blocks, 4 * blocks, scan


def _aligned(num_bytes: int) -> int:
    return ceil_div(num_bytes, _ALIGNMENT) * _ALIGNMENT
