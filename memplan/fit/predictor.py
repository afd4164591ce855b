"""Peaks of one training at any batch on any card, from as few recordings as will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from memplan.convolution import ConvolutionProblem
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.replay import Peaks, Simulator
from memplan.fit.affine import EveryBatch, Fit, Piece, fit
from memplan.parallel import map_processes
from memplan.tape import Int64, Tape

# A guess at the largest batch is recorded up to here, and no larger one is looked for beyond.
_MOST_RECORDED = 4096
_MOST_IMAGES = 1 << 20
# Blocks that vary with the objects leave gaps in reserved memory; below this share of the live
# peak they fit into what other tensors leave free.
_CROWD_MATTERS = 0.01

Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def as_recorded(_: int) -> Sequence[int]:
    """Return no number of objects, which means the batch as it was recorded."""
    return ()


def thinned(numbers: Sequence[int], count: int) -> Sequence[int]:
    """Return `count` of the numbers, evenly spaced and with both ends; all when they are fewer."""
    if len(numbers) <= count:
        return numbers
    return [numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)]


def _live_peak_bytes(tape: Tape, program: Program) -> int:
    """Return the most bytes live in a tape's life, without workspace."""
    sizes = program.sizes(tape.events.requested_bytes, DeviceBytes.none(tape))
    return int(program.live_by_category(sizes).sum(axis=0).max())


def with_each_crowd(tape: Tape, life: Life, crowds: Sequence[int]) -> Life:
    """Return the life in which each crowd is met in a step of its own, if they matter that much.

    Args:
        tape: at the largest micro-batch size in question.
        life: which parts of a life count.
        crowds: objects in the fullest image of each step.
    """
    if len(crowds) <= life.num_steps:
        return life
    program = Program(tape, life)
    largest = program.largest_varying_bytes(tape.events.requested_bytes, max(crowds))
    matters = largest >= _CROWD_MATTERS * _live_peak_bytes(tape, program)
    return replace(life, num_steps=len(crowds)) if matters else life


def guess_largest_batch(low: Tape, high: Tape, capacity_bytes: int, life: Life) -> int:
    """Return roughly the largest batch that a capacity holds, never too small by much.

    The line through the live bytes of two tapes knows nothing of workspace or fragmentation, so
    it errs on the high side.
    """
    first, last = low.description.micro_batch_size, high.description.micro_batch_size
    if last == first:
        return last
    at_first, at_last = (_live_peak_bytes(tape, Program(tape, life)) for tape in (low, high))
    per_image = max(1, (at_last - at_first) // (last - first))
    return max(first, first + (capacity_bytes - at_first) // per_image)


class Predictor:
    """Answers what a training takes at a batch on each of several cards.

    Args:
        record: returns the tape at a micro-batch size.
        simulators: the cards.
        life: which parts of a life count.
        smallest: first micro-batch size asked about, >= 1.
        largest: last one asked about.
        say: told what is being done.
        objects: returns, for a micro-batch size, the objects in the fullest image of each step;
            see `Program.sizes`.
    """

    def __init__(
        self,
        record: Callable[[int], Tape],
        simulators: Sequence[Simulator],
        life: Life,
        smallest: int,
        largest: int,
        say: Say = _silent,
        *,
        objects: Callable[[int], Sequence[int]] = as_recorded,
    ) -> None:
        if smallest == largest:
            # One recording tells nothing about growth, so twice the batch is recorded beside it.
            largest *= 2
        self.life = life
        self._objects = objects
        self.simulators = tuple(simulators)
        self._programs: dict[int, Program] = {}
        self._device: dict[tuple[int, int], DeviceBytes] = {}
        self._peaks: dict[tuple[int, int], Peaks] = {}
        capacity = max(simulator.card.capacity_bytes for simulator in simulators)

        def record_many(batches: Sequence[int]) -> dict[int, Tape]:
            say(f"Recording a step at batch {', '.join(map(str, batches))}")
            made = map_processes(record, batches, doing="recording steps")
            return dict(zip(batches, made, strict=True))

        def third_batch(low: Tape, high: Tape) -> int:
            guess = guess_largest_batch(low, high, capacity, life)
            return min(guess, _MOST_RECORDED) if guess > largest else (smallest + 2 * largest) // 3

        self.fit: Fit | EveryBatch = fit(record_many, smallest, largest, third_batch)

    def _program(self, piece: Piece) -> Program:
        if id(piece) not in self._programs:
            crowds = self._objects(piece.last_batch)
            life = with_each_crowd(piece.tape(piece.last_batch), self.life, crowds)
            self._programs[id(piece)] = Program(piece.low, life)
        return self._programs[id(piece)]

    def device_bytes(self, card: int, batch: int) -> DeviceBytes:
        """Return what a card answers to the step's questions at a batch."""
        if (card, batch) not in self._device:
            piece = self.fit.piece(batch)
            self._device[card, batch] = self.simulators[card].device_bytes(
                piece.convolutions(batch), piece.reductions(batch)
            )
        return self._device[card, batch]

    def convolutions(self, batch: int) -> Sequence[ConvolutionProblem]:
        """Return the convolutions of the program that answers at a batch."""
        return self.fit.piece(batch).convolutions(batch)

    def loaded(self, card: int, batch: int) -> tuple[Program, Int64]:
        """Return the program that answers at a batch, and its sizes on a card."""
        piece = self.fit.piece(batch)
        program = self._program(piece)
        sizes = program.sizes(
            piece.requested_bytes(batch),
            self.device_bytes(card, batch),
            thinned(self._objects(batch), program.num_steps),
        )
        return program, sizes

    def peaks(self, card: int, batch: int) -> Peaks:
        """Return the peaks at a batch on a card.

        Args:
            card: index into `simulators`.
            batch: micro-batch size, >= 1.
        """
        if (card, batch) not in self._peaks:
            program, sizes = self.loaded(card, batch)
            self._peaks[card, batch] = self.simulators[card].peaks(
                program, sizes, self.convolutions(batch)
            )
        return self._peaks[card, batch]

    def peaks_many(self, card: int, batches: Sequence[int]) -> list[Peaks]:
        """Return the peaks at several batches, asked for and computed side by side."""
        missing = [batch for batch in batches if (card, batch) not in self._peaks]
        self.fit.prepare(missing)
        for batch in missing:
            self._program(self.fit.piece(batch))

        made = map_processes(partial(self._answer, card), missing, doing="replaying batches")
        for batch, (peaks, answers) in zip(missing, made, strict=True):
            self._peaks[card, batch] = peaks
            self._device[card, batch] = answers
        return [self._peaks[card, batch] for batch in batches]

    def _answer(self, card: int, batch: int) -> tuple[Peaks, DeviceBytes]:
        return self.peaks(card, batch), self.device_bytes(card, batch)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without what is found by identity there, or quickly again."""
        return {**vars(self), "_programs": {}, "_device": {}, "_peaks": {}}

    def largest_batch(self, card: int, limit_bytes: int | None = None) -> int:
        """Return the largest micro-batch size that fits a card, 0 when not even one image does.

        Fragmentation is no steady function of the batch: a larger batch still may fit by luck.

        Args:
            card: index into `simulators`.
            limit_bytes: device bytes that may be used; None takes what the card has.
        """

        def fits(batch: int) -> bool:
            peaks = self.peaks(card, batch)
            if limit_bytes is None:
                return peaks.fits
            return peaks.fits and peaks.device_used_peak_bytes <= limit_bytes

        seen = [batch for (of, batch) in self._peaks if of == card]
        low = max((batch for batch in seen if fits(batch)), default=0)
        high = max(low + 1, self.fit.pieces[-1].last_batch + 1)
        while high <= _MOST_IMAGES and fits(high):
            low, high = high, 2 * high
        limit = limit_bytes or self.simulators[card].card.capacity_bytes
        is_straight = True
        while high - low > 1:
            middle = self._between(card, low, high, limit) if is_straight else (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
            is_straight = not is_straight
        return low

    def _between(self, card: int, low: int, high: int, limit_bytes: int) -> int:
        """Return where the line through two batches' device memory meets the limit."""
        if not low:
            return (low + high) // 2
        at_low, at_high = (self.peaks(card, one).device_used_peak_bytes for one in (low, high))
        share = (limit_bytes - at_low) / max(1, at_high - at_low)
        return min(max(low + 1, low + int(share * (high - low))), high - 1)
