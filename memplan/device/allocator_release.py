"""How the simulated allocator gives cached memory back to the driver."""

from __future__ import annotations

from bisect import bisect_left

from memplan.device.allocator_blocks import Pool, PoolId
from memplan.device.allocator_core import AllocatorState
from memplan.device.allocator_expandable import unmap
from memplan.device.allocator_streams import Diversions, StreamEvents


def release_cached(
    state: AllocatorState,
    diversions: Diversions,
    events: StreamEvents,
    pool_id: PoolId = (0, 0),
) -> None:
    """Wait for all streams, then release every cached segment that has no block in use.

    Source: `release_cached_blocks` in `c10/cuda/CUDACachingAllocator.cpp` of 2.11.
    Limits: a release restricted to one private pool waits for all streams, not only its own.
    """
    if pool_id == (0, 0) and not diversions.is_gated:
        _synchronize(state, events)
        _release_pool(state, state.large)
        _release_pool(state, state.small)
    for freeable in list(diversions.freeable):
        if pool_id not in {(0, 0), freeable}:
            continue
        if pool_id != (0, 0):
            _synchronize(state, events)
        private = diversions.freeable[freeable]
        _release_pool(state, private.small)
        _release_pool(state, private.large)
        diversions.drop_empty(freeable)


def release_oversize(state: AllocatorState, pool: Pool, size: int, stream: int) -> bool:
    """Return whether enough oversize blocks were released to try a growth again.

    Source: `release_available_cached_blocks` in `c10/cuda/CUDACachingAllocator.cpp`.
    """
    maximum = state.settings.max_split_bytes
    if maximum is None:
        return False
    wanted = max(size, maximum)
    blocks = pool.free.get(stream, [])
    at = bisect_left(blocks, (wanted,))
    if at < len(blocks) and blocks[at][2].expandable is None:
        state.release_segment(blocks[at][2])
        return True
    released = 0
    for freed_size, _rank, block in reversed(blocks[:at]):
        if released >= wanted or freed_size < maximum:
            break
        if block.expandable is None:
            state.release_segment(block)
            released += freed_size
    return released >= wanted


def collect_garbage(state: AllocatorState) -> None:
    """Release large cached segments of at least average age until below the threshold.

    Source: `garbage_collect_cached_blocks` in `c10/cuda/CUDACachingAllocator.cpp`.
    """
    assert state.limit is not None, "garbage is collected under a limit only"
    threshold = int(state.settings.garbage_collection_threshold * state.limit)
    target = state.reserved - threshold
    pool = state.large
    blocks = [block for block in pool.free_blocks() if not block.is_split]
    total_age = sum(pool.num_searches - block.searches_at_insert for block in blocks)
    num_blocks = len(blocks)
    released = 0
    progress = True
    while target > 0 and released < target and progress and num_blocks > 0:
        average = total_age / num_blocks
        progress = False
        for block in list(blocks):
            age = pool.num_searches - block.searches_at_insert
            if block.expandable is None and age >= average:
                progress = True
                released += block.size
                total_age -= age
                num_blocks -= 1
                blocks.remove(block)
                state.release_segment(block)


def _synchronize(state: AllocatorState, events: StreamEvents) -> None:
    state.statistics.num_sync_all_streams += 1
    events.finish_all()


def _release_pool(state: AllocatorState, pool: Pool) -> None:
    """Release unsplit segments, then unmap what expandable blocks can spare."""
    blocks = pool.free_blocks()
    for block in blocks:
        if block.expandable is None and not block.is_split:
            state.release_segment(block)
    for block in blocks:
        if block.expandable is not None:
            unmap(state, block)
