"""The blocks of a recorded allocator history, one by one, for pages that draw it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from memplan.blocks import NO_FRAMES, BlockLabel, BlockLives, LabelTable
from memplan.device.allocator_records import TraceEntry
from memplan.history_frames import MODULE, OPERATOR, PHASE, told_by
from memplan.tape import CATEGORIES
from memplan.trace.snapshot import Snapshot, driver_balance
from memplan.trace.snapshot_places import place_of

_ROUND = 512
_KNOWN = (*CATEGORIES, "unattributed")
_MOST_BANDS = 6
OTHER_LINES = "other lines"
BEFORE = "made before the history began"


def snapshot_blocks(
    rows: Sequence[Mapping[str, Any]], snapshot: Snapshot, title: str
) -> BlockLives:
    """Return every block of a history: those before it, those in it, and those that are left.

    Blocks are counted by category where entries tell one, else by the user's lines that asked for
    most.

    Args:
        rows: entries of one device's history as they stand in the file, those of `snapshot`.
        snapshot: read from them.
        title: names the recording.
    """
    found = _Blocks(rows, snapshot)
    labels = _banded(found)
    made, freed, num_bytes, label = (
        (np.array(column, dtype=np.int64) for column in zip(*found.blocks, strict=True))
        if found.blocks
        else (np.zeros(0, dtype=np.int64),) * 4
    )
    return BlockLives(
        title=title,
        origin=snapshot.origin,
        num_events=len(snapshot.trace),
        made=made,
        freed=freed,
        num_bytes=num_bytes,
        label=label,
        labels=labels,
        phases=tuple(found.phases),
        reserved_bytes=_reserved(snapshot),
    )


class _Blocks:
    """Blocks as rows of begin, end, bytes and label, in the order they end."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], snapshot: Snapshot) -> None:
        self.blocks: list[tuple[int, int, int, int]] = []
        self.phases: list[tuple[str, str, int]] = []
        self._table = LabelTable()
        self._known: dict[tuple[int, ...], tuple[BlockLabel, str]] = {}
        self._live: dict[int, tuple[int, int, int]] = {}
        for event, (entry, row) in enumerate(zip(snapshot.trace, rows, strict=True)):
            self._take(event, entry, row)
        end = len(snapshot.trace)
        for address, size in _standing(snapshot):
            begin, _, label = self._begun(address, size)
            self.blocks.append((begin, end, size, label))
        # What the end does not show was freed by an entry that the file lacks.
        self.blocks += [(begin, end, size, label) for begin, size, label in self._live.values()]

    def alive_at_peak(self) -> list[tuple[int, int, int, int]]:
        """Return the blocks that live when most bytes do."""
        changes = sorted(
            [(begin, size) for begin, _, size, _ in self.blocks]
            + [(end, -size) for _, end, size, _ in self.blocks]
        )
        held = most = peak = 0
        for event, change in changes:
            held += change
            if held > most:
                most, peak = held, event
        return [block for block in self.blocks if block[0] <= peak < block[1]]

    @property
    def labels(self) -> tuple[BlockLabel, ...]:
        return self._table.labels

    def _take(self, event: int, entry: TraceEntry, row: Mapping[str, Any]) -> None:
        if entry.action == "alloc":
            size = -(-entry.size // _ROUND) * _ROUND
            self._live[entry.address] = event, size, self._label(event, row)
        elif entry.action == "free_completed":
            size = -(-entry.size // _ROUND) * _ROUND
            begin, num_bytes, label = self._begun(entry.address, size)
            if begin < event:  # else it was freed before any entry left it alive
                self.blocks.append((begin, event, num_bytes, label))

    def _begun(self, address: int, size: int) -> tuple[int, int, int]:
        """Return begin, bytes and label of a live block that ends; made before the history if not.

        Args:
            address: of the block.
            size: bytes of a block that the history does not know.
        """
        if address in self._live:
            return self._live.pop(address)
        return 0, size, self._table.number(BlockLabel(band="", tensor=BEFORE, line=BEFORE))

    def _label(self, event: int, row: Mapping[str, Any]) -> int:
        frames = row.get("frames") or ()
        category = str(row.get("category", ""))
        # Frames are shared between entries, so that their identities tell equal stacks.
        key = (hash(category), *map(id, frames))
        if key not in self._known:
            self._known[key] = _told(frames, category)
        label, phase = self._known[key]
        period, _, name = phase.rpartition("/")
        if phase and (not self.phases or self.phases[-1][:2] != (period, name)):
            self.phases.append((period, name, event))
        return self._table.number(label)


def _told(frames: Sequence[Any], category: str) -> tuple[BlockLabel, str]:
    told = told_by(frames)
    place = place_of(frame for frame in frames if isinstance(frame, Mapping))
    label = BlockLabel(
        band=category if category in _KNOWN else "",
        module=told.get(MODULE, ""),
        operator=told.get(OPERATOR, ""),
        line="" if place == NO_FRAMES else place,
    )
    return label, told.get(PHASE, "")


def _banded(found: _Blocks) -> tuple[BlockLabel, ...]:
    """Return labels whose bands are told: a category, or of lines those that asked for most."""
    labels = found.labels
    if any(label.band for label in labels):
        return tuple(_with_band(label, label.band or "unattributed") for label in labels)
    held: dict[str, int] = {}
    for _, _, num_bytes, number in found.alive_at_peak():
        line = labels[number].line
        held[line] = held.get(line, 0) + num_bytes
    lines = [line for line in sorted(held, key=lambda line: -held[line]) if line]
    if not lines:
        return tuple(_with_band(label, "unattributed") for label in labels)
    shown = set(lines[:_MOST_BANDS])
    return tuple(
        _with_band(label, label.line if label.line in shown else OTHER_LINES) for label in labels
    )


def _with_band(label: BlockLabel, band: str) -> BlockLabel:
    line = "" if label.line == BEFORE else label.line
    return BlockLabel(
        band=band, tensor=label.tensor, module=label.module, operator=label.operator, line=line
    )


def _standing(snapshot: Snapshot) -> Iterator[tuple[int, int]]:
    for segment in snapshot.segments:
        for block in segment.blocks:
            if block.state != "inactive":
                yield block.address, block.size


def _reserved(snapshot: Snapshot) -> Any:
    """Return bytes held from the driver after each entry, int64 `[entries]`."""
    begun = snapshot.reserved_bytes - driver_balance(snapshot.trace)
    changes = [driver_balance((entry,)) for entry in snapshot.trace]
    return max(begun, 0) + np.cumsum(np.array(changes, dtype=np.int64))
