"""A training's memory as a program that is evaluated at a micro-batch size.

It consists of stretches of batches (`memplan.fit.piece`), and it learns: a further recording that
is not what it says makes it bend there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from memplan.errors import BadInputError
from memplan.fit.align import aligned
from memplan.fit.piece import Piece
from memplan.tape import Tape


@dataclass(frozen=True)
class Fit:
    """A training's memory as a program of the micro-batch size."""

    pieces: tuple[Piece, ...]
    """Stretches in ascending order, without gaps."""
    recorded_batches: tuple[int, ...]
    """Micro-batch sizes that were really recorded, ascending."""
    residual_bytes: dict[str, int]
    """By operator, how far a recording was from the line before it; empty when all were on it."""

    def piece(self, batch: int) -> Piece:
        """Return the stretch that answers for a micro-batch size, the last one beyond the end."""
        for piece in self.pieces:
            if batch <= piece.last_batch and piece.covers(batch):
                return piece
        covering = [piece for piece in self.pieces if piece.covers(batch)]
        return max(covering, key=lambda piece: (self._tells_growth(piece), piece.last_batch))

    def _tells_growth(self, piece: Piece) -> int:
        """Return how well a stretch's line goes on beyond its end.

        One tape alone says nothing about growth, and a line through neighbours where the program
        bends magnifies what rounding does.
        """
        if piece.low is piece.high:
            return 0
        bends = any(other.last_batch == piece.first_batch for other in self.pieces)
        return 1 if bends and piece.last_batch - piece.first_batch <= piece.step else 2

    def tape(self, batch: int) -> Tape:
        """Return the tape at a micro-batch size."""
        return self.piece(batch).tape(batch)

    @property
    def max_residual_bytes(self) -> int:
        """The largest error of one event at the batches where the fit was checked."""
        return max(self.residual_bytes.values(), default=0)

    def prepare(self, batches: Sequence[int]) -> None:
        """Get ready to answer for several batches; there is nothing to do."""

    def learned(self, tape: Tape) -> Fit:
        """Return the fit that also knows a recording, and gives that very tape at its batch.

        Where the recording is what the fit says, the fit reaches as far; where it is not, the
        program bends there, or has other events at that batch.
        """
        batch = tape.description.micro_batch_size
        piece = self.piece(batch)
        residuals = piece.residuals(tape)
        known = tuple(sorted({*self.recorded_batches, batch}))
        inside = piece.first_batch <= batch <= piece.last_batch
        if residuals == {} and inside:
            return replace(self, recorded_batches=known)
        if residuals == {} and batch > piece.last_batch and piece.low is not piece.high:
            made = [replace(piece, low=_like(piece.low, tape), high=_like(tape, piece.low))]
        elif inside:
            made = _parted(piece, tape)
        else:
            return replace(
                self,
                pieces=_sorted([*self.pieces, self._reaching(tape)]),
                recorded_batches=known,
                residual_bytes=_larger(self.residual_bytes, residuals),
            )
        others = [one for one in self.pieces if one is not piece]
        return Fit(_sorted([*others, *made]), known, _larger(self.residual_bytes, residuals))

    def _reaching(self, tape: Tape) -> Piece:
        """Return the stretch from the nearest one to a recording outside of all."""
        batch = tape.description.micro_batch_size
        below = [one for one in self.pieces if one.last_batch < batch and one.covers(batch)]
        above = [one for one in self.pieces if one.first_batch > batch and one.covers(batch)]
        if below:
            near = max(below, key=lambda one: one.last_batch)
            pair = aligned(near.high, tape)
            return Piece(*pair, near.step) if pair else Piece(tape, tape)
        near = min(above, key=lambda one: one.first_batch)
        pair = aligned(tape, near.low)
        return Piece(*pair, near.step) if pair else Piece(tape, tape, near.step)


def _larger(one: dict[str, int], other: dict[str, int] | None) -> dict[str, int]:
    """Return the larger bytes of two by operator, without those of 0 bytes."""
    return {name: size for name, size in (Counter(one) | Counter(other or {})).items() if size}


def _sorted(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    return tuple(sorted(pieces, key=lambda piece: (piece.last_batch, piece.first_batch)))


def _like(tape: Tape, other: Tape) -> Tape:
    """Return a tape with every event that another one of its operators has."""
    pair = aligned(tape, other)
    assert pair is not None, tape.description
    return pair[0]


def _parted(piece: Piece, tape: Tape) -> list[Piece]:
    """Return a stretch in parts, of which one is, or two end at, a recording within."""
    batch, step = tape.description.micro_batch_size, piece.step
    first, last = piece.first_batch, piece.last_batch
    if aligned(piece.low, tape) is not None:
        middle = _like(tape, piece.low)
        parts = [] if batch == first else [Piece(_like(piece.low, tape), middle, step)]
        parts += [] if batch == last else [Piece(middle, _like(piece.high, tape), step)]
        return parts or [Piece(middle, middle, step)]
    before = [Piece(piece.low, piece.tape(batch - step), step)] if batch > first else []
    after = [Piece(piece.tape(batch + step), piece.high, step)] if batch < last else []
    return [*before, Piece(tape, tape, step), *after]


class EveryBatch:
    """A training whose operators differ from batch to batch, so that each batch is recorded.

    Such is a loss that loops over the images. It answers as `Fit` does.

    Args:
        record_many: returns tapes for several batches, at once if it can.
        tapes: those there are, at least one.
    """

    def __init__(
        self, record_many: Callable[[Sequence[int]], dict[int, Tape]], tapes: dict[int, Tape]
    ) -> None:
        self._record_many = record_many
        self._pieces = {batch: Piece(tape, tape) for batch, tape in tapes.items()}
        self.residual_bytes: dict[str, int] = {}

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """A stretch for each batch recorded so far, ascending."""
        return tuple(self._pieces[batch] for batch in self.recorded_batches)

    @property
    def recorded_batches(self) -> tuple[int, ...]:
        """Micro-batch sizes recorded so far, ascending."""
        return tuple(sorted(self._pieces))

    def learned(self, tape: Tape) -> EveryBatch:
        """Return this, which also knows a recording."""
        self._pieces.setdefault(tape.description.micro_batch_size, Piece(tape, tape))
        return self

    def piece(self, batch: int) -> Piece:
        """Return the stretch that is this very batch, recorded now if need be."""
        self.prepare([batch])
        if batch not in self._pieces:
            raise BadInputError(
                f"A step of {batch} images cannot be recorded, and its operators are those of no "
                "other batch. Give another --batch."
            )
        return self._pieces[batch]

    def tape(self, batch: int) -> Tape:
        """Return the tape at a micro-batch size, recorded now if need be."""
        return self.piece(batch).low

    def prepare(self, batches: Sequence[int]) -> None:
        """Record those of the batches that were not recorded yet."""
        missing = sorted(set(batches) - set(self._pieces))
        if missing:
            tapes = self._record_many(missing)
            self._pieces |= {batch: Piece(tape, tape) for batch, tape in tapes.items()}
