"""Memory at any batch size, from tapes recorded at a few.

The smallest honest number of stretches: in each the tapes have one structure, but for temporaries
that an operator takes from some size on, and bytes are lines in the batch. Where an operator's
bytes are no line, the fit says which operator, and by how much it was off where it was checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from memplan.fit.align import aligned
from memplan.fit.piece import Piece
from memplan.fit.program import EveryBatch, Fit
from memplan.tape import Tape

__all__ = ["EveryBatch", "Fit", "Piece", "RecordMany", "fit"]

# So many recordings of which no two run the same operators, and one more beside them, mean that
# each batch has operators of its own.
_FEWEST_TO_DIFFER = 4
# More recordings than this to find the stretches of a range mean that its operators change nearly
# as often: a loop over parts of the batch has hundreds, and only few batches may be asked about.
_MOST_RECORDED = 64

# Returns the tapes of those batches that can be recorded.
RecordMany = Callable[[Sequence[int]], dict[int, Tape]]


def fit(
    record_many: RecordMany,
    smallest: int,
    largest: int,
    third_batch: Callable[[Tape, Tape], int] | None = None,
    *,
    mixes: bool = True,
) -> Fit | EveryBatch:
    """Return the fit over a range of micro-batch sizes, recording as few tapes as it can.

    The ends are recorded; where two tapes differ in structure the stretch between is halved until
    its parts agree. One more tape checks structure and bytes, and extends the range if it lies
    beyond it. In every stretch odd and even batches are among those recorded, so that a structure
    that alternates is seen; it makes two stretches that interleave.

    Args:
        record_many: returns tapes for several batches, at once if it can.
        smallest: first micro-batch size, >= 1.
        largest: last micro-batch size, >= smallest.
        third_batch: chooses the batch of the checking tape from the two at the ends, give or take
            one; None takes one at a third of the range.
        mixes: whether odd and even batches are to be among those recorded of each stretch.

    Batches that cannot be recorded are passed over, the ends excepted. Where the structure changes
    too often to be found by few recordings, each batch is recorded when it is asked about.
    """
    tapes = _Tapes(record_many)
    tapes.record(smallest, largest)
    third = (
        third_batch(tapes[smallest], tapes[largest])
        if third_batch is not None
        else smallest + (largest - smallest) // 3
    )
    # Most often batch 1 is the odd one: its tensors are contiguous in every layout.
    low = smallest if tapes.are_alike(smallest, largest) else min(smallest + 1, largest)
    if mixes and largest > low + 1 and low % 2 == largest % 2 == third % 2:
        third += -1 if third == largest else 1
    tapes.record(low, third)
    if len(tapes.batches) == _FEWEST_TO_DIFFER - 1 and tapes.differ_throughout():
        tapes.record(smallest + (largest - smallest) // 3)
    if len(tapes.batches) >= _FEWEST_TO_DIFFER and tapes.differ_throughout():
        tapes.record(min(low + 1, largest))
        if len(tapes.batches) > _FEWEST_TO_DIFFER and tapes.differ_throughout():
            return EveryBatch(record_many, {batch: tapes[batch] for batch in tapes.batches})
    last = max(largest, third) if tapes.has(third) else largest
    spans = _checked(tapes, smallest, last, mixes=mixes)
    if len(tapes.batches) > _MOST_RECORDED:
        return EveryBatch(record_many, {batch: tapes[batch] for batch in tapes.batches})
    pieces = tuple(tapes.piece(span) for span in spans)
    fitted = Fit(pieces, tuple(tapes.batches), {})
    for batch in tapes.batches:
        fitted = fitted.learned(tapes[batch])
    return fitted


class _Span(NamedTuple):
    """The batches of a stretch."""

    first: int
    last: int
    step: int = 1


class _Tapes:
    """Tapes by batch, recorded when they are first needed."""

    def __init__(self, record_many: RecordMany) -> None:
        self._record_many = record_many
        self._tapes: dict[int, Tape] = {}
        self._asked: set[int] = set()
        self._united: dict[tuple[int, ...], Tape | None] = {}

    @property
    def batches(self) -> list[int]:
        return sorted(self._tapes)

    def record(self, *batches: int) -> None:
        missing = sorted(set(batches) - self._asked)
        if missing:
            self._asked |= set(missing)
            self._tapes |= self._record_many(missing)

    def has(self, batch: int) -> bool:
        """Return whether a batch, recorded now if need be, can be."""
        self.record(batch)
        return batch in self._tapes

    def __getitem__(self, batch: int) -> Tape:
        self.record(batch)
        return self._tapes[batch]

    def within(self, low: int, high: int, step: int = 1) -> list[int]:
        """Return the recorded batches from one to another, both included."""
        return [batch for batch in self.batches if batch in range(low, high + 1, step)]

    def are_alike(self, *batches: int) -> bool:
        """Return whether tapes, recorded now if need be, can be given one structure."""
        self.record(*batches)
        recorded = all(map(self.has, batches))
        return recorded and self._unite(tuple(sorted(set(batches)))) is not None

    def differ_throughout(self) -> bool:
        """Return whether no two of the recorded tapes can be given one structure."""
        return not any(self.are_alike(*pair) for pair in itertools.combinations(self.batches, 2))

    def _unite(self, batches: tuple[int, ...]) -> Tape | None:
        """Return the first tape with every event that any of them has; None if they differ."""
        if batches not in self._united:
            united: Tape | None = self._tapes[batches[0]]
            for batch in batches[1:]:
                pair = aligned(united, self._tapes[batch]) if united is not None else None
                united = pair[0] if pair else None
            self._united[batches] = united
        return self._united[batches]

    def piece(self, span: _Span) -> Piece:
        """Return the program of a stretch, with the structure of all tapes recorded in it."""
        first, last, step = span
        self.record(first, last)
        united = self._unite(tuple(self.within(first, last, step)))
        assert united is not None, span
        pair = aligned(self._tapes[last], united)
        assert pair is not None, span
        low = replace(united, description=self._tapes[first].description)
        return Piece(low, low if first == last else pair[0], step)

    def are_mixed(self, span: _Span) -> bool:
        """Return whether both odd and even batches are among those recorded of a stretch."""
        return {0, 1} == {batch % 2 for batch in self.within(span.first, span.last)}


def _checked(tapes: _Tapes, low: int, high: int, *, mixes: bool) -> list[_Span]:
    """Return the stretches of a range, where wished with odd and even batches recorded in each."""
    while True:
        spans = _spans(tapes, low, high)
        if not mixes or len(tapes.batches) > _MOST_RECORDED:
            return spans
        unchecked = [
            span.first + 1
            for span in spans
            if span.step == 1 and span.last > span.first + 1 and not tapes.are_mixed(span)
        ]
        unchecked = [batch for batch in unchecked if tapes.has(batch)]
        if not unchecked:
            return spans


def _spans(tapes: _Tapes, low: int, high: int) -> list[_Span]:
    """Return the stretches from one batch to another, which every tape recorded between fits."""
    tapes.record(low, high)
    if tapes.are_alike(*tapes.within(low, high)):
        return [_Span(low, high)]
    if high - low == 1 or len(tapes.batches) > _MOST_RECORDED:
        return [_Span(low, low), _Span(high, high)]
    interleaved = _interleaved(tapes, low, high)
    if interleaved:
        return interleaved
    middle = _middle(low, high, tapes.within(low + 1, high - 1))
    if not tapes.has(middle):
        return [_Span(low, low), _Span(high, high)]
    return _joined(tapes, _spans(tapes, low, middle), _spans(tapes, middle, high))


def _interleaved(tapes: _Tapes, low: int, high: int) -> list[_Span]:
    """Return a stretch of every other batch and one of those between; none if that is not so.

    It is looked into where the structure changes from one recorded batch to another and back.
    """
    recorded = tapes.within(low, high)
    changes = sum(not tapes.are_alike(*pair) for pair in itertools.pairwise(recorded))
    kinds = [[batch for batch in recorded if (batch - low) % 2 == kind] for kind in (0, 1)]
    if changes < 2 or not all(tapes.are_alike(*kind) for kind in kinds if kind):
        return []
    last = high - (high - low) % 2
    spans = [_Span(low, last, 2), _Span(low + 1, last + 1 if last < high else last - 1, 2)]
    alike = all(
        tapes.are_alike(*kind, span.first, span.last)
        for kind, span in zip(kinds, spans, strict=True)
    )
    return spans if alike else []


def _middle(low: int, high: int, recorded: Sequence[int]) -> int:
    """Return where to part a stretch: beside its lower end, else near the middle, if recorded."""
    half = (low + high) // 2
    nearest = min(recorded, key=lambda batch: abs(batch - half), default=half)
    return low + 1 if low + 1 in recorded else nearest


def _joined(tapes: _Tapes, left: list[_Span], right: list[_Span]) -> list[_Span]:
    """Join two neighbouring lists that share their middle batch."""
    last, first = left[-1], right[0]
    if 1 == last.step == first.step and last.last == first.first:
        if tapes.are_alike(*tapes.within(last.first, first.last)):
            return [*left[:-1], _Span(last.first, first.last), *right[1:]]
        if first.first == first.last:
            return [*left, *right[1:]]
    return [*left, *right]
