"""The `topk` of rows, long ones of which several thread blocks share.

Source: `should_use_multiblock`, `mbtopk::launch` and `get_items_per_thread` in
aten/src/ATen/native/cuda/TensorTopK.cu, PyTorch 2.11; scratch of the scans: `DispatchScanByKey`,
CUB 3.0.
"""

from __future__ import annotations

from typing import ClassVar

from memplan.launches.launch import Launch, Processors, ceil_div, look_back_bytes, together

_THREADS = 256
_REGISTERS_PER_THREAD = 40
_REGISTERS_PER_MULTIPROCESSOR = 65536
_MOST_BLOCKS_PER_MULTIPROCESSOR = 32
_RADIX_DIGITS = 256
_SCAN_TILE = 128 * 9


# Up to so many rows, one of at least so many elements is shared by several blocks.
_SHARED = ((20, 20000), (40, 10000), (80, 8000), (199, 5000), (799, 3000), (4000, 800))
_SHARED_AMONG_MORE_ROWS = 400


class TopK(Launch, frozen=True, kw_only=True, tag="topk"):
    """Rows whose largest elements are looked for, digit by digit.

    Whether blocks share a row changes with the number of rows, and so with the batch: a row of one
    block is the same launch, whose buffers have no bytes.
    """

    # The k-th value of each row, what is still sought there, digits by block and by row, a number
    # a block, and the scratch of a scan over blocks.
    BUFFERS: ClassVar = (
        "topk_found",
        "topk_sought",
        "topk_digit_counts",
        "topk_digit_sums",
        "topk_block_numbers",
        "topk_scan",
    )
    VARYING: ClassVar = ("rows", "row")

    rows: int
    row: int
    """Elements in a row."""
    element_bytes: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of each of `BUFFERS`, all 0 where a block has its rows to itself."""
        if not self._shares_rows():
            return (0,) * len(self.BUFFERS)
        at_once = card.multiprocessors * min(
            _REGISTERS_PER_MULTIPROCESSOR // (_REGISTERS_PER_THREAD * _THREADS),
            _MOST_BLOCKS_PER_MULTIPROCESSOR,
        )
        items = min(max(ceil_div(self.row * self.rows, at_once * _THREADS), 4), 64)
        blocks = self.rows * ceil_div(self.row, items * _THREADS)
        return (
            self.rows * self.element_bytes,
            8 * self.rows,
            2 * _RADIX_DIGITS * blocks,
            4 * _RADIX_DIGITS * self.rows,
            4 * blocks,
            together(look_back_bytes(blocks, _SCAN_TILE), 4 * (ceil_div(blocks, _SCAN_TILE) + 1)),
        )

    def _shares_rows(self) -> bool:
        least = next((row for rows, row in _SHARED if self.rows <= rows), _SHARED_AMONG_MORE_ROWS)
        return self.row >= least
