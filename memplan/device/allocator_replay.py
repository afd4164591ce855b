"""Fast replay of recorded single-stream programs through the simulated allocator."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memplan.device.allocator import CachingAllocator
from memplan.device.allocator_blocks import Block
from memplan.device.allocator_oom import LARGEST_REQUEST_BYTES
from memplan.device.allocator_settings import (
    MIN_BLOCK_BYTES,
    NO_ROUNDUP,
    SMALL_REQUEST_BYTES,
    AllocatorSettings,
)
from memplan.device.plan_fallback import PlanFallback
from memplan.errors import BadTapeError, DeviceOutOfMemoryError
from memplan.tape import ALLOCATE, EMPTY_CACHE, FREE, SCRATCH

_Timeline = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class StreamResult:
    """What a replayed program took; peaks in bytes, events as indices into the program.

    After an out-of-memory event the replay stops, and the peaks are those up to there.
    """

    allocated_peak_bytes: int
    active_peak_bytes: int
    reserved_peak_bytes: int
    requested_peak_bytes: int
    inactive_split_peak_bytes: int
    allocated_peak_event: int
    """The first event that reaches the allocated peak; -1 if nothing was allocated."""
    reserved_peak_event: int
    """The first event that reaches the reserved peak; -1 if nothing was reserved."""
    num_alloc_retries: int
    num_ooms: int
    oom_event: int = -1
    """The event that found no memory; -1 if none."""
    oom_message: str = ""
    """What PyTorch would print at that event."""
    allocated_timeline_bytes: NDArray[np.int64] | None = field(default=None, compare=False)
    """Allocated bytes after each event, while held for scratch; only if asked for."""
    reserved_timeline_bytes: NDArray[np.int64] | None = field(default=None, compare=False)
    """Reserved bytes after each event; only if asked for."""


@dataclass(kw_only=True)
class _Progress:
    """The running figures of a replay."""

    allocated: int = 0
    requested: int = 0
    inactive: int = 0
    allocated_peak: int = 0
    requested_peak: int = 0
    inactive_peak: int = 0
    reserved_peak: int = 0
    allocated_peak_event: int = -1
    reserved_peak_event: int = -1
    oom_event: int = -1
    oom_message: str = ""
    timeline: _Timeline | None = None


def replay_stream(
    kinds: NDArray[Any],
    blocks: NDArray[Any],
    sizes: NDArray[Any],
    capacity_bytes: int,
    settings: AllocatorSettings | None = None,
    *,
    total_bytes: int | None = None,
    memory_fraction: float | None = None,
    torch_version: tuple[int, int] = (2, 11),
    addresses: Iterable[int] | None = None,
    timeline: bool = False,
    fallback: PlanFallback | None = None,
) -> StreamResult:
    """Return the peaks of a recorded program on a device, and where it runs out of memory.

    The hit path of `CachingAllocator` (search, split, free, merge) is written out once more
    here, over the same pools and blocks, because 30,000 events must replay in a tenth of a
    second to be searched over; whatever misses the cache goes through the allocator itself. A
    property test holds both equal to `replay_by_calls`. Settings that the written-out path does
    not know (garbage collection, early rejection, PyTorch 2.12's order) take that slower way.

    Args:
        kinds: `[N]`, 0 allocate, 1 free, 2 empty the cache, 3 scratch (allocate, then free).
        blocks: `[N]`, the id that an event allocates or frees; ignored for kinds 2 and 3.
        sizes: `[N]`, requested bytes, >= 0; ignored for kinds 1 and 2. 0 takes nothing.
        capacity_bytes: what the driver can still give this process.
        settings: allocator options.
        total_bytes: the device's memory; `capacity_bytes` by default.
        memory_fraction: limit of the process as a fraction of `total_bytes`.
        torch_version: the release whose rules apply.
        addresses: where new segments start, in order; rising by default.
        timeline: also return allocated and reserved bytes after each event.
        fallback: fresh; the plans of convolutions whose workspace finds no memory. None has none.

    Raises:
        BadTapeError: the program frees what is not allocated, or allocates an id twice.
    """
    program = _checked_program(kinds, blocks, sizes)
    allocator = CachingAllocator(
        capacity_bytes,
        settings,
        total_bytes=total_bytes,
        memory_fraction=memory_fraction,
        torch_version=torch_version,
        addresses=addresses,
    )
    largest = int(program[2].max(initial=0))
    if allocator.has_plain_search and largest < LARGEST_REQUEST_BYTES:
        return _run(allocator, program, fallback, timeline=timeline)
    return _run_by_calls(allocator, program, fallback, timeline=timeline)


def replay_by_calls(
    kinds: NDArray[Any],
    blocks: NDArray[Any],
    sizes: NDArray[Any],
    allocator: CachingAllocator,
    *,
    timeline: bool = False,
    fallback: PlanFallback | None = None,
) -> StreamResult:
    """Return what `replay_stream` returns, event by event through `allocator`'s methods.

    Raises:
        BadTapeError: the program frees what is not allocated, or allocates an id twice.
    """
    program = _checked_program(kinds, blocks, sizes)
    return _run_by_calls(allocator, program, fallback, timeline=timeline)


_Program = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _checked_program(kinds: NDArray[Any], blocks: NDArray[Any], sizes: NDArray[Any]) -> _Program:
    """Return the program as int64 arrays once allocations and frees of each id alternate."""
    kinds, blocks, sizes = (np.asarray(each, dtype=np.int64) for each in (kinds, blocks, sizes))
    if not kinds.shape == blocks.shape == sizes.shape or kinds.ndim != 1:
        raise BadTapeError(
            "The program's kinds, blocks and sizes differ in length. Record it anew."
        )
    if kinds.size and not 0 <= kinds.min() <= kinds.max() <= SCRATCH:
        raise BadTapeError("The program has events that are none of 0 to 3. Record it anew.")
    events = np.flatnonzero(kinds <= FREE)
    events = events[np.argsort(blocks[events], kind="stable")]
    is_first = np.ones(events.size, dtype=bool)
    is_first[1:] = blocks[events[1:]] != blocks[events[:-1]]
    is_free = kinds[events] == FREE
    wrong = np.where(is_first, is_free, np.concatenate(([False], is_free[1:] == is_free[:-1])))
    if wrong.any():
        event = int(events[wrong].min())
        verb = "frees" if kinds[event] == FREE else "allocates"
        state = "is not allocated" if kinds[event] == FREE else "is allocated already"
        raise BadTapeError(
            f"Event {event} {verb} block {blocks[event]}, which {state}. Record the program anew."
        )
    return kinds, blocks, sizes


def _block_sizes(
    sizes: NDArray[np.int64], settings: AllocatorSettings, torch_version: tuple[int, int]
) -> list[int]:
    """Return the rounded size of every request; a request of 0 bytes stays 0."""
    if settings.roundup_power2_divisions == NO_ROUNDUP:
        rounded: list[int] = (-(-sizes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES).tolist()
        return rounded
    distinct, inverse = np.unique(sizes, return_inverse=True)
    table = [settings.block_bytes(size, torch_version) if size else 0 for size in distinct.tolist()]
    again: list[int] = np.asarray(table, dtype=np.int64)[inverse].tolist()
    return again


def _run(  # noqa: C901, PLR0912, PLR0915 - one loop on purpose: a call an event would double its time
    allocator: CachingAllocator,
    program: _Program,
    fallback: PlanFallback | None,
    *,
    timeline: bool,
) -> StreamResult:
    """Replay with the hit path written out; see `replay_stream`."""
    kinds, names, sizes = program
    state = allocator.state
    settings = state.settings
    statistics = state.statistics
    small, large = state.small, state.large
    small_free = small.free.setdefault(0, [])
    large_free = large.free.setdefault(0, [])
    expandable = settings.expandable_segments
    split_below = settings.max_split_bytes or LARGEST_REQUEST_BYTES
    slack = settings.oversize_slack_bytes
    no_split_rest = MIN_BLOCK_BYTES - 1 if expandable else SMALL_REQUEST_BYTES
    live: dict[int, Block | None] = {}
    spare: list[Block] = []
    progress = _Progress(timeline=[] if timeline else None)
    history = progress.timeline
    allocated = requested = inactive = 0
    allocated_peak = requested_peak = inactive_peak = reserved_peak = 0
    allocated_peak_event = reserved_peak_event = -1
    rounded_sizes = _block_sizes(sizes, settings, state.torch_version)
    requests = sizes.tolist()
    events = zip(kinds.tolist(), names.tolist(), requests, rounded_sizes, strict=True)
    index = -1
    for kind, name, bytes_requested, size in events:
        index += 1
        if kind == FREE:
            block = live.pop(name)
            if block is None:
                if history is not None:
                    history.append((allocated, state.reserved))
                continue
            pool = block.pool
            free = small_free if pool is small else large_free
        elif kind == EMPTY_CACHE:
            allocator.empty_cache()
            if history is not None:
                history.append((allocated, state.reserved))
            continue
        elif size == 0:
            if kind == ALLOCATE:
                live[name] = None
            if history is not None:
                history.append((allocated, state.reserved))
            continue
        else:
            if size <= SMALL_REQUEST_BYTES:
                pool, free, largest_whole = small, small_free, MIN_BLOCK_BYTES - 1
            else:
                pool, free, largest_whole = large, large_free, no_split_rest
                if size >= split_below and not expandable:
                    largest_whole = LARGEST_REQUEST_BYTES
            # search
            block = None
            at = bisect_left(free, (size,))
            if at < len(free):
                block = free[at][2]
                if expandable:
                    reach = block.reach
                    while at + 1 < len(free) and free[at + 1][2].reach < reach:
                        at += 1
                        block = free[at][2]
                        reach = block.reach
                if block.size >= split_below and (size < split_below or block.size >= size + slack):
                    block = None
            if block is not None:
                if kind == SCRATCH:
                    # Splitting and merging back leaves the pool as it was: count only.
                    rest_size = block.size - size
                    is_cut = rest_size > largest_whole
                    held = allocated + (size if is_cut else block.size)
                    if held > allocated_peak:
                        allocated_peak, allocated_peak_event = held, index
                    requested_peak = max(requested_peak, requested + bytes_requested)
                    if is_cut and not expandable and block.prev is None and block.next is None:
                        inactive_peak = max(inactive_peak, inactive + rest_size)
                    if history is not None:
                        history.append((held, state.reserved))
                    continue
                del free[at]
            else:
                block = allocator.search_beyond(pool, size, 0)
                if statistics.reserved_bytes.all.peak > reserved_peak:
                    reserved_peak = statistics.reserved_bytes.all.peak
                    reserved_peak_event = index
                if block is None:
                    error = allocator.out_of_memory(bytes_requested, size, 0, allocated)
                    scratch = fallback.take(allocator, index) if fallback is not None else None
                    if scratch is None:
                        progress.oom_event = index
                        progress.oom_message = _refusal(fallback, index, error)
                        break
                    # The loop reads both lists as it goes, so later calls take this plan too.
                    block_bytes = settings.block_bytes(scratch.requested, state.torch_version)
                    for later in scratch.later:
                        requests[later] = scratch.requested
                        rounded_sizes[later] = block_bytes if scratch.requested else 0
                    held = allocated + scratch.block
                    if held > allocated_peak:
                        allocated_peak, allocated_peak_event = held, index
                    requested_peak = max(requested_peak, requested + scratch.requested)
                    if not expandable:
                        inactive_peak = max(inactive_peak, inactive + scratch.rest)
                    if statistics.reserved_bytes.all.peak > reserved_peak:
                        reserved_peak = statistics.reserved_bytes.all.peak
                        reserved_peak_event = index
                    if history is not None:
                        history.append((held, state.reserved))
                    continue
            # hand out
            rest_size = block.size - size
            if rest_size > largest_whole:
                rest = block
                before = rest.prev
                address = rest.address
                rank = rest.rank
                if spare:
                    block = spare.pop()
                    block.address = address
                    block.size = size
                    block.rank = rank
                    block.pool = pool
                else:
                    block = Block(address, size, rank, 0, pool)
                block.expandable = rest.expandable
                block.prev = before
                block.next = rest
                if before is not None:
                    before.next = block
                    inactive -= size
                elif rest.next is not None:
                    inactive -= size
                else:
                    inactive += rest_size
                    if inactive > inactive_peak and not expandable:
                        inactive_peak = inactive
                rest.prev = block
                rest.address = address + size
                rest.rank = rank = rank + size
                rest.size = rest_size
                insort(free, (rest_size, rank, rest))
            elif block.prev is not None or block.next is not None:
                inactive -= block.size
            block.allocated = True
            block.requested = bytes_requested
            allocated += block.size
            if allocated > allocated_peak:
                allocated_peak, allocated_peak_event = allocated, index
            requested += bytes_requested
            requested_peak = max(requested_peak, requested)
            if history is not None:
                history.append((allocated, state.reserved))
            if kind == ALLOCATE:
                live[name] = block
                continue
        # free: of a FREE event, or of scratch that grew the pool
        freed_size = block.size
        allocated -= freed_size
        requested -= block.requested
        block.allocated = False
        merged = 0
        before = block.prev
        if before is not None and not before.allocated and before.mapped:
            merged = before.size
            del free[bisect_left(free, (merged, before.rank))]
            block.address = before.address
            block.rank = before.rank
            outer = before.prev
            block.prev = outer
            if outer is not None:
                outer.next = block
            spare.append(before)
            before = outer
        behind = block.next
        if behind is not None and not behind.allocated and behind.mapped:
            behind_size = behind.size
            del free[bisect_left(free, (behind_size, behind.rank))]
            merged += behind_size
            outer = behind.next
            block.next = outer
            if outer is not None:
                outer.prev = block
            spare.append(behind)
            behind = outer
        freed_size += merged
        block.size = freed_size
        insort(free, (freed_size, block.rank, block))
        inactive -= merged
        if before is not None or behind is not None:
            inactive += freed_size
            if inactive > inactive_peak and not expandable:
                inactive_peak = inactive
        if kind == FREE and history is not None:
            history.append((allocated, state.reserved))
    progress.allocated_peak = allocated_peak
    progress.allocated_peak_event = allocated_peak_event
    progress.requested_peak = requested_peak
    progress.inactive_peak = inactive_peak
    progress.reserved_peak = reserved_peak
    progress.reserved_peak_event = reserved_peak_event
    return _result(progress, allocator)


def _refusal(fallback: PlanFallback | None, event: int, error: DeviceOutOfMemoryError) -> str:
    """Return what PyTorch raises at an event that found no memory."""
    return str(error) if fallback is None else fallback.no_plan_text(event, str(error))


def _call(
    allocator: CachingAllocator, live: dict[int, Block | None], kind: int, name: int, size: int
) -> tuple[int, int] | None:
    """Carry out one event; return allocated and reserved bytes while scratch was held."""
    if kind == FREE:
        allocator.free(live.pop(name))
    elif kind == EMPTY_CACHE:
        allocator.empty_cache()
    elif kind == ALLOCATE:
        live[name] = allocator.malloc(size)
    else:
        scratch = allocator.malloc(size)
        held = (allocator.allocated_bytes, allocator.reserved_bytes)
        allocator.free(scratch)
        return held
    return None


def _run_by_calls(
    allocator: CachingAllocator,
    program: _Program,
    fallback: PlanFallback | None,
    *,
    timeline: bool,
) -> StreamResult:
    """Replay through the allocator's own methods; see `replay_by_calls`."""
    kinds, names, sizes = program
    statistics = allocator.state.statistics
    live: dict[int, Block | None] = {}
    progress = _Progress(timeline=[] if timeline else None)
    requests = sizes.tolist()
    events = zip(kinds.tolist(), names.tolist(), requests, strict=True)
    for index, (kind, name, size) in enumerate(events):
        held = None
        try:
            held = _call(allocator, live, kind, name, size)
        except DeviceOutOfMemoryError as error:
            served = fallback.take(allocator, index) if fallback is not None else None
            if served is None:
                progress.oom_event = index
                progress.oom_message = _refusal(fallback, index, error)
            else:
                held = (allocator.allocated_bytes + served.block, allocator.reserved_bytes)
                for later in served.later:
                    requests[later] = served.requested
        peak = statistics.allocated_bytes.all.peak
        if peak > progress.allocated_peak:
            progress.allocated_peak, progress.allocated_peak_event = peak, index
        peak = statistics.reserved_bytes.all.peak
        if peak > progress.reserved_peak:
            progress.reserved_peak, progress.reserved_peak_event = peak, index
        if progress.oom_event >= 0:
            break
        if progress.timeline is not None:
            progress.timeline.append(held or (allocator.allocated_bytes, allocator.reserved_bytes))
    progress.requested_peak = statistics.requested_bytes.all.peak
    progress.inactive_peak = statistics.inactive_split_bytes.all.peak
    return _result(progress, allocator)


def _result(progress: _Progress, allocator: CachingAllocator) -> StreamResult:
    statistics = allocator.state.statistics
    timeline = progress.timeline
    history = None if timeline is None else np.array(timeline, dtype=np.int64).reshape(-1, 2)
    return StreamResult(
        allocated_peak_bytes=progress.allocated_peak,
        # On one stream a freed block is available at once: active and allocated are the same.
        active_peak_bytes=progress.allocated_peak,
        reserved_peak_bytes=progress.reserved_peak,
        requested_peak_bytes=progress.requested_peak,
        inactive_split_peak_bytes=progress.inactive_peak,
        allocated_peak_event=progress.allocated_peak_event,
        reserved_peak_event=progress.reserved_peak_event,
        num_alloc_retries=statistics.num_alloc_retries,
        num_ooms=statistics.num_ooms,
        oom_event=progress.oom_event,
        oom_message=progress.oom_message,
        allocated_timeline_bytes=None if history is None else history[:, 0],
        reserved_timeline_bytes=None if history is None else history[:, 1],
    )
