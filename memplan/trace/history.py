"""A real card's allocator history as a small file that can be shared and replayed anywhere.

A snapshot's entries are kept as columns (what happened, where, how much), with no stack; a free
that took effect at once is one row instead of two. A few ten thousand entries come to some tens
of kilobytes. Beside them stands a JSON header with the figures that were read with the history.

Source: entries as in `memplan.trace.snapshot`; the file is numpy's `.npz`, not compressed, inside
an `.xz`, which finds the repetition from step to step.
"""

from __future__ import annotations

import io
import lzma
import zipfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from memplan.device.allocator_records import (
    Action,
    BlockRecord,
    BlockState,
    SegmentRecord,
    TraceEntry,
)
from memplan.device.allocator_settings import AllocatorSettings
from memplan.errors import BadInputError, BadTapeError
from memplan.files import converted
from memplan.trace.snapshot import Snapshot
from memplan.trace.snapshot_history import History
from memplan.trace.snapshot_replay import check_snapshot

SCHEMA = "memplan.recording/1"
SUFFIX = ".npz.xz"
# A free that was requested and completed in one go; rows of other kinds are the allocator's own.
_FREED = "freed"
_KINDS: tuple[str, ...] = (*get_args(Action), _FREED)
_STATES: tuple[BlockState, ...] = get_args(BlockState)
# More than any recording has, so that a damaged or hostile file cannot fill the memory.
_MOST_BYTES = 1 << 30

Columns = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What was in force, which the option string alone may not say."""

    max_split_bytes: int | None
    garbage_collection_threshold: float
    expandable_segments: bool
    roundup_power2_divisions: tuple[int, ...]

    @classmethod
    def of(cls, settings: AllocatorSettings) -> _Settings:
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class _Allocator:
    torch_version: tuple[int, int]
    options: str
    settings: _Settings


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What stands beside the columns, as JSON."""

    schema: str
    facts: dict[str, Any]
    allocator: _Allocator | None = None


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What one measured case left: figures by name, and the allocator's history."""

    facts: dict[str, Any]
    """What was run, on what, and what was read: plain values, as JSON takes them."""
    snapshot: Snapshot | None = None
    """The history and the segments at its end; None where the device keeps none."""

    def save(self, path: Path) -> None:
        """Write the recording, whole or not at all.

        Raises:
            BadInputError: the file cannot be written.
        """
        columns: Columns = {}
        allocator = None
        if self.snapshot is not None:
            settings = self.snapshot.settings
            allocator = _Allocator(
                torch_version=self.snapshot.torch_version,
                options=settings.text,
                settings=_Settings.of(settings),
            )
            columns = _columns(self.snapshot)
        header = _Header(schema=SCHEMA, facts=self.facts, allocator=allocator)
        columns["header"] = np.frombuffer(msgspec.json.encode(header), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **columns)
        partial = path.with_name(path.name + ".part")
        try:
            partial.write_bytes(lzma.compress(buffer.getvalue()))
            partial.replace(path)
        except OSError as error:
            raise BadInputError(f"{path} cannot be written: {error.strerror}.") from None


@dataclass(frozen=True, kw_only=True)
class ReplayCheck:
    """A recorded history beside its replay through the simulated allocator; bytes."""

    num_differing_steps: int
    """Calls whose addresses, sizes or segments differ from the recorded ones."""
    first_difference: str
    is_layout_equal: bool
    """Whether all segments and blocks at the end are where they were recorded."""
    peaks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Recorded and replayed `allocated_peak_bytes` and `reserved_peak_bytes`, where recorded."""

    @property
    def difference_bytes(self) -> int:
        """The largest distance between a recorded and a replayed peak."""
        return max((abs(one - other) for one, other in self.peaks.values()), default=0)

    @property
    def is_exact(self) -> bool:
        """Whether the replay is the recording."""
        return not (self.num_differing_steps or self.difference_bytes) and self.is_layout_equal


def check_replay(recording: Recording) -> ReplayCheck:
    """Return how our allocator's replay of a recording compares with it.

    Raises:
        BadTapeError: the recording has no history.
    """
    if recording.snapshot is None:
        raise BadTapeError("The recording has no allocator history: its device keeps none.")
    check = check_snapshot(recording.snapshot)
    measured = recording.facts.get("measured", {})
    replayed = {
        "allocated_peak_bytes": check.peaks.allocated_peak_bytes,
        "reserved_peak_bytes": check.peaks.reserved_peak_bytes,
    }
    return ReplayCheck(
        num_differing_steps=check.num_differing_steps,
        first_difference=check.first_difference,
        is_layout_equal=check.is_layout_equal,
        peaks={
            name: (int(measured[name]), value)
            for name, value in replayed.items()
            if measured.get(name) is not None
        },
    )


def load_recording(path: Path) -> Recording:
    """Return a saved recording.

    Raises:
        BadTapeError: the file is missing, damaged, no recording, or of an unknown schema.
    """
    try:
        with lzma.open(path) as file:
            content = file.read(_MOST_BYTES)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        header: Any = msgspec.json.decode(columns.pop("header").tobytes())
        schema = header.get("schema")
        if schema != SCHEMA:
            raise BadTapeError(
                f"{path} has schema {schema!r}, but this memplan reads {SCHEMA!r}. "
                "Run the battery again, or use the memplan that wrote it."
            )
        known = converted(header, _Header)
        snapshot = None if known.allocator is None else _snapshot(columns, known.allocator)
        return Recording(facts=known.facts, snapshot=snapshot)
    except FileNotFoundError:
        raise BadTapeError(f"{path} does not exist. The battery writes recordings.") from None
    except (
        AttributeError, EOFError, IndexError, KeyError, OSError, TypeError, ValueError,
        lzma.LZMAError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise BadTapeError(
            f"{path} cannot be read as a recording ({type(error).__name__}). Run its case again."
        ) from None


def _columns(snapshot: Snapshot) -> Columns:
    """Return a snapshot as columns; addresses are counted from the lowest."""
    rows = _joined(snapshot.trace)
    free_bytes = [entry.address for kind, entry in rows if kind == "oom"]
    blocks = [block for segment in snapshot.segments for block in segment.blocks]
    segments = snapshot.segments
    places = [entry.address for kind, entry in rows if kind != "oom"]
    places += [segment.address for segment in segments] + [block.address for block in blocks]
    table = np.unique(np.array(places, dtype=np.int64))

    def index(addresses: list[int]) -> npt.NDArray[np.int32]:
        return np.searchsorted(table, addresses).astype(np.int32)

    return {
        "addresses": np.diff(table, prepend=table[:1]),
        "kind": np.array([_KINDS.index(kind) for kind, _ in rows], dtype=np.int8),
        "at": index([0 if kind == "oom" else entry.address for kind, entry in rows]),
        "size": np.array([entry.size for _, entry in rows], dtype=np.int64),
        "stream": _small([entry.stream for _, entry in rows]),
        "free_bytes": np.array(free_bytes, dtype=np.int64),
        "segment_at": index([segment.address for segment in segments]),
        "segment_blocks": np.array([len(segment.blocks) for segment in segments], dtype=np.int32),
        "segment_stream": _small([segment.stream for segment in segments]),
        "segment_small": np.array([one.segment_type == "small" for one in segments], dtype=bool),
        "segment_expandable": np.array([one.is_expandable for one in segments], dtype=bool),
        "segment_pool": np.array([one.segment_pool_id for one in segments], dtype=np.int64),
        "block_size": np.array([block.size for block in blocks], dtype=np.int64),
        "block_requested": np.array([block.requested_size for block in blocks], dtype=np.int64),
        "block_state": np.array([_STATES.index(block.state) for block in blocks], dtype=np.int8),
    }


def _small(streams: list[int]) -> npt.NDArray[np.int64]:
    """Return streams as they are; they are handles, few of them, and compress to nothing."""
    return np.array(streams, dtype=np.int64)


def _joined(trace: History) -> list[tuple[str, TraceEntry]]:
    """Return entries with their kinds, frees that took effect at once as one."""
    rows: list[tuple[str, TraceEntry]] = []
    for entry in trace:
        before = rows[-1] if rows else None
        if (
            entry.action == "free_completed"
            and before is not None
            and before[0] == "free_requested"
            and before[1][1:] == entry[1:]
        ):
            rows[-1] = (_FREED, before[1])
        else:
            rows.append((entry.action, entry))
    return rows


def _snapshot(columns: Columns, allocator: _Allocator) -> Snapshot:
    table = np.cumsum(columns["addresses"])
    # Segments of a real process never lie at 0; neither should these.
    table += (1 << 33) - (int(table[0]) if len(table) else 0)
    version = allocator.torch_version
    settings = replace(
        AllocatorSettings.parse(allocator.options, version), **vars(allocator.settings)
    )
    return Snapshot(
        torch_version=version,
        segments=_segments(columns, table),
        trace=History(_entries(columns, table)),
        settings=settings,
    )


def _entries(columns: Columns, table: npt.NDArray[np.int64]) -> list[TraceEntry]:
    entries: list[TraceEntry] = []
    free_bytes = iter(columns["free_bytes"].tolist())
    rows = zip(*(columns[name].tolist() for name in ("kind", "at", "size", "stream")), strict=True)
    for kind, at, size, stream in rows:
        name: Any = _KINDS[kind]
        if name == "oom":
            entries.append(TraceEntry("oom", next(free_bytes), size, stream))
        elif name == _FREED:
            place = int(table[at])
            entries.append(TraceEntry("free_requested", place, size, stream))
            entries.append(TraceEntry("free_completed", place, size, stream))
        else:
            entries.append(TraceEntry(name, int(table[at]), size, stream))
    return entries


def _segments(columns: Columns, table: npt.NDArray[np.int64]) -> tuple[SegmentRecord, ...]:
    blocks = iter(
        zip(*(columns[f"block_{name}"].tolist() for name in ("size", "requested", "state")),
            strict=True)
    )  # fmt: skip
    names = ("at", "blocks", "stream", "small", "expandable", "pool")
    rows = zip(*(columns[f"segment_{name}"].tolist() for name in names), strict=True)
    segments = []
    for at, num_blocks, stream, is_small, is_expandable, pool in rows:
        address = place = int(table[at])
        records = []
        for _ in range(num_blocks):
            size, requested, state = next(blocks)
            records.append(BlockRecord(place, size, requested, _STATES[state]))
            place += size
        held = [record for record in records if record.state != "inactive"]
        segments.append(
            SegmentRecord(
                address=address,
                total_size=place - address,
                allocated_size=sum(r.size for r in held if r.state == "active_allocated"),
                active_size=sum(record.size for record in held),
                requested_size=sum(record.requested_size for record in held),
                stream=stream,
                segment_type="small" if is_small else "large",
                segment_pool_id=(int(pool[0]), int(pool[1])),
                is_expandable=is_expandable,
                blocks=tuple(records),
            )
        )
    return tuple(segments)
