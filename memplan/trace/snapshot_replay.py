"""Replay of PyTorch memory snapshots: check the simulation against them, and ask what if."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal

from memplan.device.allocator import AllocatorSettings, Block, CachingAllocator
from memplan.device.allocator_blocks import link_after
from memplan.device.allocator_records import SegmentRecord, TraceEntry
from memplan.errors import BadTapeError, DeviceOutOfMemoryError
from memplan.trace.snapshot import Snapshot
from memplan.trace.snapshot_history import driver_balance
from memplan.trace.snapshot_program import LiveBlock, Start, Step, start_of, steps_of

_UNLIMITED_BYTES = 1 << 50


@dataclass(frozen=True, kw_only=True)
class SnapshotPeaks:
    """What a recorded history takes under some capacity and options, simulated; bytes."""

    num_events: int
    is_cold_start: bool
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    requested_peak_bytes: int
    inactive_split_peak_bytes: int
    num_alloc_retries: int
    num_ooms: int
    oom_message: str = ""
    """PyTorch's sentence where the replay ran out and stopped; empty if it did not."""


@dataclass(frozen=True, kw_only=True)
class SnapshotCheck:
    """How a faithful replay compares with what was recorded."""

    peaks: SnapshotPeaks
    recorded_reserved_peak_bytes: int
    """The most that was held from the driver, summed from the recorded entries."""
    num_differing_steps: int
    """Calls whose trace entries (addresses, sizes, segments) differ from the recorded ones."""
    first_difference: str
    """The first of them, as recorded and as replayed; empty if none."""
    is_layout_equal: bool
    """Whether all segments and blocks at the end are where they were recorded."""


def check_snapshot(snapshot: Snapshot) -> SnapshotCheck:
    """Return how the simulated allocator's replay of a history compares with the recording.

    New segments get their recorded addresses, and releases happen where they were recorded.

    Limits: requests that went to private pools are replayed in the default ones, and garbage
    collection or a memory fraction (which the file does not hold) is not repeated; such
    histories show as differing. Counted retries are those that cannot have been `empty_cache()`.

    Raises:
        BadTapeError: the history is empty, or began mid-run under expandable segments.
    """
    replay = _FaithfulReplay(snapshot)
    for step in steps_of(snapshot.trace):
        replay.run(step)
    return SnapshotCheck(
        peaks=_peaks(replay.allocator, snapshot),
        recorded_reserved_peak_bytes=max(
            snapshot.reserved_before_bytes, int(snapshot.reserved_after().max())
        ),
        num_differing_steps=replay.num_differing,
        first_difference=replay.first_difference,
        is_layout_equal=_layout(replay.allocator.snapshot()) == _layout(snapshot.segments),
    )


def replay_snapshot(
    snapshot: Snapshot,
    capacity_bytes: int,
    settings: AllocatorSettings | None = None,
    *,
    memory_fraction: float | None = None,
    torch_version: tuple[int, int] | None = None,
) -> SnapshotPeaks:
    """Return what a recorded history would take on another device or under other options.

    Blocks that were in use before the recording began are allocated first. Releases that may
    have been the allocator's own retries are left to the simulated allocator. The replay stops
    where memory runs out.

    Args:
        snapshot: the recording.
        capacity_bytes: what the driver can give the process.
        settings: allocator options; the recorded ones by default.
        memory_fraction: limit of the process as a fraction of the capacity.
        torch_version: the release whose rules apply; the recorded one by default.

    Raises:
        BadTapeError: the history is empty.
    """
    _require_history(snapshot)
    allocator = CachingAllocator(
        capacity_bytes,
        snapshot.settings if settings is None else settings,
        memory_fraction=memory_fraction,
        torch_version=snapshot.torch_version if torch_version is None else torch_version,
    )
    live: dict[int, Block | None] = {}
    message = ""
    try:
        for address, size, stream in _earlier_allocations(snapshot):
            live[address] = allocator.malloc(size, stream)
        for step in steps_of(snapshot.trace):
            _run_freely(allocator, live, step)
    except DeviceOutOfMemoryError as error:
        message = str(error)
    return _peaks(allocator, snapshot, message)


def _run_freely(allocator: CachingAllocator, live: dict[int, Block | None], step: Step) -> None:
    """Repeat a recorded call, without its recorded consequences."""
    for address in step.completed:
        block = live.pop(-address, None)
        if block is not None:
            allocator.complete_events_of(block)
    if step.kind == "allocate" and not step.fails:
        live[step.address] = allocator.malloc(step.size, step.stream)
    elif step.kind == "empty_cache":
        allocator.empty_cache()
    elif step.kind == "free":
        block = live.pop(step.address, None)
        if block is not None and step.is_delayed:
            allocator.record_stream(block, -1 - block.address)
            live[-step.address] = block
        allocator.free(block)


def _earlier_allocations(snapshot: Snapshot) -> list[tuple[int, int, int]]:
    """Return address, requested bytes and stream of what was in use before the recording."""
    if snapshot.is_cold_start:
        return []
    start = start_of(snapshot)
    allocations = []
    for address, total, stream, _is_small in start.segments:
        allocations += [
            (block.address, block.requested, stream)
            for block in start.within(address, total)
            if not block.is_pending
        ]
    return allocations


class _FaithfulReplay:
    """Repeats recorded calls with recorded addresses, and compares what each one leaves."""

    def __init__(self, snapshot: Snapshot) -> None:
        _require_history(snapshot)
        self._recorded = snapshot.trace
        self._first = 0
        self._live: dict[int, Block] = {}
        self._pending: dict[int, Block] = {}
        self.num_differing = 0
        self.first_difference = ""
        self.allocator = CachingAllocator(
            _UNLIMITED_BYTES,
            snapshot.settings,
            torch_version=snapshot.torch_version,
            addresses=self._addresses(),
            trace=True,
        )
        if not snapshot.is_cold_start:
            if snapshot.settings.expandable_segments:
                raise BadTapeError(
                    "The recording began mid-run under expandable segments, so its start cannot "
                    "be rebuilt. Record from before the first CUDA allocation."
                )
            self._restore(start_of(snapshot))

    def run(self, step: Step) -> None:
        """Repeat one call and compare its entries."""
        self._first = step.first
        trace = self.allocator.state.trace
        assert trace is not None
        trace.clear()  # what earlier calls left was compared
        for address in step.completed:
            if address in self._pending:
                self.allocator.complete_events_of(self._pending.pop(address))
        if step.kind == "allocate":
            self._allocate(step)
        elif step.kind == "free":
            self._free(step)
        elif step.kind == "empty_cache":
            self.allocator.empty_cache()
        else:
            self.allocator.process_events()
        recorded = [e for e in self._recorded[step.first : step.end] if e.action != "snapshot"]
        replayed = list(trace)
        if _unordered(recorded) != _unordered(replayed):
            self.num_differing += 1
            if not self.first_difference:
                self.first_difference = (
                    f"entry {step.first}: recorded {_shown(recorded)}, replayed {_shown(replayed)}"
                )

    def _allocate(self, step: Step) -> None:
        driver = self.allocator.state.driver
        entries = self._recorded[step.first : step.end]
        if step.fails:
            # The driver's free bytes are recorded: that is what the process could still get.
            free_bytes = entries[-1].address
            driver.capacity_bytes = driver.used_bytes + driver_balance(entries) + free_bytes
        elif step.releases and self._is_retry(entries):
            driver.capacity_bytes = driver.used_bytes + self._level_reached(entries)
        elif step.releases:
            self.allocator.empty_cache()
        try:
            block = self.allocator.malloc(step.size, step.stream)
        except DeviceOutOfMemoryError:
            block = None
        driver.capacity_bytes = _UNLIMITED_BYTES
        if block is not None:
            self._live[step.address] = block

    def _is_retry(self, entries: tuple[TraceEntry, ...]) -> bool:
        """Return whether a release within an allocation cannot have been `empty_cache()`.

        It released other segments than that would, or followed a growth that failed halfway.
        """
        actions = [entry.action for entry in entries]
        if "segment_map" in actions and "segment_unmap" in actions:
            return actions.index("segment_map") < actions.index("segment_unmap")
        state = self.allocator.state
        cached = [*state.large.free_blocks(), *state.small.free_blocks()]
        whole = [block.address for block in cached if not block.is_split and not block.expandable]
        released = [entry.address for entry in entries if entry.action == "segment_free"]
        return state.settings.max_split_bytes is not None and whole != released

    def _level_reached(self, entries: tuple[TraceEntry, ...]) -> int:
        """Return the bytes, above those held before, that the driver could still give."""
        if not self.allocator.state.settings.expandable_segments:
            return driver_balance(entries)
        return max(accumulate(driver_balance([entry]) for entry in entries))

    def _free(self, step: Step) -> None:
        block = self._live.pop(step.address, None)
        if block is not None and step.is_delayed:
            # Any stream of its own will do: the file tells when the use ended, not where it was.
            self.allocator.record_stream(block, -1 - block.address)
            self._pending[step.address] = block
        self.allocator.free(block)

    def _addresses(self) -> Iterator[int]:
        """Yield where recorded segments began: entries of one call come in the same order."""
        while True:
            at = self._first + len(self.allocator.trace)
            entry = self._recorded[at] if at < len(self._recorded) else None
            if entry is None or entry.action not in {"segment_alloc", "segment_map"}:
                return
            if self.num_differing:
                return  # a recorded address might be in use by now
            yield entry.address

    def _restore(self, start: Start) -> None:
        """Put the allocator into the state in which the recording began."""
        state = self.allocator.state
        for address, total, stream, is_small in start.segments:
            pool = state.small if is_small else state.large
            state.driver.take(total)
            state.driver.avoid(address + total)
            state.count_growth(pool, total)
            state.statistics.segment.change(1, is_small=is_small)
            rest = Block(address, total, state.ranks.of_segment(address), stream, pool)
            pool.insert(rest)
            for live in start.within(address, total):
                rest = self._carve(rest, live)
        for pool in (state.large, state.small):
            is_small = pool is state.small
            for block in pool.free_blocks():
                if block.is_split:
                    state.statistics.inactive_split.change(1, is_small=is_small)
                    state.statistics.inactive_split_bytes.change(block.size, is_small=is_small)
        for live in start.live:
            if live.is_pending:
                block = self._live.pop(live.address)
                self.allocator.record_stream(block, -1 - block.address)
                self.allocator.free(block)
                self._pending[live.address] = block

    def _carve(self, rest: Block, live: LiveBlock) -> Block:
        """Return what is left of `rest` behind a live block that is cut out of it."""
        rest.pool.remove(rest)
        if live.address > rest.address:
            rest = self._cut(rest, live.address - rest.address, keep="front")
        behind = rest
        if rest.size > live.size:
            behind = self._cut(rest, live.size, keep="rear")
        self._live[live.address] = self.allocator.adopt(rest, live.requested)
        return behind

    def _cut(self, block: Block, offset: int, *, keep: Literal["front", "rear"]) -> Block:
        """Return the new rear of a block cut at `offset`, with one part put into the cache."""
        rear = self.allocator.state.ranks.piece(block, offset, block.size - offset)
        link_after(block, rear)
        block.size = offset
        block.pool.insert(block if keep == "front" else rear)
        return rear


def _require_history(snapshot: Snapshot) -> None:
    if not snapshot.trace:
        raise BadTapeError(
            "The snapshot holds no history to replay. Call "
            "torch.cuda.memory._record_memory_history() before the run, then dump it."
        )


def _peaks(allocator: CachingAllocator, snapshot: Snapshot, message: str = "") -> SnapshotPeaks:
    stats = allocator.stats()
    return SnapshotPeaks(
        num_events=len(snapshot.trace),
        is_cold_start=snapshot.is_cold_start,
        allocated_peak_bytes=stats["allocated_bytes.all.peak"],
        reserved_peak_bytes=stats["reserved_bytes.all.peak"],
        requested_peak_bytes=stats["requested_bytes.all.peak"],
        inactive_split_peak_bytes=stats["inactive_split_bytes.all.peak"],
        num_alloc_retries=stats["num_alloc_retries"],
        num_ooms=stats["num_ooms"],
        oom_message=message,
    )


def _layout(segments: tuple[SegmentRecord, ...]) -> list[tuple[int, int, list[tuple[int, str]]]]:
    """Return addresses, sizes and block states: what must be equal, and no stale figures."""
    return [
        (segment.address, segment.stream, [(block.size, block.state) for block in segment.blocks])
        for segment in segments
    ]


def _unordered(entries: list[TraceEntry]) -> list[TraceEntry]:
    """Return entries with each batch of completed frees sorted: its order is a hash table's."""
    ordered: list[TraceEntry] = []
    for is_batch, batch in groupby(entries, key=lambda entry: entry.action == "free_completed"):
        entries_of_batch = list(batch)
        ordered += sorted(entries_of_batch) if is_batch else entries_of_batch
    return ordered


def _shown(entries: list[TraceEntry]) -> str:
    """Return entries as one short phrase."""
    shown = [f"{entry.action} {entry.address:#x} {entry.size}" for entry in entries[-3:]]
    return ", ".join(shown) or "nothing"
