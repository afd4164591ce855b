"""A training's memory as a program that is evaluated at a micro-batch size.

Two tapes of the same structure are matched event by event; each event's bytes become
`a + b * micro_batch_size`. The result is a program that is evaluated at a batch, not a line drawn
through measurements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from memplan.convolution import ConvolutionProblem
from memplan.fit.align import aligned
from memplan.reduction import Reduction
from memplan.tape import Events, Int64, Operators, Tape


class _Line:
    """Values that are exactly affine in the batch, as integers over one denominator."""

    def __init__(self, low: Int64, high: Int64, low_batch: int, high_batch: int) -> None:
        self._low = low.astype(np.int64)
        self._rise = high.astype(np.int64) - self._low
        self._low_batch = low_batch
        self._run = high_batch - low_batch

    def at(self, batch: int) -> Int64:
        if self._run == 0:
            return self._low
        return self._low + np.rint(self._rise * (batch - self._low_batch) / self._run).astype(
            np.int64
        )

    def per_image(self) -> Int64:
        return self._rise // max(self._run, 1)


def _images(tape: Tape) -> Int64:
    return np.array([problem.input[0] for problem in tape.convolutions], dtype=np.int64)


def _numbers(tape: Tape) -> Int64:
    numbers = [number for reduction in tape.reductions for number in reduction.numbers()]
    return np.array(numbers, dtype=np.int64)


@dataclass(frozen=True)
class Piece:
    """One stretch of batches over which the tape keeps its structure.

    Args:
        low: the tape at the stretch's smallest batch.
        high: the tape at its largest; the same one for a stretch of one batch.
        step: 2 where only every other batch has this structure, so that two stretches interleave.
    """

    low: Tape
    high: Tape
    step: int = 1

    @property
    def first_batch(self) -> int:
        """The smallest micro-batch size of the stretch."""
        return self.low.description.micro_batch_size

    @property
    def last_batch(self) -> int:
        """The largest micro-batch size of the stretch."""
        return self.high.description.micro_batch_size

    def covers(self, batch: int) -> bool:
        """Return whether the stretch, were it longer, would answer for a micro-batch size."""
        return (batch - self.first_batch) % self.step == 0

    def _line(self, low: Int64, high: Int64) -> _Line:
        return _Line(low, high, self.first_batch, self.last_batch)

    def requested_bytes(self, batch: int) -> Int64:
        """Return each event's bytes at a micro-batch size, int64 `[events]`."""
        return self._line(self.low.events.requested_bytes, self.high.events.requested_bytes).at(
            batch
        )

    @cached_property
    def _distinct(self) -> tuple[list[int], list[int]]:
        """One index for each kind of convolution, and for every convolution which kind it is."""
        seen: dict[tuple[ConvolutionProblem, int], int] = {}
        of = [
            seen.setdefault((low, high.input[0]), len(seen))
            for low, high in zip(self.low.convolutions, self.high.convolutions, strict=True)
        ]
        return [of.index(kind) for kind in range(len(seen))], of

    def convolutions(self, batch: int) -> tuple[ConvolutionProblem, ...]:
        """Return the convolutions as they are at a micro-batch size; equal ones are one object."""
        images = self._line(_images(self.low), _images(self.high)).at(batch)
        first_of, kinds = self._distinct
        made = [self.low.convolutions[index].with_batch(int(images[index])) for index in first_of]
        return tuple(made[kind] for kind in kinds)

    def reductions(self, batch: int) -> tuple[Reduction, ...]:
        """Return the reductions as they are at a micro-batch size."""
        low, high = (_numbers(tape) for tape in (self.low, self.high))
        numbers = self._line(low, high).at(batch).tolist()
        made, start = [], 0
        for reduction in self.low.reductions:
            end = start + len(reduction.numbers())
            made.append(reduction.with_numbers(tuple(numbers[start:end])))
            start = end
        return tuple(made)

    def tape(self, batch: int) -> Tape:
        """Return the tape at a micro-batch size within the stretch."""
        low, high = self.low, self.high
        flops = self._line(low.operators.flops, high.operators.flops).at(batch)
        moved = self._line(low.operators.moved_bytes, high.operators.moved_bytes).at(batch)
        return replace(
            low,
            description=replace(low.description, micro_batch_size=batch),
            events=Events(**{**vars(low.events), "requested_bytes": self.requested_bytes(batch)}),
            operators=Operators(**{**vars(low.operators), "flops": flops, "moved_bytes": moved}),
            convolutions=self.convolutions(batch),
            reductions=self.reductions(batch),
            modules=tuple(
                replace(
                    module,
                    output_shape=_shape_at(
                        module.output_shape,
                        other.output_shape,
                        self.first_batch,
                        self.last_batch,
                        batch,
                    ),
                )
                for module, other in zip(low.modules, high.modules, strict=True)
            ),
        )

    def residuals(self, recorded: Tape) -> dict[str, int]:
        """Return, by operator, the largest difference from a tape recorded at a further batch.

        Args:
            recorded: a tape of the same operators.

        Returns:
            Bytes by operator name; empty when the fit is exact there.
        """
        pair = aligned(self.tape(recorded.description.micro_batch_size), recorded)
        assert pair is not None, recorded.description
        fitted, recorded = pair
        difference = np.abs(fitted.events.requested_bytes - recorded.events.requested_bytes)
        worst: Counter[str] = Counter()
        for row in np.flatnonzero(difference):
            operator = recorded.operators.name[recorded.events.operator[row]]
            name = recorded.operator_names[operator]
            worst[name] = max(worst[name], int(difference[row]))
        return dict(worst)


def _shape_at(
    low: tuple[int, ...], high: tuple[int, ...], first: int, last: int, batch: int
) -> tuple[int, ...]:
    if len(low) != len(high) or last == first:
        return low
    return tuple(
        a + (b - a) * (batch - first) // (last - first) for a, b in zip(low, high, strict=True)
    )


@dataclass(frozen=True)
class Fit:
    """A training's memory as a program of the micro-batch size."""

    pieces: tuple[Piece, ...]
    """Stretches in ascending order, without gaps."""
    recorded_batches: tuple[int, ...]
    """Micro-batch sizes that were really recorded, ascending."""
    residual_bytes: dict[str, int]
    """By operator, where the program was checked and found not to be affine; empty when exact."""

    def piece(self, batch: int) -> Piece:
        """Return the stretch that answers for a micro-batch size, the last one beyond the end."""
        for piece in self.pieces:
            if batch <= piece.last_batch and piece.covers(batch):
                return piece
        # One tape alone says nothing about growth.
        longest_last = sorted(self.pieces, key=lambda piece: piece.low is not piece.high)
        return next(piece for piece in reversed(longest_last) if piece.covers(batch))

    def tape(self, batch: int) -> Tape:
        """Return the tape at a micro-batch size."""
        return self.piece(batch).tape(batch)

    @property
    def max_residual_bytes(self) -> int:
        """The largest error of one event at the batches where the fit was checked."""
        return max(self.residual_bytes.values(), default=0)

    def prepare(self, batches: Sequence[int]) -> None:
        """Get ready to answer for several batches; there is nothing to do."""


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

    def piece(self, batch: int) -> Piece:
        """Return the stretch that is this very batch, recorded now if need be."""
        self.prepare([batch])
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
