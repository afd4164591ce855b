"""Memory at any batch size, from tapes recorded at a few.

Two tapes of the same structure are matched event by event; each event's bytes become
`a + b * micro_batch_size`. The result is a program that is evaluated at a batch, not a line drawn
through measurements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memplan.convolution import ConvolutionProblem
from memplan.tape import Events, Int64, Operators, Tape


def same_structure(first: Tape, second: Tape) -> bool:
    """Return whether two tapes are the same program with other sizes."""
    return (
        len(first) == len(second)
        and first.operator_names == second.operator_names
        and _same_convolutions(first, second)
        and all(
            np.array_equal(getattr(first.events, name), getattr(second.events, name))
            for name in ("kind", "block", "request", "operator", "section")
        )
        and np.array_equal(first.operators.name, second.operators.name)
    )


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


def _same_convolutions(first: Tape, second: Tape) -> bool:
    """Return whether the convolutions differ in the number of images only."""
    return len(first.convolutions) == len(second.convolutions) and all(
        one.with_batch(1) == other.with_batch(1)
        for one, other in zip(first.convolutions, second.convolutions, strict=True)
    )


@dataclass(frozen=True)
class Piece:
    """One stretch of batches over which the tape keeps its structure.

    Args:
        low: the tape at the stretch's smallest batch.
        high: the tape at its largest; the same one for a stretch of one batch.
    """

    low: Tape
    high: Tape

    @property
    def first_batch(self) -> int:
        """The smallest micro-batch size of the stretch."""
        return self.low.description.micro_batch_size

    @property
    def last_batch(self) -> int:
        """The largest micro-batch size of the stretch."""
        return self.high.description.micro_batch_size

    def _line(self, low: Int64, high: Int64) -> _Line:
        return _Line(low, high, self.first_batch, self.last_batch)

    def requested_bytes(self, batch: int) -> Int64:
        """Return each event's bytes at a micro-batch size, int64 `[events]`."""
        return self._line(self.low.events.requested_bytes, self.high.events.requested_bytes).at(
            batch
        )

    def convolutions(self, batch: int) -> tuple[ConvolutionProblem, ...]:
        """Return the convolutions as they are at a micro-batch size."""
        images = self._line(_images(self.low), _images(self.high)).at(batch)
        return tuple(
            problem.with_batch(int(count))
            for problem, count in zip(self.low.convolutions, images, strict=True)
        )

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
            recorded: a tape of the same structure.

        Returns:
            Bytes by operator name; empty when the fit is exact there.
        """
        batch = recorded.description.micro_batch_size
        difference = np.abs(self.requested_bytes(batch) - recorded.events.requested_bytes)
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
            if batch <= piece.last_batch:
                return piece
        return self.pieces[-1]

    def tape(self, batch: int) -> Tape:
        """Return the tape at a micro-batch size."""
        return self.piece(batch).tape(batch)

    @property
    def max_residual_bytes(self) -> int:
        """The largest error of one event at the batches where the fit was checked."""
        return max(self.residual_bytes.values(), default=0)


RecordMany = Callable[[Sequence[int]], dict[int, Tape]]


def fit(
    record_many: RecordMany,
    smallest: int,
    largest: int,
    third_batch: Callable[[Tape, Tape], int] | None = None,
) -> Fit:
    """Return the fit over a range of micro-batch sizes, recording as few tapes as it can.

    The ends are recorded; where two tapes differ in structure the stretch between is halved until
    its parts agree. One more tape checks that bytes are affine, and extends the range if it lies
    beyond it.

    Args:
        record_many: returns tapes for several batches, at once if it can.
        smallest: first micro-batch size, >= 1.
        largest: last micro-batch size, >= smallest.
        third_batch: chooses the batch of the checking tape from the two at the ends; None takes
            one at a third of the range.
    """
    tapes = record_many(sorted({smallest, largest}))
    third = (
        third_batch(tapes[smallest], tapes[largest])
        if third_batch is not None
        else smallest + (largest - smallest) // 3
    )
    wanted = {third}
    if not same_structure(tapes[smallest], tapes[largest]) and largest > smallest + 1:
        # Most often batch 1 is the odd one: its tensors are contiguous in every layout.
        wanted.add(smallest + 1)
    missing = sorted(wanted - set(tapes))
    if missing:
        tapes |= record_many(missing)

    def get(batch: int) -> Tape:
        if batch not in tapes:
            tapes.update(record_many([batch]))
        return tapes[batch]

    def split(low: int, high: int) -> list[Piece]:
        if same_structure(get(low), get(high)):
            return [Piece(get(low), get(high))]
        if high - low == 1:
            return [Piece(get(low), get(low)), Piece(get(high), get(high))]
        middle = low + 1 if low + 1 in tapes else (low + high) // 2
        return _joined(split(low, middle), split(middle, high))

    pieces = split(smallest, max(largest, third))
    residual: Counter[str] = Counter()
    for batch, recorded in tapes.items():
        piece = next(p for p in pieces if batch <= p.last_batch)
        if same_structure(piece.low, recorded):
            residual |= Counter(piece.residuals(recorded))
    return Fit(tuple(pieces), tuple(sorted(tapes)), dict(residual))


def _joined(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """Join two neighbouring lists that share their middle tape."""
    last, first = left[-1], right[0]
    if last.high is first.low and same_structure(last.low, first.high):
        return [*left[:-1], Piece(last.low, first.high), *right[1:]]
    if first.low is first.high and last.last_batch == first.first_batch:
        return [*left, *right[1:]]
    return [*left, *right]
