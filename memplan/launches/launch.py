"""Kernel launches whose scratch is the card's to say: shared by the recorder and the device model.

How many thread blocks share a piece of work follows the card's multiprocessors, so a tape keeps the
launch itself, and a card's law says the bytes of its buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import msgspec

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Processors:
    """What of a card decides how work is split among thread blocks."""

    multiprocessors: int
    threads_per_multiprocessor: int
    """Most that are resident at once."""
    shared_memory_per_block_bytes: int
    """Most that one block may ask for."""
    compute_capability: tuple[int, int]

    def resident_blocks(self, threads: int) -> int:
        """Return how many blocks of so many threads the card holds at once, by their threads."""
        return self.multiprocessors * (self.threads_per_multiprocessor // threads)

    def since(self, table: Mapping[tuple[int, int], _T]) -> _T:
        """Return what holds here of a table by the compute capability from which on it does.

        Args:
            table: the newest first, one for all cards last.
        """
        return next(value for least, value in table.items() if self.compute_capability >= least)


def ceil_div(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-dividend // divisor)


_ALIGNMENT = 256


def together(*sizes: int) -> int:
    """Return the bytes that CUB asks for to place several buffers, aligned, in one allocation.

    Source: `AliasTemporaries` in cub/util_temporary_storage.cuh.
    """
    return sum(ceil_div(size, _ALIGNMENT) * _ALIGNMENT for size in sizes) + _ALIGNMENT - 1


_TILES_AHEAD = 32


def look_back_bytes(elements: int, tile: int, state_bytes: int = 16) -> int:
    """Return the bytes of the states of tiles that look back at those before them.

    Source: `ScanTileState::AllocationSize` in cub/agent/single_pass_scan_operators.cuh.
    """
    return state_bytes * (ceil_div(elements, tile) + _TILES_AHEAD)


# CUB has as many blocks as the card holds at once, times this, where each takes several tiles.
CUB_SUBSCRIPTION = 5


class Launch(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A launch as it depends on no card; every kind is a subclass in `memplan.launches`.

    A subclass names its buffers, which are the questions a tape asks about it, and its fields that
    may change with the batch: whole numbers, or tuples of them whose length stays.
    """

    BUFFERS: ClassVar[tuple[str, ...]] = ()
    VARYING: ClassVar[tuple[str, ...]] = ()

    def scratch_bytes(self, card: Processors) -> tuple[int, ...]:
        """Return the bytes of each of `BUFFERS` on a card; 0 where it wants none."""
        raise NotImplementedError

    def numbers(self) -> tuple[int, ...]:
        """Return everything that may change with the batch."""
        flat: list[int] = []
        for name in self.VARYING:
            value = getattr(self, name)
            flat += [value] if isinstance(value, int) else value
        return tuple(flat)

    def with_numbers(self, numbers: Sequence[int]) -> Self:
        """Return the same launch with other `numbers`."""
        changes: dict[str, int | tuple[int, ...]] = {}
        start = 0
        for name in self.VARYING:
            value = getattr(self, name)
            end = start + (1 if isinstance(value, int) else len(value))
            changes[name] = numbers[start] if isinstance(value, int) else tuple(numbers[start:end])
            start = end
        return msgspec.structs.replace(self, **changes)

    def is_like(self, other: Launch) -> bool:
        """Return whether two launches differ in their numbers only."""
        mine, its = self.numbers(), other.numbers()
        return (
            type(self) is type(other) and len(mine) == len(its) and self.with_numbers(its) == other
        )
