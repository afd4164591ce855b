"""Writes further events onto a recorded tape, and leaves others out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.tape import Events, Operators, Tape


@dataclass(frozen=True)
class Place:
    """Where events are written: before a row of the tape, in a section and phase."""

    editor: TapeEditor
    position: int
    section: str
    phase: str

    def allocate(
        self, operator: str, num_bytes: int, category: str, *, moved_bytes: int = 0
    ) -> int:
        """Write an allocation and return its block."""
        return self.editor.allocate(self, operator, num_bytes, category, moved_bytes)

    def free(self, operator: str, block: int) -> None:
        """Write the end of a block."""
        self.editor.free(self, operator, block)

    def temporary(self, operator: str, num_bytes: int) -> None:
        """Write a block that is allocated and freed at once."""
        self.free(operator, self.allocate(operator, num_bytes, "temporary"))


class TapeEditor:
    """Collects changes to a tape; what was recorded keeps its block ids and operator rows.

    Args:
        tape: left as it is.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._positions: list[int] = []
        self._events: list[tuple[int, ...]] = []
        self._operators: list[tuple[int, ...]] = []
        self._last: tuple[str, str, str] | None = None
        self._categories: list[int] = []
        self._names = list(tape.operator_names)
        self._dropped: list[int] = []
        self.first_buckets: list[int] = []
        """Blocks that a later change frees."""

    def at(self, position: int, section: str, phase: str) -> Place:
        """Return a place before the event of that row; places at one row keep their order."""
        return Place(self, position, section, phase)

    def operator(self, name: str, section: str, phase: str, moved_bytes: int = 0) -> int:
        """Write an operator that belongs to no module and return its row."""
        if name not in self._names:
            self._names.append(name)
        row = (
            self._names.index(name),
            -1,
            tapes.SECTIONS.index(section),
            tapes.PHASES.index(phase),
            0,
            moved_bytes,
        )
        self._operators.append(row)
        self._last = (name, section, phase)
        return len(self._tape.operators.name) + len(self._operators) - 1

    def drop(self, row: int) -> None:
        """Leave an event of the recorded tape out."""
        self._dropped.append(row)

    def allocate(
        self, place: Place, operator: str, num_bytes: int, category: str, moved_bytes: int
    ) -> int:
        """Write an allocation at a place and return its block."""
        block = len(self._tape.block_category) + len(self._categories)
        self._categories.append(tapes.CATEGORY_INDEX[category])
        row = self.operator(operator, place.section, place.phase, moved_bytes)
        self._write(place, tapes.ALLOCATE, block, num_bytes, row)
        return block

    def free(self, place: Place, operator: str, block: int) -> None:
        """Write the end of a block at a place; it belongs to the operator before, if it can."""
        row = len(self._tape.operators.name) + len(self._operators) - 1
        if self._last != (operator, place.section, place.phase):
            row = self.operator(operator, place.section, place.phase)
        self._write(place, tapes.FREE, block, 0, row)

    def _write(self, place: Place, kind: int, block: int, num_bytes: int, operator: int) -> None:
        section = tapes.SECTIONS.index(place.section)
        self._positions.append(place.position)
        self._events.append((kind, block, num_bytes, tapes.KNOWN, 0, operator, section))

    def finish(self, keep: npt.NDArray[np.bool_] | None = None) -> Tape:
        """Return the changed tape.

        Args:
            keep: by event of the recorded tape, whether it stays; None keeps all but the dropped.
        """
        tape = self._tape
        kept = np.ones(len(tape), dtype=bool) if keep is None else keep.copy()
        kept[self._dropped] = False
        positions = np.array(self._positions, dtype=np.int64)
        stays = np.insert(kept, positions, np.ones(len(positions), dtype=bool))
        names = ("kind", "block", "requested_bytes", "asks", "about", "operator", "section")
        written = _columns(self._events, len(names))
        events: dict[str, Any] = {}
        for name, values in zip(names, written, strict=True):
            column = getattr(tape.events, name)
            events[name] = np.insert(column, positions, values.astype(column.dtype))[stays]
        labels = ("name", "module", "section", "phase", "flops", "moved_bytes")
        operators: dict[str, Any] = {}
        for name, values in zip(labels, _columns(self._operators, len(labels)), strict=True):
            column = getattr(tape.operators, name)
            operators[name] = np.concatenate([column, values.astype(column.dtype)])
        operators["line"] = _lengthened(tape.operators.line, len(self._operators))
        return replace(
            tape,
            events=Events(**events),
            operators=Operators(**operators),
            block_category=np.concatenate(
                [tape.block_category, np.array(self._categories, dtype=np.int8)]
            ),
            operator_names=tuple(self._names),
            block_tensor=_lengthened(tape.block_tensor, len(self._categories)),
        )


def _lengthened(column: tapes.Int32 | None, count: int) -> tapes.Int32 | None:
    """Return a column that names nothing of so many further rows."""
    if column is None:
        return None
    return np.append(column, np.full(count, -1, dtype=column.dtype))


def _columns(rows: list[tuple[int, ...]], width: int) -> Any:
    """Return rows as int64 columns."""
    return np.array(rows, dtype=np.int64).reshape(-1, width).T
