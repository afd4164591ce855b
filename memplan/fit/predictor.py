"""Peaks of one training at any batch on any card, from as few recordings as will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from memplan.device.life import Life, Program
from memplan.device.replay import Peaks, Simulator
from memplan.fit.affine import Fit, Piece, fit
from memplan.fit.workspace import WorkspaceCurve
from memplan.parallel import fork_map, num_cores
from memplan.tape import Int64, Tape

# A guess at the largest batch is recorded up to here, and no larger one is looked for beyond.
_MOST_RECORDED = 4096
_MOST_IMAGES = 1 << 20

Say = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def as_recorded(_: int) -> Sequence[int]:
    """Return no number of objects, which means the batch as it was recorded."""
    return ()


def _live_peak_bytes(tape: Tape, life: Life) -> int:
    """Return the most bytes live in a life, without workspace."""
    program = Program(tape, life)
    sizes = program.sizes(
        tape.events.requested_bytes, np.zeros(len(tape.convolutions), dtype=np.int64), 0
    )
    return int(program.live_by_category(sizes).sum(axis=0).max())


def guess_largest_batch(low: Tape, high: Tape, capacity_bytes: int, life: Life) -> int:
    """Return roughly the largest batch that a capacity holds, never too small by much.

    The line through the live bytes of two tapes knows nothing of workspace or fragmentation, so
    it errs on the high side.
    """
    first, last = low.description.micro_batch_size, high.description.micro_batch_size
    if last == first:
        return last
    at_first, at_last = _live_peak_bytes(low, life), _live_peak_bytes(high, life)
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
        self._curves: dict[tuple[int, int], WorkspaceCurve] = {}
        self._peaks: dict[tuple[int, int], Peaks] = {}
        capacity = max(simulator.card.capacity_bytes for simulator in simulators)

        def record_many(batches: Sequence[int]) -> dict[int, Tape]:
            say(f"Recording a step at batch {', '.join(map(str, batches))}")
            return dict(zip(batches, fork_map(record, batches), strict=True))

        def third_batch(low: Tape, high: Tape) -> int:
            guess = guess_largest_batch(low, high, capacity, life)
            return min(guess, _MOST_RECORDED) if guess > largest else (smallest + 2 * largest) // 3

        self.fit: Fit = fit(record_many, smallest, largest, third_batch)
        say("Asking cuDNN for workspaces")
        self._learn_workspaces()

    def _learn_workspaces(self) -> None:
        """Ask each card's library about every stretch of batches, on all cores."""
        parts = num_cores()
        tasks = [
            (card, index, part)
            for card in range(len(self.simulators))
            for index in range(len(self.fit.pieces))
            for part in range(parts)
        ]
        answers = fork_map(lambda task: self._ask_part(*task, parts), tasks)
        for card, index, part in tasks:
            if part == 0:
                self._curves[card, index] = self._curve(card, index, known={})
        for (card, index, _), known in zip(tasks, answers, strict=True):
            self._curves[card, index].learn(known)

    def _ask_part(self, card: int, index: int, part: int, parts: int) -> dict[int, Int64]:
        """Return a share of the convolutions' answers by batch, asked in a process of its own."""
        indices = np.arange(part, len(self.fit.pieces[index].low.convolutions), parts)
        return self._curve(card, index, indices=indices).known

    def _curve(
        self,
        card: int,
        index: int,
        *,
        indices: Int64 | None = None,
        known: dict[int, Int64] | None = None,
    ) -> WorkspaceCurve:
        piece, simulator = self.fit.pieces[index], self.simulators[card]

        def ask(asked: Int64, batch: int) -> Int64:
            problems = piece.convolutions(batch)
            return simulator.convolution_bytes([problems[i] for i in asked])

        return WorkspaceCurve(
            ask,
            len(piece.low.convolutions),
            piece.first_batch,
            piece.last_batch,
            indices=indices,
            known=known,
        )

    def _program(self, index: int) -> Program:
        if index not in self._programs:
            self._programs[index] = Program(self.fit.pieces[index].low, self.life)
        return self._programs[index]

    def _piece_index(self, batch: int) -> int:
        return self.fit.pieces.index(self.fit.piece(batch))

    def workspaces(self, card: int, batch: int, *, exact: bool = False) -> Int64:
        """Return each convolution's workspace at a batch on a card, bytes."""
        curve = self._curves[card, self._piece_index(batch)]
        return curve.exactly_at(batch) if exact else curve.at(batch)

    def loaded(self, card: int, batch: int, *, exact: bool = False) -> tuple[Program, Int64]:
        """Return the program that answers at a batch, and its sizes on a card."""
        index = self._piece_index(batch)
        piece: Piece = self.fit.pieces[index]
        program = self._program(index)
        sizes = program.sizes(
            piece.requested_bytes(batch),
            self.workspaces(card, batch, exact=exact),
            self.simulators[card].matrix_bytes,
            self._objects(batch),
        )
        return program, sizes

    def ask_exactly(self, card: int, batches: Sequence[int]) -> None:
        """Ask a card's library about every convolution at these very batches, on all cores."""
        parts = num_cores()
        tasks = [(batch, part) for batch in batches for part in range(parts)]

        def answers(task: tuple[int, int]) -> Int64:
            batch, part = task
            index = self._piece_index(batch)
            curve = self._curves[card, index]
            count = len(self.fit.pieces[index].low.convolutions)
            return curve.exactly_at(batch, np.arange(part, count, parts))

        for (batch, _), known in zip(tasks, fork_map(answers, tasks), strict=True):
            self._curves[card, self._piece_index(batch)].learn({batch: known})

    def peaks(self, card: int, batch: int, *, exact: bool = False) -> Peaks:
        """Return the peaks at a batch on a card.

        Args:
            card: index into `simulators`.
            batch: micro-batch size, >= 1.
            exact: ask the library about this very batch instead of interpolating.
        """
        if not exact and (card, batch) in self._peaks:
            return self._peaks[card, batch]
        peaks = self.simulators[card].peaks(*self.loaded(card, batch, exact=exact))
        self._peaks[card, batch] = peaks
        return peaks

    def peaks_many(self, card: int, batches: Sequence[int]) -> list[Peaks]:
        """Return the peaks at several batches, computed side by side."""
        missing = [batch for batch in batches if (card, batch) not in self._peaks]
        for batch in missing:
            self._program(self._piece_index(batch))
        found = fork_map(lambda batch: self.peaks(card, batch), missing)
        for batch, peaks in zip(missing, found, strict=True):
            self._peaks[card, batch] = peaks
        return [self._peaks[card, batch] for batch in batches]

    def largest_batch(self, card: int, limit_bytes: int | None = None) -> int:
        """Return the largest micro-batch size that fits a card, 0 when not even one image does.

        The last step asks the library exactly, so that the answer does not rest on interpolation.
        Fragmentation is no steady function of the batch: a larger batch still may fit by luck.

        Args:
            card: index into `simulators`.
            limit_bytes: device bytes that may be used; None takes what the card has.
        """

        def fits(batch: int, *, exact: bool = False) -> bool:
            peaks = self.peaks(card, batch, exact=exact)
            if limit_bytes is None:
                return peaks.fits
            return peaks.fits and peaks.device_used_peak_bytes <= limit_bytes

        seen = [batch for (of, batch) in self._peaks if of == card]
        low = max((batch for batch in seen if fits(batch)), default=0)
        high = max(low + 1, self.fit.pieces[-1].last_batch + 1)
        while high <= _MOST_IMAGES and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        # Interpolated workspaces may be a little off, so the last word is the library's own.
        self.ask_exactly(card, [batch for batch in (low, low + 1) if batch])
        back = 1
        while low > 0 and not fits(low, exact=True):
            high, low, back = low, max(0, low - back), 2 * back
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle, exact=True) else (low, middle)
        while low < _MOST_IMAGES and fits(low + 1, exact=True):
            low += 1
        return low
