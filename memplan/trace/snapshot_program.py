"""The program behind a recorded allocator history: what was asked, and when frees took effect."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from memplan.device.allocator_records import SegmentRecord, TraceEntry
from memplan.device.allocator_settings import SMALL_REQUEST_BYTES, SMALL_SEGMENT_BYTES
from memplan.errors import BadTapeError
from memplan.trace.snapshot import Snapshot

_FROM_DRIVER = ("segment_alloc", "segment_map")
_TO_DRIVER = ("segment_free", "segment_unmap")


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the recorded program, with the trace entries it left.

    `kind` is "allocate", "free", "empty_cache" or "finish" (the end of a free that was requested
    before the recording). A failed allocation has `fails`. A free with
    `is_delayed` waited for another stream; blocks in `completed` were found finished when the
    call began. `releases` tells that an allocation followed a release of cached segments, which
    the allocator itself may have done to retry.
    """

    kind: str
    first: int
    """Index of the first trace entry of this call."""
    end: int
    """Index after the last one."""
    address: int = 0
    size: int = 0
    stream: int = 0
    fails: bool = False
    is_delayed: bool = False
    releases: bool = False
    completed: tuple[int, ...] = ()


def steps_of(trace: Sequence[TraceEntry]) -> Iterator[Step]:
    """Yield the calls that left a history, in order.

    Entries between two calls belong to the later one: an allocation first finishes frees, then
    releases, then grows. A release that no growth follows was `empty_cache()`.
    """
    burst = 0
    for index, entry in enumerate(trace):
        if index < burst or entry.action in (*_FROM_DRIVER, *_TO_DRIVER, "free_completed"):
            continue
        between = trace[burst:index]
        if entry.action in {"alloc", "oom"}:
            yield from _allocation(trace, burst, index)
        else:
            if any(each.action in _TO_DRIVER for each in between):
                yield Step("empty_cache", burst, index)
            elif between:
                # Only a free whose request the recording missed ends before another call.
                completed = tuple(each.address for each in between)
                yield Step("finish", burst, index, completed=completed)
            burst = index
            if entry.action == "free_requested":
                following = trace[index + 1] if index + 1 < len(trace) else None
                is_delayed = (
                    following is None
                    or following.action != "free_completed"
                    or following.address != entry.address
                )
                end = index + 1 if is_delayed else index + 2
                yield Step("free", burst, end, entry.address, is_delayed=is_delayed)
                burst = end
                continue
        burst = index + 1
    if any(entry.action in _TO_DRIVER for entry in trace[burst:]):
        yield Step("empty_cache", burst, len(trace))


def _allocation(trace: Sequence[TraceEntry], burst: int, index: int) -> list[Step]:
    """Return the allocation at `index`, after an `empty_cache()` if its burst shows one."""
    entry = trace[index]
    between = trace[burst:index]
    releases = [at for at, each in enumerate(between) if each.action in _TO_DRIVER]
    grows = any(each.action in _FROM_DRIVER for each in between)
    fails = entry.action == "oom"
    steps = []
    if releases and not grows and not fails:
        end = burst + releases[-1] + 1
        steps.append(Step("empty_cache", burst, end))
        burst, between, releases = end, trace[end:index], []
    completed = (
        ()
        if releases
        else tuple(each.address for each in between if each.action == "free_completed")
    )
    steps.append(
        Step(
            "allocate",
            burst,
            index + 1,
            address=0 if fails else entry.address,
            size=entry.size,
            stream=entry.stream,
            fails=fails,
            releases=bool(releases),
            completed=completed,
        )
    )
    return steps


@dataclass(frozen=True, slots=True)
class LiveBlock:
    """A block that was in use when the recording began; bytes."""

    address: int
    size: int
    requested: int
    is_pending: bool
    """Whether it was freed before, and only waited for another stream."""


@dataclass(frozen=True, slots=True)
class Start:
    """The allocator's state when the recording began."""

    segments: tuple[tuple[int, int, int, bool], ...]
    """Address, bytes, stream and whether small, by address."""
    live: tuple[LiveBlock, ...]
    """The blocks in use, by address."""

    def within(self, address: int, total: int) -> tuple[LiveBlock, ...]:
        """Return the blocks in use of a segment."""
        first, last = (
            bisect_left(self.live, end, key=lambda block: block.address)
            for end in (address, address + total)
        )
        return self.live[first:last]


def start_of(snapshot: Snapshot) -> Start:
    """Return the state before a history, by undoing it from the final state.

    Limits: native segments only. A block that ended during the recording may have had up to
    1 MiB of slack that the file does not show; where free space follows it, none is assumed.

    Raises:
        BadTapeError: segments or blocks would lie upon one another.
    """
    segments = {segment.address: _described(segment) for segment in snapshot.segments}
    blocks = {
        block.address: _Known(
            block.size, block.requested_size, block.state == "active_pending_free"
        )
        for segment in snapshot.segments
        for block in segment.blocks
        if block.state != "inactive"
    }
    for entry in reversed(snapshot.trace):
        if entry.action == "segment_alloc":
            segments.pop(entry.address, None)
        elif entry.action == "segment_free":
            is_small = entry.size <= SMALL_SEGMENT_BYTES
            segments[entry.address] = (entry.address, entry.size, entry.stream, is_small)
        else:
            _undo(entry, blocks)
    ordered = tuple(segments[address] for address in sorted(segments))
    for (address, total, *_), (following, *_) in pairwise(ordered):
        _require_room(address, total, following - address)
    return Start(ordered, _sized(ordered, blocks, snapshot))


class _Known(NamedTuple):
    """What is known of a block in use; its size only if it was in use at the end, too."""

    size: int | None
    requested: int
    is_pending: bool


def _undo(entry: TraceEntry, blocks: dict[int, _Known]) -> None:
    """Turn the blocks in use after an entry into those in use before it."""
    if entry.action == "alloc":
        blocks.pop(entry.address, None)
    elif entry.action == "free_completed":
        blocks[entry.address] = _Known(None, entry.size, is_pending=True)
    elif entry.action == "free_requested" and entry.address in blocks:
        blocks[entry.address] = blocks[entry.address]._replace(is_pending=False)


def _require_room(address: int, size: int, room: int) -> None:
    if size > room:
        raise BadTapeError(
            f"The history contradicts the segments: {size} bytes at {address:#x} would lie upon "
            "others when it began. Record from before the first CUDA allocation."
        )


def _described(segment: SegmentRecord) -> tuple[int, int, int, bool]:
    is_small = segment.segment_type == "small"
    return segment.address, segment.total_size, segment.stream, is_small


def _sized(
    segments: tuple[tuple[int, int, int, bool], ...],
    blocks: dict[int, _Known],
    snapshot: Snapshot,
) -> tuple[LiveBlock, ...]:
    """Return the live blocks, with the size of those that ended in the recording rebuilt."""
    addresses = sorted(blocks)
    live = []
    for start, total, _stream, is_small in segments:
        first, last = (bisect_left(addresses, end) for end in (start, start + total))
        inside = addresses[first:last]
        for address, following in pairwise([*inside, start + total]):
            size, requested, is_pending = blocks[address]
            if size is not None:
                _require_room(address, size, following - address)
            else:
                size = snapshot.settings.block_bytes(requested, snapshot.torch_version)
                room = following - address
                maximum = snapshot.settings.max_split_bytes
                is_whole = maximum is not None and size >= maximum
                if size > room or is_whole or (not is_small and room - size <= SMALL_REQUEST_BYTES):
                    size = room
            live.append(LiveBlock(address, size, requested, is_pending))
    return tuple(live)
