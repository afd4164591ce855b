"""Two tapes of the same operators brought to one structure.

Some operators take a temporary only from some size on: a reduction that is shared by several
thread blocks, a copy that a small tensor does not need. Such tapes run the same operators and keep
the same tensors; they differ in blocks that an operator allocates and frees itself. Those are
given to the tape that lacks them with 0 bytes, which the allocator takes as nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from memplan.tape import ALLOCATE, FREE, SCRATCH, Events, Int64, Tape


def same_structure(first: Tape, second: Tape) -> bool:
    """Return whether two tapes are the same program with other sizes."""
    return (
        len(first) == len(second)
        and same_operators(first, second)
        and all(
            np.array_equal(getattr(first.events, name), getattr(second.events, name))
            for name in ("kind", "block", "asks", "about", "operator", "section")
        )
    )


def same_operators(first: Tape, second: Tape) -> bool:
    """Return whether two tapes run the same operators, whatever memory these take."""
    return (
        first.operator_names == second.operator_names
        and all(
            np.array_equal(getattr(first.operators, name), getattr(second.operators, name))
            for name in ("name", "section", "phase")
        )
        and len(first.convolutions) == len(second.convolutions)
        and all(
            one.with_batch(1) == other.with_batch(1)
            for one, other in zip(first.convolutions, second.convolutions, strict=True)
        )
        and len(first.launches) == len(second.launches)
        and all(
            one.is_like(other) for one, other in zip(first.launches, second.launches, strict=True)
        )
    )


def aligned(first: Tape, second: Tape) -> tuple[Tape, Tape] | None:
    """Return two tapes as programs of one structure, each with its own sizes; None if they differ.

    An operator that takes temporaries in both takes at least those of the one in the other, in
    the same places.
    """
    if same_structure(first, second):
        return first, second
    if not same_operators(first, second):
        return None
    rows = _matched(_View(first), _View(second))
    if rows is None:
        return None
    return _spread(first, second, rows), _spread(second, first, rows[:, ::-1])


def _spread(tape: Tape, other: Tape, rows: Int64) -> Tape:
    """Return a tape with an event for each pair of rows, of 0 bytes where it has none.

    Args:
        tape: whose sizes count.
        other: gives the events the tape lacks.
        rows: `[events, 2]`, rows of the tape and of the other, -1 for none.
    """
    own, others = rows[:, 0], rows[:, 1]
    has = own >= 0

    def column(name: str) -> Int64:
        mine, theirs = getattr(tape.events, name), getattr(other.events, name)
        merged: Int64 = np.where(has, mine[own], theirs[others])
        return merged

    kind = column("kind")
    # Blocks are numbered as they first appear, whichever tape they are of.
    keys = np.where(has, tape.events.block[own], -1 - other.events.block[others])
    _, first_row, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first_row))
    block = order[inverse]
    of_block = np.zeros(len(order), dtype=tape.block_category.dtype)
    lacks = np.where(has, 0, others)
    of_block[block] = np.where(
        has,
        tape.block_category[tape.events.block[own]],
        other.block_category[other.events.block[lacks]],
    )
    events = Events(
        kind=kind.astype(tape.events.kind.dtype),
        block=block.astype(tape.events.block.dtype),
        requested_bytes=np.where(has, tape.events.requested_bytes[own], 0),
        asks=column("asks").astype(tape.events.asks.dtype),
        about=column("about").astype(tape.events.about.dtype),
        operator=column("operator").astype(tape.events.operator.dtype),
        section=column("section").astype(tape.events.section.dtype),
    )
    # Blocks have other numbers now, and some are the other tape's.
    return replace(tape, events=events, block_category=of_block, block_tensor=None)


class _View:
    """A tape's events by operator."""

    def __init__(self, tape: Tape) -> None:
        events = tape.events
        self.kind = events.kind.tolist()
        self.block = events.block.tolist()
        self.question = list(zip(events.asks.tolist(), events.about.tolist(), strict=True))
        bounds = np.searchsorted(events.operator, np.arange(-1, len(tape.operators.name) + 1))
        self.bounds = bounds.tolist()
        self.is_sorted = bool(np.all(np.diff(events.operator) >= 0))

    def rows(self, operator: int) -> range:
        return range(self.bounds[operator], self.bounds[operator + 1])

    def temporaries(self, rows: range) -> dict[int, tuple[int, int]]:
        """Return, for blocks allocated and freed in these rows, the firm events before each."""
        opened: dict[int, int] = {}
        closed: set[int] = set()
        for row in rows:
            if self.kind[row] == ALLOCATE:
                opened[self.block[row]] = row
            elif self.kind[row] == FREE and self.block[row] in opened:
                closed.add(self.block[row])
        places: dict[int, tuple[int, int]] = {}
        firm = 0
        for row in rows:
            block = self.block[row]
            if block not in closed:
                firm += 1
            elif self.kind[row] == ALLOCATE:
                places[block] = (firm, firm)
            else:
                places[block] = (places[block][0], firm)
        return places


@dataclass
class _Pairs:
    """Which rows and blocks of two tapes answer to each other, so far."""

    rows: list[tuple[int, int]]
    blocks: dict[int, int]

    def add(self, one: _View, row: int, other: _View, its_row: int) -> bool:
        """Pair two events; return whether they do the same to the same block."""
        if (one.kind[row], one.question[row]) != (other.kind[its_row], other.question[its_row]):
            return False
        if one.kind[row] in (ALLOCATE, SCRATCH):
            self.blocks[one.block[row]] = other.block[its_row]
        self.rows.append((row, its_row))
        return bool(self.blocks.get(one.block[row]) == other.block[its_row])


def _matched(one: _View, other: _View) -> Int64 | None:
    """Return the rows of both tapes, event by event, -1 where one has none; None if impossible."""
    pairs = _Pairs([], {})
    if not (one.is_sorted and other.is_sorted):
        return None
    for operator in range(len(one.bounds) - 1):
        rows, its_rows = one.rows(operator), other.rows(operator)
        if len(rows) == len(its_rows):
            if not all(
                pairs.add(one, row, other, its_row)
                for row, its_row in zip(rows, its_rows, strict=True)
            ):
                return None
        elif not _merge(pairs, one, rows, other, its_rows):
            return None
    return np.array(pairs.rows, dtype=np.int64).reshape(-1, 2)


def _merge(pairs: _Pairs, one: _View, rows: range, other: _View, its_rows: range) -> bool:
    """Pair the events of one operator of which one tape has more temporaries."""
    if len(rows) < len(its_rows):
        few, many = one.temporaries(rows), other.temporaries(its_rows)
    else:
        few, many = other.temporaries(its_rows), one.temporaries(rows)
    lacking = _lacking(few, many)
    if lacking is None:
        return False
    longer, shorter = (other, its_rows), (one, rows)
    if len(rows) > len(its_rows):
        longer, shorter = (one, rows), (other, its_rows)
    remaining: Iterator[int] = iter(shorter[1])
    for row in longer[1]:
        absent = longer[0].block[row] in lacking
        match = -1 if absent else next(remaining, None)
        if match is None:
            return False
        own, its = (row, match) if longer[0] is one else (match, row)
        if absent:
            pairs.rows.append((own, its))
        elif not pairs.add(one, own, other, its):
            return False
    return next(remaining, None) is None


def _lacking(few: dict[int, tuple[int, int]], many: dict[int, tuple[int, int]]) -> set[int] | None:
    """Return the temporaries that only the longer list has, its places being kept in order."""
    lacking = set()
    places = iter(few.values())
    place = next(places, None)
    for block, its_place in many.items():
        if place is not None and its_place == place:
            place = next(places, None)
        else:
            lacking.add(block)
    return None if place is not None else lacking
