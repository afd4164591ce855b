"""A radix sort of keys, with or without values, as CUB launches it.

Source: `DispatchRadixSort` in cub/device/dispatch/dispatch_radix_sort.cuh and the policies in
tuning/tuning_radix_sort.cuh, CUB 3.0 (in CUDA 13.0). Held against PyTorch's own host code on
phantom cards of all architectures, keys of 1 to 8 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from memplan.launches.launch import CUB_SUBSCRIPTION, Launch, Processors, ceil_div, together

_RADIX_DIGITS = 256
_OFFSET_BYTES = 8  # PyTorch counts in int64, so CUB does
_MOST_A_PORTION = (1 << 28) - 1
# Hopper and later: items a thread block by the bytes of a key and of a value.
_TILES = {
    (1, 0): 512 * 19, (1, 8): 384 * 9,
    (2, 0): 512 * 19, (2, 8): 512 * 11,
    (4, 0): 384 * 18, (4, 4): 384 * 17, (4, 8): 384 * 14,
    (8, 0): 384 * 15, (8, 4): 384 * 15, (8, 8): 384 * 12,
}  # fmt: skip
_TILES_OF_BLACKWELL = {(2, 0): 512 * 15}
# Before Hopper keys below four bytes are sorted by counting, a few bits at a time.
_COUNTED_BITS = {1: 6, 2: 7}
_COUNTING_THREADS = 256
_COUNTING_SCAN_TILE = 512 * 11


class RadixSort(Launch, frozen=True, kw_only=True, tag="radix_sort"):
    """Pairs of keys and values, kept apart, or keys alone."""

    BUFFERS: ClassVar = ("radix_sort",)
    VARYING: ClassVar = ("count", "greatest_key")

    count: int
    key_bytes: int
    value_bytes: int
    """Of one value, 0 for keys alone."""
    greatest_key: int
    """Above which there is no key, so that its bits are compared alone; 0 where none is known."""

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of histograms, counters and the second pair of buffers."""
        bits = self.greatest_key.bit_length() or 8 * self.key_bytes
        return (_Sort(self.count, self.key_bytes, self.value_bytes, bits).scratch_bytes(card),)


class Permutation(Launch, frozen=True, kw_only=True, tag="permutation"):
    """Numbers from 0 on, sorted by random keys.

    Keys have enough bits for a duplicate to be rare: one in ten permutations has any.

    Source: `randperm_out_cuda` in aten/src/ATen/native/cuda/Randperm.cu, PyTorch 2.11.
    """

    BUFFERS: ClassVar = ("permutation_keys", "permutation_sorted_keys", "permutation_sort")
    VARYING: ClassVar = ("count",)

    count: int
    item_bytes: int

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of the keys, of the sorted ones and of their sort."""
        likely = self.count - (6 * self.count**2 + 1) / (12 * math.log(0.9))
        bits = min(64, math.ceil(math.log2(likely)))
        key_bytes = 4 if bits <= 32 else 8
        sort = _Sort(self.count, key_bytes, self.item_bytes, bits)
        keys = self.count * key_bytes
        return keys, keys, sort.scratch_bytes(card)


@dataclass(frozen=True)
class _Sort:
    """A radix sort as it is launched."""

    count: int
    key_bytes: int
    value_bytes: int
    bits: int

    def scratch_bytes(self, card: Processors) -> int:
        largest = max(4, self.key_bytes, self.value_bytes)
        if self.count <= 256 * max(1, 19 * 4 // largest):
            return 1  # one thread block sorts all
        if card.compute_capability < (9, 0) and self.key_bytes < 4:
            return self._counted(card)
        return self._in_one_sweep(self._tile(card, largest))

    def _tile(self, card: Processors, largest: int) -> int:
        """Return the items that a thread block sorts."""
        sizes = self.key_bytes, self.value_bytes
        if card.compute_capability >= (10, 0) and sizes in _TILES_OF_BLACKWELL:
            return _TILES_OF_BLACKWELL[sizes]
        if card.compute_capability >= (9, 0):
            return _TILES.get(sizes) or 384 * max(1, 23 * 4 // largest)
        if card.compute_capability >= (8, 0):
            return 384 * max(
                1, (17 if self.key_bytes == 4 and self.value_bytes else 21) * 4 // largest
            )
        return 256 * max(1, (46 if sizes == (4, 4) else 23) * 4 // largest)

    def _in_one_sweep(self, tile: int) -> int:
        passes = ceil_div(self.bits, 8)
        portion = _MOST_A_PORTION // tile * tile
        portions = ceil_div(self.count, portion)
        return together(
            portions * passes * _RADIX_DIGITS * _OFFSET_BYTES,
            ceil_div(min(self.count, portion), tile) * _RADIX_DIGITS * 4,
            *self._second_buffers(passes),
            portions * passes * 4,
        )

    def _counted(self, card: Processors) -> int:
        bits = _COUNTED_BITS[self.key_bytes]
        blocks = CUB_SUBSCRIPTION * card.resident_blocks(_COUNTING_THREADS)
        counters = blocks * (1 << bits) + _COUNTING_SCAN_TILE
        return together(counters * _OFFSET_BYTES, *self._second_buffers(ceil_div(self.bits, bits)))

    def _second_buffers(self, passes: int) -> tuple[int, int]:
        """Return the bytes of keys and values that several passes go to and fro with."""
        again = passes > 1
        return self.count * self.key_bytes * again, self.count * self.value_bytes * again
