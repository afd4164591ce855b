"""Peaks of one training at any batch on any card, from as few recordings as will do."""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from memplan.convolution import ConvolutionProblem
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.one_by_one import OneByOne
from memplan.device.replay import Peaks, Simulator
from memplan.errors import MemplanError, first_sentence
from memplan.evaluation.bisection import last_holding
from memplan.evaluation.evaluate import Evaluation, crowds_matter
from memplan.fit.affine import fit
from memplan.fit.align import aligned
from memplan.fit.attempts import Attempts
from memplan.fit.edge import MOST_IMAGES, Largest, Verdict, largest_fitting
from memplan.fit.growth import Growth, faster_growth
from memplan.fit.piece import Piece
from memplan.fit.program import EveryBatch, Fit
from memplan.parallel import map_processes
from memplan.tape import Tape

# A line through known batches that is off by no more than this tells without a replay.
_SURELY_OVER = 1.03
_SURELY_WITHIN = 0.7

Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def as_recorded(_: int) -> Sequence[int]:
    """Return no number of objects, which means the batch as it was recorded."""
    return ()


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
        self.life = life
        self._objects = objects
        self.simulators = tuple(simulators)
        self._programs: dict[tuple[int, Life], tuple[Piece, Program]] = {}
        self._device: dict[tuple[int, int], tuple[Piece, DeviceBytes]] = {}
        self._peaks: dict[tuple[int, int], Peaks] = {}
        self.attempts = Attempts(record, {smallest, largest}, say)
        """The recordings so far."""
        is_range = smallest < largest
        if not is_range:
            smallest, largest = self._with_another(smallest)
        self._first = (smallest, largest)
        self.fit: Fit | EveryBatch = fit(
            self.attempts.many, smallest, largest, lambda *_: largest, mixes=is_range
        )

    def _with_another(self, batch: int) -> tuple[int, int]:
        """Return a batch and another one that can be recorded: one alone tells nothing of growth.

        That is twice the batch, or else one nearby; the batch itself where none can be.
        """
        # Batch 1 runs other copies than the others, so a third one will be wanted beside it.
        twice = 5 if batch == 1 else 2 * batch
        for other in (twice, batch + 1, batch // 2):
            if other and other in self.attempts.many([batch, other]):
                return min(batch, other), max(batch, other)
        return batch, batch

    def check(self, batches: Sequence[int]) -> bool:
        """Record batches, those that can be, so that answers for them are their recordings'.

        Returns:
            Whether every recording was, event by event, what the program says.
        """
        agrees = True
        for batch, tape in sorted(self.attempts.many(batches).items(), reverse=True):
            if batch in self.fit.recorded_batches:
                continue
            before = self.fit
            differs = before.piece(batch).residuals(tape) != {}
            self.fit = before.learned(tape)
            if differs:
                agrees = False
                self._forget(batch, before)
        return agrees

    def _forget(self, batch: int, before: Fit | EveryBatch) -> None:
        """Forget answers for batches of which the program says something else than before."""
        known = {one for _, one in (*self._peaks, *self._device)}
        changed = {one for one in known if before.piece(one) is not self.fit.piece(one)}
        for answers in (self._peaks, self._device):
            for key in [key for key in answers if key[1] in {batch, *changed}]:
                del answers[key]

    def beside(self, batch: int) -> int:
        """Return the batch recorded at first beside the one asked for, or that one itself."""
        others = [one for one in self._first if one != batch]
        return others[0] if others else batch

    @property
    def is_lone(self) -> bool:
        """Whether no second batch could be recorded."""
        return len(self.attempts.tapes) < 2

    @property
    def growth(self) -> Growth | None:
        """How much faster than affine memory grows, as recorded; None where it does not."""
        return faster_growth(self.attempts.tapes)

    def _program(self, piece: Piece, batch: int) -> Program:
        """Return the program of a stretch, with as many steps as matter at a batch."""
        life, crowds = self.life, self._objects(batch)
        if len(crowds) > life.num_steps:
            few = self._of_life(piece, life)
            requested = piece.requested_bytes(batch)
            if crowds_matter(piece.low, few, requested, crowds):
                life = replace(life, num_steps=len(crowds))
        return self._of_life(piece, life)

    def _of_life(self, piece: Piece, life: Life) -> Program:
        # The piece is kept beside its program, so that no other one takes over its identity.
        key = (id(piece), life)
        if key not in self._programs:
            self._programs[key] = piece, Program(piece.low, life)
        return self._programs[key][1]

    def device_bytes(self, card: int, batch: int) -> DeviceBytes:
        """Return what a card answers to the step's questions at a batch."""
        piece = self.fit.piece(batch)
        known = self._device.get((card, batch))
        # A recording that agrees may still bring questions that no other batch has.
        if known is None or known[0] is not piece:
            known = (
                piece,
                self.simulators[card].device_bytes(
                    piece.convolutions(batch), piece.launches(batch)
                ),
            )
            self._device[card, batch] = known
        return known[1]

    def convolutions(self, batch: int) -> Sequence[ConvolutionProblem]:
        """Return the convolutions of the program that answers at a batch."""
        return self.fit.piece(batch).convolutions(batch)

    def evaluation(
        self, card: int, batch: int, one_by_one: OneByOne = OneByOne.AS_ASKED
    ) -> Evaluation:
        """Return the program that answers at a batch, on a card.

        Args:
            card: index into `simulators`.
            batch: micro-batch size, >= 1.
            one_by_one: which workspaces cuBLASLt is taken to want for 1x1 convolutions.
        """
        piece = self.fit.piece(batch)
        answers, convolutions = self.device_bytes(card, batch), piece.convolutions(batch)
        workspaces = one_by_one.applied(convolutions, answers.convolutions)
        return Evaluation(
            simulator=self.simulators[card],
            program=self._program(piece, batch),
            requested=piece.requested_bytes(batch),
            device=replace(answers, convolutions=workspaces),
            convolutions=convolutions,
            objects=self._objects(batch),
        )

    def one_by_one_range(self, card: int, batch: int) -> tuple[int, int]:
        """Return the least and the most device-used bytes that 1x1 convolutions leave open.

        See `memplan.device.one_by_one`.

        Args:
            card: index into `simulators`.
            batch: micro-batch size, >= 1.
        """
        without = self.evaluation(card, batch, OneByOne.WITHOUT_WORKSPACE).peaks
        used = [one.device_used_peak_bytes for one in (self.peaks(card, batch), without)]
        return min(used), max(used)

    def peaks(self, card: int, batch: int) -> Peaks:
        """Return the peaks at a batch on a card.

        Args:
            card: index into `simulators`.
            batch: micro-batch size, >= 1.
        """
        if (card, batch) not in self._peaks:
            self._peaks[card, batch] = self.evaluation(card, batch).peaks
        return self._peaks[card, batch]

    def ask(self, card: int, batches: Sequence[int]) -> None:
        """Have a card's answers for several batches at hand: cuDNN takes 0.1 s for each question.

        Args:
            card: index into `simulators`.
            batches: micro-batch sizes, each >= 1.
        """
        self.fit.prepare(batches)
        self.simulators[card].oracle.bytes_many(
            [one for batch in batches for one in self.convolutions(batch)]
        )

    def peaks_many(self, card: int, batches: Sequence[int]) -> list[Peaks]:
        """Return the peaks at several batches, asked for and computed side by side."""
        missing = [batch for batch in batches if (card, batch) not in self._peaks]
        self.ask(card, missing)
        for batch in missing:
            self._program(self.fit.piece(batch), batch)
        made = map_processes(partial(self._answer, card), missing, doing="replaying batches")
        for batch, (peaks, answers) in zip(missing, made, strict=True):
            self._peaks[card, batch] = peaks
            self._device[card, batch] = self.fit.piece(batch), answers
        return [self._peaks[card, batch] for batch in batches]

    def _answer(self, card: int, batch: int) -> tuple[Peaks, DeviceBytes]:
        return self.peaks(card, batch), self.device_bytes(card, batch)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without what is found by identity there, or quickly again."""
        return {**vars(self), "_programs": {}, "_device": {}, "_peaks": {}}

    def largest_batch(
        self, card: int, limit_bytes: int | None = None, most: int = MOST_IMAGES
    ) -> Largest:
        """Return the largest micro-batch size that fits a card, recorded, as is the next one.

        Fragmentation is no steady function of the batch: a larger batch still may fit by luck.

        Args:
            card: index into `simulators`.
            limit_bytes: device bytes that may be used; None takes what the card has.
            most: the largest that is looked into.
        """
        limit = limit_bytes or self.simulators[card].card.capacity_bytes

        failures = ChainMap[int, str]({}, self.attempts.failures)

        def verdicts(batches: Sequence[int]) -> dict[int, Verdict]:
            self.check(batches)
            found = {}
            for batch in (one for one in batches if one in self.attempts.tapes):
                try:
                    peaks = self.peaks(card, batch)
                except MemplanError as error:  # a card that cannot run one of the convolutions
                    failures[batch] = first_sentence(error)
                else:
                    found[batch] = Verdict(_is_within(peaks, limit), peaks.device_used_peak_bytes)
            return found

        found = largest_fitting(
            verdicts,
            verdicts(self.fit.recorded_batches),
            limit,
            guess=lambda: self._guess(card, limit, most),
            failures=failures,
            most=most,
        )
        while found.is_edge and (beyond := self._beyond_other_operators(found.batch, most)):
            known = verdicts([*range(found.batch, beyond + 1)])
            if beyond not in known or not known[beyond].fits:
                break
            found = largest_fitting(verdicts, known, limit, failures=failures, most=most)
        return found

    def _beyond_other_operators(self, largest: int, most: int) -> int:
        """Return the second batch after the largest, where the next one runs other operators.

        What does not fit may be that it is odd, or even: 0 where nothing tells so.
        """
        tapes = self.attempts.tapes
        if largest + 2 > most or not {largest, largest + 1} <= tapes.keys():
            return 0
        return 0 if aligned(tapes[largest], tapes[largest + 1]) else largest + 2

    def likely_largest(self, card: int) -> int:
        """Return the largest micro-batch size that fits a card by the program, unrecorded.

        Where there is no program, batches are recorded as `largest_batch` does.

        Args:
            card: index into `simulators`.
        """
        if isinstance(self.fit, EveryBatch):
            return self.largest_batch(card).batch
        self.peaks_many(card, self.fit.recorded_batches)
        return self._guess(card, self.simulators[card].card.capacity_bytes, MOST_IMAGES)

    def on(self, simulators: Sequence[Simulator]) -> Predictor:
        """Return a predictor of the same recordings for other cards or allocator options."""
        other = copy.copy(self)
        vars(other).update(simulators=tuple(simulators), _device={}, _peaks={})
        return other

    def _guess(self, card: int, limit_bytes: int, most: int) -> int:
        """Return the largest micro-batch size that fits by the program alone.

        Bisection between powers of two, so that the batches asked for make no difference. Batches
        far from the limit, by a line through known ones, are not replayed.
        """
        known = {batch: peaks for (of, batch), peaks in self._peaks.items() if of == card}
        if isinstance(self.fit, EveryBatch) or len(known) < 2:
            return max(known, default=1)
        outside = self.simulators[card].outside.num_bytes

        def fits(batch: int) -> bool:
            low, high = sorted(sorted(known, key=lambda one: abs(one - batch))[:2])
            share = (batch - low) / (high - low)
            ends = known[low], known[high]
            live, used = (
                getattr(ends[0], name) * (1 - share) + getattr(ends[1], name) * share
                for name in ("allocated_peak_bytes", "device_used_peak_bytes")
            )
            if live + outside > _SURELY_OVER * limit_bytes:
                return False
            # A line that falls, as from an odd to an even batch, says nothing of what is beyond.
            if used < _SURELY_WITHIN * limit_bytes and used >= known[low].device_used_peak_bytes:
                return True
            try:
                known[batch] = self.peaks(card, batch)
            except MemplanError:
                return False
            return _is_within(known[batch], limit_bytes)

        high = 1
        while high <= most and fits(high):
            high *= 2
        return min(last_holding(fits, high // 2, high), most)


def _is_within(peaks: Peaks, limit_bytes: int) -> bool:
    """Return whether a life fits its card and stays within a limit."""
    if limit_bytes >= peaks.capacity_bytes:
        return peaks.fits
    return peaks.fits and peaks.device_used_peak_bytes <= limit_bytes
