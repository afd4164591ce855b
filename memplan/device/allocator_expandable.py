"""Expandable segments: address ranges that gain and lose memory in whole units.

Source: `try_allocate_expandable_block`, `map_block` and `unmap_block` in
`c10/cuda/CUDACachingAllocator.cpp`.
"""

from __future__ import annotations

from memplan.device.allocator_blocks import Block, Pool, Reservation, link_after, link_before, merge
from memplan.device.allocator_core import AllocatorState


def expand(state: AllocatorState, pool: Pool, size: int, stream: int) -> Block | None:
    """Return a cached-and-removed block of at least `size`, mapping what is missing.

    None when the driver has no memory left; what was mapped until then stays cached.
    """
    block = _address_space(state, pool, size, stream)
    if not block.mapped and not _map(state, block, min(block.size, size)):
        return None
    while block.size < size:
        behind = block.next
        assert behind is not None, "the range was measured before"
        if not _map(state, behind, min(size - block.size, behind.size)):
            return None
        block = behind  # it absorbed the mapped block in front of it
    pool.remove(block)
    state.count_private_pieces(pool, 1)
    return block


def unmap(state: AllocatorState, block: Block) -> None:
    """Detach the whole units inside a cached block; the rest of it stays mapped."""
    reservation = block.expandable
    assert reservation is not None, "only expandable blocks are unmapped"
    end = block.address + block.size
    start_unit, end_unit = reservation.whole_units(block.address, end)
    if start_unit >= end_unit:
        return
    pool = block.pool
    pool.remove(block)
    if start_unit > block.address:
        front = state.ranks.piece(block, 0, start_unit - block.address)
        link_before(block, front)
        pool.insert(front)
    if end > end_unit:
        rear = state.ranks.piece(block, end_unit - block.address, end - end_unit)
        link_after(block, rear)
        pool.insert(rear)
    state.ranks.move(block, start_unit)
    block.size = end_unit - start_unit
    block.mapped = False
    merge(block, block.prev, state.ranks)
    merge(block, block.next, state.ranks)
    pool.insert_unmapped(block)
    state.count_release(pool, end_unit - start_unit)
    state.record("segment_unmap", start_unit, end_unit - start_unit, block.stream)
    if not block.is_split:
        pool.remove_unmapped(block)  # nothing is mapped any more: the reservation is dropped


def _address_space(state: AllocatorState, pool: Pool, size: int, stream: int) -> Block:
    """Return the lowest free-or-unmapped run of at least `size`, or a new reservation."""
    for unmapped in pool.unmapped_of(stream):
        before = unmapped.prev
        start = before if before is not None and before.is_available else unmapped
        if _has_room(start, size):
            return start
    return _reserve(state, pool, stream)


def _has_room(start: Block, size: int) -> bool:
    """Return whether the available blocks from `start` on add up to `size`."""
    room = 0
    block: Block | None = start
    while room < size and block is not None and block.is_available:
        room += block.size
        block = block.next
    return room >= size


def _reserve(state: AllocatorState, pool: Pool, stream: int) -> Block:
    """Return the single unmapped block of a new address range, 1 1/8 of the device's memory."""
    unit = state.settings.unit_bytes(is_small=pool.is_small)
    total = state.driver.total_bytes
    size = -(-(total + total // 8) // unit) * unit
    address = state.driver.new_address(size)
    block = Block(address, size, state.ranks.of_segment(address), stream, pool)
    block.expandable = Reservation(address, unit)
    block.mapped = False
    pool.insert_unmapped(block)
    return block


def _map(state: AllocatorState, block: Block, wanted: int) -> bool:
    """Return whether memory for `wanted` bytes, in whole units, could be put under `block`."""
    reservation = block.expandable
    assert reservation is not None, "only expandable blocks are mapped"
    size = -(-wanted // reservation.unit_bytes) * reservation.unit_bytes
    if not state.driver.take(size):
        return False
    pool = block.pool
    start = block.address
    pool.remove_unmapped(block)
    block.mapped = True
    if size < block.size:
        rest = state.ranks.piece(block, size, block.size - size)
        rest.mapped = False
        link_after(block, rest)
        pool.insert_unmapped(rest)
        block.size = size
    merge(block, block.prev, state.ranks)
    merge(block, block.next, state.ranks)
    pool.insert(block)
    state.count_growth(pool, size)
    state.record("segment_map", start, size, block.stream)
    return True
