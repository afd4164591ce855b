"""One stretch of batches over which a training's tape keeps its structure.

Two tapes of the same structure are matched event by event; each event's bytes become
`a + b * micro_batch_size`. The result is a program that is evaluated at a batch, not a line drawn
through measurements.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from memplan.convolution import ConvolutionProblem
from memplan.fit.align import aligned
from memplan.launches import AnyLaunch
from memplan.tape import CONVOLUTION, FIRST_BUFFER, Events, Int64, Operators, Tape

Bools = npt.NDArray[np.bool_]


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
        # In two parts, so that no product comes near 2^63.
        whole, rest = np.divmod(self._rise, self._run)
        images = batch - self._low_batch
        line = self._low + whole * images + np.rint(rest * images / self._run).astype(np.int64)
        # Below its first batch a line through squares goes below nothing.
        positive: Int64 = np.maximum(line, 0)
        return positive

    def per_image(self) -> Int64:
        return self._rise // max(self._run, 1)


def _images(tape: Tape) -> Int64:
    return np.array([problem.input[0] for problem in tape.convolutions], dtype=np.int64)


def _numbers(tape: Tape) -> Int64:
    numbers = [number for launch in tape.launches for number in launch.numbers()]
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

    def launches(self, batch: int) -> tuple[AnyLaunch, ...]:
        """Return the launches as they are at a micro-batch size."""
        low, high = (_numbers(tape) for tape in (self.low, self.high))
        numbers = self._line(low, high).at(batch).tolist()
        made, start = [], 0
        for launch in self.low.launches:
            end = start + len(launch.numbers())
            made.append(launch.with_numbers(numbers[start:end]))
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
            launches=self.launches(batch),
            **self._tensors(batch),
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

    def _tensors(self, batch: int) -> dict[str, Any]:
        """Return what blocks hold at a micro-batch size, where both tapes tell it of all."""
        low, high = self.low, self.high
        ours, theirs = low.block_tensor, high.block_tensor
        if ours is None or theirs is None or not np.array_equal(ours < 0, theirs < 0):
            return {"tensors": (), "block_tensor": None}
        known: dict[tuple[int, int], int] = {}
        pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
        column = [known.setdefault(pair, len(known)) if pair[0] >= 0 else -1 for pair in pairs]
        first, last = self.first_batch, self.last_batch
        kinds = [(low.tensors[one], high.tensors[other]) for one, other in known]
        tensors = tuple(
            replace(one, shape=_shape_at(one.shape, other.shape, first, last, batch))
            for one, other in kinds
        )
        return {"tensors": tensors, "block_tensor": np.array(column, dtype=np.int32)}

    def residuals(self, recorded: Tape) -> dict[str, int] | None:
        """Return, by operator, the largest difference from a tape recorded at a further batch.

        Args:
            recorded: a tape of any structure.

        Returns:
            Bytes by operator name, 0 where only what it asks of a library differs; empty when the
            recording is event by event what the stretch says. None where the structures differ.
        """
        batch = recorded.description.micro_batch_size
        pair = aligned(self.tape(batch), recorded)
        if pair is None:
            return None
        fitted, recorded = pair
        difference = np.abs(fitted.events.requested_bytes - recorded.events.requested_bytes)
        rows = [*np.flatnonzero(difference), *np.flatnonzero(_asked_otherwise(pair))]
        worst: Counter[str] = Counter()
        for row in rows:
            operator = recorded.operators.name[recorded.events.operator[row]]
            name = recorded.operator_names[operator]
            worst[name] = max(worst[name], int(difference[row]))
        return dict(worst)

    def deviation(self, recorded: Tape) -> float:
        """Return the part of a recording's bytes by which the stretch is off; see `residuals`.

        0 where it is event by event the recording, infinity where the structures differ.
        """
        residuals = self.residuals(recorded)
        if not residuals:
            return 0.0 if residuals == {} else math.inf
        pair = aligned(self.tape(recorded.description.micro_batch_size), recorded)
        assert pair is not None, recorded.description
        fitted, own = (one.events.requested_bytes for one in pair)
        return float(max(1, np.abs(fitted - own).sum()) / max(1, own.sum()))


def _asked_otherwise(pair: tuple[Tape, Tape]) -> Bools:
    """Return by event whether two tapes of one structure ask a library different questions."""
    events = pair[1].events
    convolutions = [a != b for a, b in zip(*(one.convolutions for one in pair), strict=True)]
    launches = [a != b for a, b in zip(*(one.launches for one in pair), strict=True)]
    differs: Bools = np.zeros(len(events.asks), dtype=np.bool_)
    convolves, launched = events.asks == CONVOLUTION, events.asks >= FIRST_BUFFER
    if any(convolutions):
        differs[convolves] = np.array(convolutions)[events.about[convolves]]
    if any(launches):
        differs[launched] = np.array(launches)[events.about[launched]]
    return differs


def _shape_at(
    low: tuple[int, ...], high: tuple[int, ...], first: int, last: int, batch: int
) -> tuple[int, ...]:
    if len(low) != len(high) or last == first:
        return low
    return tuple(
        a + (b - a) * (batch - first) // (last - first) for a, b in zip(low, high, strict=True)
    )
