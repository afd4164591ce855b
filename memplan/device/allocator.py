"""PyTorch's CUDA caching allocator, simulated bit for bit.

Source: `c10/cuda/CUDACachingAllocator.cpp`, PyTorch 2.0 to 2.15; the golden runs under
`tests/golden/allocator` come from the released library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from memplan.device.allocator_blocks import Block, Pool, PoolId, link_before, merge
from memplan.device.allocator_core import AllocatorState
from memplan.device.allocator_driver import Driver
from memplan.device.allocator_expandable import expand
from memplan.device.allocator_oom import (
    LARGEST_REQUEST_BYTES,
    TOO_LARGE_TEXT,
    OutOfMemoryFigures,
    out_of_memory_text,
    pytorch_bytes,
)
from memplan.device.allocator_records import SegmentRecord, TraceEntry, segments_of
from memplan.device.allocator_release import (
    collect_garbage,
    release_cached,
    release_oversize,
)
from memplan.device.allocator_settings import (
    MIN_BLOCK_BYTES,
    SMALL_REQUEST_BYTES,
    AllocatorSettings,
)
from memplan.device.allocator_streams import Diversions, StreamEvents
from memplan.errors import DeviceOutOfMemoryError, UsageError

__all__ = ["AllocatorSettings", "Block", "CachingAllocator"]


class CachingAllocator:
    """One device's caching allocator: the same addresses, counters and verdicts as PyTorch's.

    Args:
        capacity_bytes: what the driver can still give this process.
        settings: allocator options.
        total_bytes: the device's memory as the driver reports it; `capacity_bytes` by default.
        memory_fraction: the process' limit as a fraction of `total_bytes`; overrides the one in
            `settings`.
        torch_version: major and minor of the PyTorch release whose rules apply, 2.0 to 2.15.
        addresses: where new segments and reservations start, in order; rising by default. Up to
            PyTorch 2.11 addresses decide between free blocks of equal size.
        trace: keep a trace entry of every change.

    `state`, `search_beyond` and `out_of_memory` are for `allocator_replay`, which writes the hit
    path out.

    Raises:
        UsageError: a fraction outside [0, 1].
    """

    def __init__(
        self,
        capacity_bytes: int,
        settings: AllocatorSettings | None = None,
        *,
        total_bytes: int | None = None,
        memory_fraction: float | None = None,
        torch_version: tuple[int, int] = (2, 11),
        addresses: Iterable[int] | None = None,
        trace: bool = False,
    ) -> None:
        total = capacity_bytes if total_bytes is None else total_bytes
        driver = Driver(capacity_bytes, total, None if addresses is None else iter(addresses))
        settings = AllocatorSettings() if settings is None else settings
        self.state = AllocatorState(driver, settings, torch_version, trace=trace)
        self._active: dict[int, Block] = {}
        self._diversions = Diversions(self.state)
        self._events = StreamEvents(self._finish, lambda: self._diversions.is_gated)
        fraction = settings.memory_fraction if memory_fraction is None else memory_fraction
        if fraction is not None:
            self.set_memory_fraction(fraction)

    def malloc(self, size: int, stream: int = 0) -> Block | None:
        """Return a block for `size` bytes on `stream`; None for 0 bytes.

        Raises:
            DeviceOutOfMemoryError: nothing cached serves and the driver has no room, in PyTorch's
                words; the allocator stays usable.
        """
        if size == 0:
            return None
        if size >= LARGEST_REQUEST_BYTES:
            raise DeviceOutOfMemoryError(TOO_LARGE_TEXT, size)
        self.process_events()
        state = self.state
        rounded = state.settings.block_bytes(size, state.torch_version)
        pool = self._diversions.pool_of(stream, is_small=rounded <= SMALL_REQUEST_BYTES)
        block = self._search(pool, rounded, stream) or self.search_beyond(pool, rounded, stream)
        if block is None:
            raise self.out_of_memory(size, rounded, stream)
        return self._hand_out(block, rounded, size)

    def free(self, block: Block | None) -> None:
        """Give a block back; it serves others once every stream that used it is done."""
        if block is None:
            return
        assert block.allocated, "a block is freed once"
        block.allocated = False
        state = self.state
        is_small = block.pool.is_small
        state.statistics.allocation.change(-1, is_small=is_small)
        state.statistics.allocated_bytes.change(-block.size, is_small=is_small)
        state.record("free_requested", block.address, block.requested, block.stream)
        if self._is_oversize(block.size):
            state.statistics.oversize_allocations.decrease(1)
        if not block.stream_uses:
            self._finish(block)
        else:
            self._events.defer(block)

    def record_stream(self, block: Block, stream: int) -> None:
        """Note that another stream uses the block, so that freeing it waits for that stream."""
        if stream != block.stream:
            self._events.use(block, stream)

    def complete_events(self, stream: int) -> None:
        """Let everything recorded so far on a stream be finished; noticed at the next malloc."""
        self._events.complete(stream)

    def complete_events_of(self, block: Block) -> None:
        """Let all events that a freed block waits for be finished."""
        self._events.complete_block(block)

    def process_events(self) -> None:
        """Let freed blocks whose events are done into the cache, as every malloc does first."""
        if not self._diversions.is_gated:
            self._events.finish_ready()

    def empty_cache(self, pool_id: PoolId = (0, 0)) -> None:
        """Return cached segments to the driver; of one private pool only if `pool_id` is given."""
        release_cached(self.state, self._diversions, self._events, pool_id)

    def set_memory_fraction(self, fraction: float) -> None:
        """Limit this process to a fraction of the device's memory.

        Raises:
            UsageError: the fraction is not within [0, 1].
        """
        if not 0.0 <= fraction <= 1.0:
            raise UsageError(
                f"Memory fraction {fraction} is out of range. Give a number from 0 to 1."
            )
        state = self.state
        unlimited = fraction == 1.0 and state.torch_version >= (2, 10)
        state.limit = None if unlimited else int(fraction * state.driver.total_bytes)
        self._fraction = fraction

    def apply_settings(self, settings: AllocatorSettings) -> None:
        """Change the options from now on, as `torch.cuda.memory._set_allocator_settings`."""
        self.state.settings = settings

    def begin_allocate_to_pool(self, pool_id: PoolId, streams: Iterable[int] | None = None) -> None:
        """Divert requests to a private pool, creating it or counting one more user of it.

        Args:
            pool_id: the pool.
            streams: the streams whose requests are diverted; all by default.
        """
        self._diversions.begin(pool_id, streams)

    def end_allocate_to_pool(self, pool_id: PoolId) -> None:
        """End the diversion to a pool; its memory stays."""
        self._diversions.end(pool_id)

    def release_pool(self, pool_id: PoolId) -> None:
        """Count one user of a private pool less; without users its cache may be released."""
        self._diversions.release(pool_id)

    def set_use_on_oom(self, pool_id: PoolId) -> None:
        """Let a private pool's cache serve default requests that would fail (PyTorch 2.8+)."""
        self._diversions.get_or_create(pool_id).use_on_oom = True

    def set_no_split(self, pool_id: PoolId) -> None:
        """Let a private pool hand out whole blocks only (PyTorch 2.10+)."""
        private = self._diversions.get_or_create(pool_id)
        private.small.no_split = private.large.no_split = True

    def begin_capture(self) -> None:
        """Announce a graph capture; from PyTorch 2.13 only this defers frees and releases."""
        self._diversions.captures += 1

    def end_capture(self) -> None:
        """Announce the end of a graph capture."""
        self._diversions.captures -= 1

    def stats(self) -> dict[str, int]:
        """Return the figures of `torch.cuda.memory_stats` under its names; bytes and counts."""
        return self.state.statistics.as_dict()

    def reset_peak_stats(self) -> None:
        """Set every peak to the current level."""
        self.state.statistics.reset_peaks()

    def reset_accumulated_stats(self) -> None:
        """Set accumulated sums and plain counts to zero."""
        self.state.statistics.reset_accumulated()

    def snapshot(self) -> tuple[SegmentRecord, ...]:
        """Return every segment with its blocks, by address."""
        state = self.state
        cached = [block for pool in state.pools() for block in pool.free_blocks()]
        segments = segments_of([*cached, *self._active.values()])
        state.record("snapshot", 0, sum(segment.active_size for segment in segments), 0)
        return segments

    @property
    def has_plain_search(self) -> bool:
        """Whether a search depends on nothing but sizes and addresses of free blocks."""
        state = self.state
        rejects = state.settings.throw_on_cudamalloc_oom and state.torch_version >= (2, 12)
        return not (self._collects_garbage or rejects or state.ranks.by_creation)

    @property
    def trace(self) -> Sequence[TraceEntry]:
        """The history so far; empty unless it was asked for."""
        return self.state.trace or ()

    @property
    def reserved_bytes(self) -> int:
        """Bytes held from the driver."""
        return self.state.reserved

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the blocks in use."""
        return self.state.statistics.allocated_bytes.all.current

    @property
    def device_free_bytes(self) -> int:
        """Bytes the driver could still give."""
        return self.state.driver.free_bytes

    def _search(self, pool: Pool, size: int, stream: int) -> Block | None:
        """Take the best fitting cached block out of a pool, if its first candidate will do.

        Source: `get_free_block` in `c10/cuda/CUDACachingAllocator.cpp`.
        """
        if self._collects_garbage:
            pool.num_searches += 1
        blocks = pool.free.get(stream, [])
        at = bisect_left(blocks, (size,))
        if at == len(blocks):
            return None
        settings = self.state.settings
        if blocks[at][2].expandable is not None:
            if settings.expandable_segments:
                at = _shortest_reach(blocks, at)
            else:
                while at < len(blocks) and blocks[at][2].expandable is not None:
                    at += 1
                if at == len(blocks):
                    return None
        block = blocks[at][2]
        maximum = settings.max_split_bytes
        if maximum is not None:
            if size < maximum <= block.size:
                return None
            if size >= maximum and block.size >= size + settings.oversize_slack_bytes:
                return None
        del blocks[at]
        return block

    def search_beyond(self, pool: Pool, size: int, stream: int) -> Block | None:
        """Return a block after the cache failed: grow, use spare pools, release, grow again."""
        state = self.state
        if self._collects_garbage:
            collect_garbage(state)
        segment = state.settings.segment_bytes(size)
        block = self._grow(pool, size, segment, stream) or self._search_spare(pool, size, stream)
        if block is None and release_oversize(state, pool, size, stream):
            block = self._grow(pool, size, segment, stream)
        if block is None and not self._diversions.is_gated:
            release_cached(state, self._diversions, self._events)
            state.statistics.num_alloc_retries += 1
            block = self._grow(pool, size, segment, stream)
        return block

    def _search_spare(self, pool: Pool, size: int, stream: int) -> Block | None:
        """Search the private pools that may serve a default request that would fail."""
        if pool.pool_id != (0, 0):
            return None
        for private in list(self.state.private.values()):
            if private.use_on_oom:
                spare = private.small if pool.is_small else private.large
                block = self._search(spare, size, stream)
                if block is not None:
                    return block
        return None

    def _grow(self, pool: Pool, size: int, segment: int, stream: int) -> Block | None:
        """Return a block over new driver memory, or None when limit or driver refuse.

        Source: `alloc_block` in `c10/cuda/CUDACachingAllocator.cpp`.
        """
        state = self.state
        if state.limit is not None and state.reserved + segment > state.limit:
            return None
        self._reject_early(segment)
        if state.settings.expandable_segments:
            return expand(state, pool, size, stream)
        if not state.driver.take(segment):
            return None
        address = state.driver.new_address(segment)
        state.count_growth(pool, segment)
        state.count_private_pieces(pool, 1)
        state.statistics.segment.change(1, is_small=pool.is_small)
        if self._is_oversize(segment):
            state.statistics.oversize_segments.increase(1)
        state.record("segment_alloc", address, segment, stream)
        return Block(address, segment, state.ranks.of_segment(address), stream, pool)

    def _reject_early(self, segment: int) -> None:
        """Raise where PyTorch 2.12 and later refuse before asking the driver."""
        state = self.state
        if not state.settings.throw_on_cudamalloc_oom or state.torch_version < (2, 12):
            return
        allowed = int(self._fraction * state.driver.total_bytes)
        if state.reserved + segment > allowed:
            state.statistics.num_oom_rejections += 1
            raise DeviceOutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {pytorch_bytes(segment)} with "
                f"{pytorch_bytes(state.reserved)} reserved, but per_process_memory_fraction "
                f"allows {pytorch_bytes(allowed)} (throw_on_cudamalloc_oom).",
                segment,
            )

    def _hand_out(self, block: Block, size: int, requested: int) -> Block:
        """Return `block`, cut to `size` where the rules split, marked as allocated.

        Source: `alloc_found_block` in `c10/cuda/CUDACachingAllocator.cpp`.
        """
        statistics = self.state.statistics
        pool = block.pool
        is_small = pool.is_small
        counts_as_split = block.expandable is None
        was_split = block.is_split
        if self._is_split_for(block, size):
            rest = block
            block = self.state.ranks.piece(rest, 0, size)
            link_before(rest, block)
            self.state.ranks.move(rest, rest.address + size)
            rest.size -= size
            pool.insert(rest)
            if counts_as_split:
                change = -size if was_split else rest.size
                statistics.inactive_split_bytes.change(change, is_small=is_small)
                statistics.inactive_split.change(0 if was_split else 1, is_small=is_small)
        elif was_split and counts_as_split:
            statistics.inactive_split_bytes.change(-block.size, is_small=is_small)
            statistics.inactive_split.change(-1, is_small=is_small)
        self.state.record("alloc", block.address, requested, block.stream)
        return self.adopt(block, requested)

    def adopt(self, block: Block, requested: int) -> Block:
        """Return a block that is in no pool, marked as allocated and counted."""
        block.allocated = True
        block.requested = requested
        self._active[block.address] = block
        statistics = self.state.statistics
        is_small = block.pool.is_small
        statistics.allocation.change(1, is_small=is_small)
        statistics.allocated_bytes.change(block.size, is_small=is_small)
        statistics.active.change(1, is_small=is_small)
        statistics.active_bytes.change(block.size, is_small=is_small)
        statistics.requested_bytes.change(requested, is_small=is_small)
        if self._is_oversize(block.size):
            statistics.oversize_allocations.increase(1)
        return block

    def _is_split_for(self, block: Block, size: int) -> bool:
        """Return whether a request for `size` leaves the rest of `block` to others."""
        settings = self.state.settings
        rest = block.size - size
        if block.pool.no_split:
            return False
        if block.pool.is_small or settings.expandable_segments:
            return rest >= MIN_BLOCK_BYTES
        below = settings.max_split_bytes is None or size < settings.max_split_bytes
        return below and rest > SMALL_REQUEST_BYTES

    def _finish(self, block: Block) -> None:
        """Put a block that nobody uses any more into the cache, joined with free neighbours.

        Source: `free_block` in `c10/cuda/CUDACachingAllocator.cpp`.
        """
        state = self.state
        statistics = state.statistics
        is_small = block.pool.is_small
        state.record("free_completed", block.address, block.requested, block.stream)
        del self._active[block.address]
        size = block.size
        merged = [merge(block, block.prev, state.ranks), merge(block, block.next, state.ranks)]
        block.pool.insert(block)
        if block.expandable is None:
            # PyTorch applies the net change once; peaks and sums would differ otherwise.
            num_blocks = block.is_split - sum(bytes_gained > 0 for bytes_gained in merged)
            num_bytes = (block.size if block.is_split else 0) - sum(merged)
            statistics.inactive_split.change(num_blocks, is_small=is_small)
            statistics.inactive_split_bytes.change(num_bytes, is_small=is_small)
        statistics.active.change(-1, is_small=is_small)
        statistics.active_bytes.change(-size, is_small=is_small)
        statistics.requested_bytes.change(-block.requested, is_small=is_small)

    def out_of_memory(
        self, requested: int, size: int, stream: int, allocated: int | None = None
    ) -> DeviceOutOfMemoryError:
        """Return the error of a request that nothing could serve, and count it."""
        state = self.state
        state.record("oom", state.driver.free_bytes, size, stream)
        state.statistics.num_ooms += 1
        private = [pool for each in state.private.values() for pool in (each.small, each.large)]
        figures = OutOfMemoryFigures(
            segment_bytes=state.settings.segment_bytes(size),
            total_bytes=state.driver.total_bytes,
            device_free_bytes=state.driver.free_bytes,
            limit_bytes=state.limit,
            allocated_bytes=self.allocated_bytes if allocated is None else allocated,
            reserved_bytes=state.reserved,
            private_pool_free_bytes=sum(pool.free_bytes for pool in private),
        )
        return DeviceOutOfMemoryError(out_of_memory_text(figures, state.torch_version), requested)

    def _is_oversize(self, size: int) -> bool:
        maximum = self.state.settings.max_split_bytes
        return maximum is not None and size >= maximum

    @property
    def _collects_garbage(self) -> bool:
        return self.state.limit is not None and self.state.settings.garbage_collection_threshold > 0


def _shortest_reach(blocks: list[tuple[int, int, Block]], at: int) -> int:
    """Return the candidate to take among expandable blocks: walk on while the reach shrinks."""
    while (
        blocks[at][2].expandable is not None
        and at + 1 < len(blocks)
        and blocks[at + 1][2].reach < blocks[at][2].reach
    ):
        at += 1
    return at
