"""Blocks of device memory and the ordered pools that hold the free ones."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import count

PoolId = tuple[int, int]
"""A private pool's id, as `torch.cuda.MemPool.id`; (0, 0) is the default pools'."""

_SEGMENT_RANK_SHIFT = 64


class Reservation:
    """The address range of an expandable segment; memory comes and goes in whole units."""

    __slots__ = ("address", "unit_bytes")

    def __init__(self, address: int, unit_bytes: int) -> None:
        self.address = address
        self.unit_bytes = unit_bytes

    def whole_units(self, start: int, end: int) -> tuple[int, int]:
        """Return the widest range of whole units inside [start, end); empty if none fits."""
        first = -(-(start - self.address) // self.unit_bytes)
        last = (end - self.address) // self.unit_bytes
        return self.address + first * self.unit_bytes, self.address + last * self.unit_bytes


class Block:
    """A slice of a segment: allocated, awaiting other streams, cached, or not yet mapped.

    `rank` breaks ties between free blocks of one size, see `RankRule`. `next` is a neighbour
    in the same segment; a block with any neighbour is split.
    """

    __slots__ = (
        "address",
        "allocated",
        "expandable",
        "mapped",
        "next",
        "num_events",
        "pool",
        "prev",
        "rank",
        "requested",
        "searches_at_insert",
        "size",
        "stream",
        "stream_uses",
    )

    def __init__(self, address: int, size: int, rank: int, stream: int, pool: Pool) -> None:
        self.address = address
        self.size = size
        self.rank = rank
        self.stream = stream
        self.pool = pool
        self.allocated = False
        self.expandable: Reservation | None = None
        self.mapped = True
        self.prev: Block | None = None
        self.next: Block | None = None
        self.requested = 0
        self.stream_uses: set[int] | None = None
        self.num_events = 0
        self.searches_at_insert = 0

    @property
    def is_split(self) -> bool:
        """Whether the block shares its segment with others."""
        return self.prev is not None or self.next is not None

    @property
    def is_available(self) -> bool:
        """Whether nobody holds the block and no stream may still use it."""
        return not self.allocated and not self.num_events and not self.stream_uses

    @property
    def reach(self) -> int:
        """Bytes of the block and of the unmapped range right behind it."""
        behind = self.next
        return self.size + (behind.size if behind is not None and not behind.mapped else 0)


class RankRule:
    """The tie-break among free blocks of equal size, which PyTorch changed twice.

    Up to 2.11 the address decides; in 2.12 a counter given to every new block; from 2.13 the age
    of the segment, then the address. Pieces of a block derive their rank from it, so that one
    integer comparison serves all three.

    Source: `BlockComparatorSize` in `c10/cuda/CUDACachingAllocator.cpp`, 2.11 to 2.13.
    """

    def __init__(self, torch_version: tuple[int, int]) -> None:
        self.by_creation = torch_version == (2, 12)
        self._by_segment = torch_version >= (2, 13)
        self._counter = count()

    def of_segment(self, address: int) -> int:
        """Return the rank of a new segment's first block."""
        if self.by_creation:
            return next(self._counter)
        if self._by_segment:
            return (next(self._counter) << _SEGMENT_RANK_SHIFT) + address
        return address

    def of_piece(self, parent: Block, offset: int) -> int:
        """Return the rank of a new block that starts `offset` bytes into `parent`."""
        return next(self._counter) if self.by_creation else parent.rank + offset

    def move(self, block: Block, address: int) -> None:
        """Let `block` start at another address of its segment."""
        if not self.by_creation:
            block.rank += address - block.address
        block.address = address

    def piece(self, parent: Block, offset: int, size: int) -> Block:
        """Return a new block over `size` bytes of `parent`'s segment, not yet linked."""
        rank = self.of_piece(parent, offset)
        block = Block(parent.address + offset, size, rank, parent.stream, parent.pool)
        block.expandable = parent.expandable
        return block


class Pool:
    """One size class of one pool: its cached blocks and its unmapped address ranges, in order.

    Free blocks are ordered by stream, size, rank; unmapped ranges by stream, address. Searches
    never cross streams, so each stream has a list of its own.
    """

    def __init__(self, *, is_small: bool, pool_id: PoolId = (0, 0)) -> None:
        self.is_small = is_small
        self.pool_id = pool_id
        self.no_split = False
        self.num_searches = 0
        self.free: dict[int, list[tuple[int, int, Block]]] = {}
        self.unmapped: dict[int, list[tuple[int, Block]]] = {}

    def insert(self, block: Block) -> None:
        """Put a mapped block among the cached ones."""
        block.searches_at_insert = self.num_searches
        blocks = self.free.get(block.stream)
        if blocks is None:
            blocks = self.free[block.stream] = []
        insort(blocks, (block.size, block.rank, block))

    def remove(self, block: Block) -> None:
        """Take a cached block out."""
        blocks = self.free[block.stream]
        del blocks[bisect_left(blocks, (block.size, block.rank))]

    def insert_unmapped(self, block: Block) -> None:
        """Put an address range among those without memory."""
        insort(self.unmapped.setdefault(block.stream, []), (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        """Take an address range out of those without memory."""
        ranges = self.unmapped[block.stream]
        del ranges[bisect_left(ranges, (block.address,))]

    def free_blocks(self) -> list[Block]:
        """Return the cached blocks in PyTorch's order: stream, size, rank."""
        return [entry[2] for stream in sorted(self.free) for entry in self.free[stream]]

    def unmapped_of(self, stream: int) -> Iterator[Block]:
        """Yield the stream's address ranges without memory by ascending address."""
        for _address, block in self.unmapped.get(stream, ()):
            yield block

    @property
    def free_bytes(self) -> int:
        """Bytes of all cached blocks."""
        return sum(entry[0] for blocks in self.free.values() for entry in blocks)


def merge(block: Block, neighbour: Block | None, ranks: RankRule) -> int:
    """Return the bytes that `block` gained by absorbing a free neighbour; 0 if it may not.

    Source: `try_merge_blocks` in `c10/cuda/CUDACachingAllocator.cpp`.
    """
    if neighbour is None or not neighbour.is_available or neighbour.mapped != block.mapped:
        return 0
    if neighbour.mapped:
        neighbour.pool.remove(neighbour)
    else:
        neighbour.pool.remove_unmapped(neighbour)
    if block.prev is neighbour:
        ranks.move(block, neighbour.address)
        block.prev = neighbour.prev
        if block.prev is not None:
            block.prev.next = block
    else:
        block.next = neighbour.next
        if block.next is not None:
            block.next.prev = block
    block.size += neighbour.size
    return neighbour.size


def link_before(block: Block, new: Block) -> None:
    """Put `new` in front of `block` in its segment."""
    new.prev, new.next = block.prev, block
    if block.prev is not None:
        block.prev.next = new
    block.prev = new


def link_after(block: Block, new: Block) -> None:
    """Put `new` behind `block` in its segment."""
    new.prev, new.next = block, block.next
    if block.next is not None:
        block.next.prev = new
    block.next = new
