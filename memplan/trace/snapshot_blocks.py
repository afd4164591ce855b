"""The blocks of a recorded allocator history, one by one, for pages that draw it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from memplan.blocks import NO_FRAMES, BlockLabel, BlockLives, LabelTable
from memplan.device.allocator_records import TraceEntry
from memplan.history_frames import MODULE, OPERATOR, PHASE, told_by
from memplan.tape import CATEGORIES
from memplan.trace.snapshot import Snapshot
from memplan.trace.snapshot_history import Asked, History
from memplan.trace.snapshot_places import place_of

_ROUND = 512
_KNOWN = (*CATEGORIES, "unattributed")
_MOST_BANDS = 6
OTHER_LINES = "other lines"
BEFORE = "made before the history began"


def snapshot_blocks(snapshot: Snapshot, title: str) -> BlockLives:
    """Return every block of a history: those before it, those in it, and those that are left.

    Blocks are counted by category where entries tell one, else by the user's lines that asked for
    most.

    Args:
        snapshot: one device's part of a file.
        title: names the recording.
    """
    found = _Blocks(snapshot)
    labels = _banded(found)
    made, freed, num_bytes, label = found.columns()
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
        reserved_bytes=snapshot.reserved_after(),
    )


class _Blocks:
    """Blocks as columns of begin, end, bytes and label, in the order they end."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.phases: list[tuple[str, str, int]] = []
        self._columns = tuple(array("q") for _ in range(4))
        self._table = LabelTable()
        self._known: dict[int, tuple[BlockLabel, str]] = {}
        self._live: dict[int, tuple[int, int, int]] = {}
        for event, entry in enumerate(snapshot.trace):
            self._take(event, entry, snapshot.trace)
        end = len(snapshot.trace)
        for address, size in _standing(snapshot):
            begin, _, label = self._begun(address, size)
            self._add(begin, end, size, label)
        # What the end does not show was freed by an entry that the file lacks.
        for begin, size, label in self._live.values():
            self._add(begin, end, size, label)

    def columns(self) -> tuple[Any, ...]:
        """Return begin, end, bytes and label of every block, int64 `[blocks]` each."""
        return tuple(np.array(column, dtype=np.int64) for column in self._columns)

    def at_peak(self) -> Iterator[tuple[int, int]]:
        """Yield bytes and label of the blocks that live when most bytes do."""
        begin, end, num_bytes, label = self.columns()
        held = np.zeros(int(end.max(initial=0)) + 1, dtype=np.int64)
        np.add.at(held, begin, num_bytes)
        np.subtract.at(held, end, num_bytes)
        peak = int(np.cumsum(held).argmax())
        alive = (begin <= peak) & (peak < end)
        yield from zip(num_bytes[alive].tolist(), label[alive].tolist(), strict=True)

    @property
    def labels(self) -> tuple[BlockLabel, ...]:
        return self._table.labels

    def _add(self, *block: int) -> None:
        for column, value in zip(self._columns, block, strict=True):
            column.append(value)

    def _take(self, event: int, entry: TraceEntry, history: History) -> None:
        if entry.action == "alloc":
            size = -(-entry.size // _ROUND) * _ROUND
            self._live[entry.address] = event, size, self._label(event, history.asked(event))
        elif entry.action == "free_completed":
            size = -(-entry.size // _ROUND) * _ROUND
            begin, num_bytes, label = self._begun(entry.address, size)
            if begin < event:  # else it was freed before any entry left it alive
                self._add(begin, event, num_bytes, label)

    def _begun(self, address: int, size: int) -> tuple[int, int, int]:
        """Return begin, bytes and label of a live block that ends; made before the history if not.

        Args:
            address: of the block.
            size: bytes of a block that the history does not know.
        """
        if address in self._live:
            return self._live.pop(address)
        return 0, size, self._table.number(BlockLabel(band="", tensor=BEFORE, line=BEFORE))

    def _label(self, event: int, asked: Asked) -> int:
        key = id(asked)  # one object for all of a history that were asked for alike
        if key not in self._known:
            self._known[key] = _told(asked)
        label, phase = self._known[key]
        period, _, name = phase.rpartition("/")
        if phase and (not self.phases or self.phases[-1][:2] != (period, name)):
            self.phases.append((period, name, event))
        return self._table.number(label)


def _told(asked: Asked) -> tuple[BlockLabel, str]:
    category = asked.category
    frames = [frame for frame in asked.frames if isinstance(frame, Mapping)]
    told = told_by(frame for frame in frames if type(frame.get("name", "")) is str)
    place = place_of(iter(frames))
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
    for num_bytes, number in found.at_peak():
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
