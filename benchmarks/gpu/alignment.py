"""A predicted and a measured history side by side, event by event.

Both are lists of signed sizes: a block taken, or given back. What is given back between two
allocations is sorted by size, as its order changes nothing. Where the lists part, the nearest
place is looked for at which both go on alike for a few events, and what lies between is a
difference.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.gpu.predict import PredictedLife
from memplan import tape as tapes
from memplan.device.allocator_records import TraceEntry

# Events that must agree for both lists to be taken as together again, and how far that is sought.
_TOGETHER = 6
_FARTHEST = 400


@dataclass(frozen=True, slots=True)
class Event:
    """One block taken (positive) or given back (negative)."""

    size: int
    """Requested bytes."""
    operator: str = ""
    section: str = ""
    convolution: int | None = None
    """Index among the tape's convolutions of which a predicted one is a workspace."""


@dataclass(frozen=True)
class Difference:
    """A stretch that one list has and the other has not, or has otherwise."""

    at: int
    """Index of the first predicted event concerned."""
    operator: str
    section: str
    predicted: tuple[int, ...]
    measured: tuple[int, ...]


@dataclass
class Alignment:
    """How two histories compare."""

    num_predicted: int = 0
    num_measured: int = 0
    num_alike: int = 0
    differences: list[Difference] = field(default_factory=list)
    lost_at: int | None = None
    """Predicted event after which the two never came together again; None if they did."""

    @property
    def alike_fraction(self) -> float:
        """Part of all events that have their twin."""
        return 2 * self.num_alike / max(1, self.num_predicted + self.num_measured)

    def grouped(self) -> list[tuple[Difference, int]]:
        """Return different differences with how often each occurs, in order of appearance."""

        def key(one: Difference) -> tuple[str, str, tuple[int, ...], tuple[int, ...]]:
            return one.operator, one.section, one.predicted, one.measured

        counts = Counter(key(one) for one in self.differences)
        first = {key(one): one for one in reversed(self.differences)}
        return [(one, counts[key(one)]) for one in sorted(first.values(), key=lambda d: d.at)]


def predicted_events(life: PredictedLife) -> list[Event]:
    """Return what a predicted life asks of the allocator; requests of 0 bytes ask nothing."""
    program, tape = life.program, life.tape
    operators = tape.operators
    rows = np.maximum(tape.events.operator[program.rows], 0)
    names = operators.name[rows].tolist()
    sections = tape.events.section[program.rows].tolist()
    of_block: dict[int, int] = {}
    found: list[Event] = []
    columns = (program.kinds, program.blocks, life.sizes, program.asks, program.about)
    for kind, block, size, asks, about, name, section in zip(
        *(column.tolist() for column in columns), names, sections, strict=True
    ):
        convolution = about if asks == tapes.CONVOLUTION else None
        where = tape.operator_names[name], tapes.SECTIONS[section], convolution
        if kind == tapes.FREE:
            size = of_block.pop(block)  # noqa: PLW2901 - a free has the size of what it frees
            found += [Event(-size, *where)] if size else []
        elif kind in (tapes.ALLOCATE, tapes.SCRATCH):
            found += [Event(size, *where)] if size else []
            if kind == tapes.ALLOCATE:
                of_block[block] = size
            elif size:
                found.append(Event(-size, *where))
    return sorted_frees(found)


def measured_events(trace: Iterable[TraceEntry]) -> list[Event]:
    """Return what a recorded history asked of the allocator."""
    found: list[Event] = []
    for entry in trace:
        if entry.action == "alloc":
            found.append(Event(entry.size))
        elif entry.action == "free_requested":
            found.append(Event(-entry.size))
    return sorted_frees(found)


def sorted_frees(events: list[Event]) -> list[Event]:
    """Return events with what is given back between two allocations sorted by size."""
    runs = itertools.groupby(events, key=lambda event: event.size < 0)
    ordered = (
        sorted(run, key=lambda event: event.size) if is_free else list(run) for is_free, run in runs
    )
    return [event for run in ordered for event in run]


def align(predicted: Sequence[Event], measured: Sequence[Event]) -> Alignment:
    """Return how two lists of events compare."""
    found = Alignment(len(predicted), len(measured))
    mine, its = [e.size for e in predicted], [e.size for e in measured]
    i = j = 0
    while i < len(mine) and j < len(its):
        if mine[i] == its[j]:
            found.num_alike += 1
            i, j = i + 1, j + 1
            continue
        step = _meeting(mine, its, i, j)
        if step is None:
            found.lost_at = i
            break
        found.differences.append(_difference(predicted, its, (i, i + step[0]), (j, j + step[1])))
        i, j = i + step[0], j + step[1]
    if i < len(mine) or j < len(its):
        # Of what is left only the beginning is told.
        ends = min(len(mine), i + _TOGETHER), min(len(its), j + _TOGETHER)
        found.differences.append(_difference(predicted, its, (i, ends[0]), (j, ends[1])))
    return found


def _difference(
    predicted: Sequence[Event], its: Sequence[int], rows: tuple[int, int], others: tuple[int, int]
) -> Difference:
    place = predicted[min(rows[0], len(predicted) - 1)] if predicted else Event(0)
    return Difference(
        at=rows[0],
        operator=place.operator,
        section=place.section,
        predicted=tuple(event.size for event in predicted[slice(*rows)]),
        measured=tuple(its[slice(*others)]),
    )


def _meeting(mine: Sequence[int], its: Sequence[int], i: int, j: int) -> tuple[int, int] | None:
    """Return the least steps in both lists after which they go on alike; None if none are near."""
    for total in range(1, 2 * _FARTHEST):
        for step in range(max(0, total - _FARTHEST), min(total, _FARTHEST) + 1):
            a, b = i + step, j + total - step
            ahead = min(_TOGETHER, len(mine) - a, len(its) - b)
            if ahead <= 0:
                if a == len(mine) and b == len(its):
                    return step, total - step
                continue
            if mine[a] == its[b] and mine[a : a + ahead] == its[b : b + ahead]:
                return step, total - step
    return None
