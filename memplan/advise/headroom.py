"""Answers how near a plan is to its budget and its card, and what would push it over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from memplan import tape as tapes
from memplan.advise.planned import Planned
from memplan.capabilities import MultiScale, validation_batch
from memplan.device.life import Life
from memplan.device.replay import UNLIMITED_BYTES
from memplan.errors import MemplanError
from memplan.evaluation.bisection import most_within
from memplan.evaluation.evaluate import Evaluation, evaluate
from memplan.fit.align import aligned
from memplan.fit.edge import Largest, Verdict, largest_fitting
from memplan.fit.program import EveryBatch
from memplan.parallel import map_processes
from memplan.plan_answers import Edge
from memplan.planner.evaluate import Evaluator
from memplan.tape import Tape

# More objects than a mosaic of four crowded photographs holds, mixed with another such mosaic.
_MOST_OBJECTS = 1000
# Validation is looked into up to this many times the images at once that the plan has.
_MOST_VALIDATION = 8


def edge_of(planned: Planned) -> Edge:
    """Return how near the plan's setting is to its budget and to the card.

    The plan's own micro-batch, the next one, the validation that is said to fit and multi-scale
    are recorded; objects are read off the two numbers of them that the plan's recording holds.
    """
    planned.say("Looking how near the edge it is")
    inquiry = _Inquiry(planned)
    validation = inquiry.validation()
    (objects, expected, tried), after, scaled = map_processes(
        inquiry.answer,
        ["objects", "next_peak_bytes", "multi_scale"],
        doing="looking how near the edge a plan is",
    )
    used = planned.chosen.predicted.device_used_peak_bytes
    return Edge(
        headroom_bytes=planned.budget.num_bytes - used,
        card_headroom_bytes=planned.answer.gpu.capacity_bytes - used,
        expected_objects=expected,
        objects_within_budget=objects[0],
        objects_within_card=objects[1],
        objects_tried=tried,
        **validation,
        next_micro_batch_size=planned.chosen.split.micro_batch_size + 1,
        next_peak_bytes=after,
        next_is_recorded=inquiry.is_next_recorded,
        multi_scale_side=scaled[0],
        multi_scale_peak_bytes=scaled[1],
    )


class _Inquiry:
    """The chosen setting as a program of the batch, ready for other sizes."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.split = planned.chosen.split
        self.batch = self.split.micro_batch_size
        self.simulator = planned.simulator
        sizes = [one.micro_batch_size for one in planned.space().splits()]
        if planned.spec.recompute:
            sizes = [self.batch]
        self.evaluator = Evaluator(
            planned.recordings,
            planned.spec,
            {planned.spec.allocator: self.simulator},
            sizes,
            planned.objects,
        )
        self.evaluator.check(self.batch)
        self.tape: Tape = self.evaluator.fit.tape(self.batch)
        self.expected = max(planned.objects(self.batch), default=0)

    def answer(self, name: str) -> Any:
        """Return what the method of a name answers."""
        return getattr(self, name)()

    def _evaluation(self, tape: Tape) -> Evaluation:
        life = Life(accumulates=self.split.accumulates)
        return evaluate(tape, life, self.simulator, self.planned.objects(self.batch))

    def objects(self) -> tuple[tuple[int | None, int | None], int, int]:
        """Return the most objects within budget and card, those expected, and the most tried."""
        own = self._evaluation(self.tape)
        requested = own.requested
        if not self.expected or not own.program.largest_varying_bytes(requested, self.expected):
            return (None, None), self.expected, 0
        usual = self.planned.objects(self.batch)[:-1]

        @cache
        def bytes_at(count: int) -> int:
            return own.with_objects([*(one for one in usual if one < count), count]).used_bytes

        within = self._within(bytes_at, self.expected, max(_MOST_OBJECTS, 2 * self.expected))
        return within, self.expected, max(_MOST_OBJECTS, 2 * self.expected)

    def _within(
        self, bytes_at: Callable[[int], int], low: int, high: int
    ) -> tuple[int | None, int | None]:
        """Return the largest number within the budget, and within the card."""
        budget = most_within(bytes_at, self.planned.budget.num_bytes, low, high)
        if budget is None:
            return None, None
        return budget, most_within(bytes_at, self.simulator.card.capacity_bytes, budget, high)

    def validation(self) -> dict[str, Any]:
        """Return the images validated at once, the most within the budget, and the most tried.

        Images validated at once are a multiple of the micro-batch, so the validation of another
        number is that of another micro-batch, and the rest of the life stays.
        """
        workload = self.planned.question.made
        one, two = (_num_images(validation_batch(workload, count)) for count in (1, 2))
        if one is None or two is None:
            self.evaluator.check(self.batch + 1)
            return _validation(None, None, 0)
        now = one + (self.batch - 1) * (two - one)
        if two == one:
            self.evaluator.check(self.batch + 1)
            return _validation(now, None, 0)
        most = _MOST_VALIDATION * self.batch
        found = self._validates_within(most)
        images, tried = (one + (at - 1) * (two - one) for at in (found.batch, most))
        if found.batch == most:
            return _validation(now, None, tried)
        if not found.is_edge:
            return _validation(now, None, images)
        return _validation(now, images, tried)

    def _validates_within(self, most: int) -> Largest:
        """Return the largest micro-batch whose validation stays within the budget, recorded."""
        limit = self.planned.budget.num_bytes
        evaluator, failures = self.evaluator, dict[int, str]()
        guess = self._expected_validation(most)
        # Recorded along with it, side by side.
        evaluator.check(self.batch + 1, guess, min(guess + 1, most))
        while guess > self.batch + 1 and self._validating_bytes(guess) is None:
            # So many images run other operators; how many exactly is not worth the recordings.
            guess = most = max(self.batch + 1, guess // 2)
            evaluator.check(guess)

        def check(batches: Sequence[int]) -> dict[int, Verdict]:
            evaluator.check(*batches)
            found = {}
            for batch in batches:
                used = self._validating_bytes(batch)
                if used is None or batch not in evaluator.fit.recorded_batches:
                    failures[batch] = "its validation was not recorded"
                else:
                    found[batch] = Verdict(used <= limit, used)
            return found

        known = {self.batch: Verdict(fits=True, used_bytes=self._validating_bytes(self.batch) or 0)}
        return largest_fitting(
            check, known, limit, guess=lambda: guess, failures=failures, most=most
        )

    def _expected_validation(self, most: int) -> int:
        """Return the largest micro-batch whose validation is expected to be within the budget."""
        if isinstance(self.evaluator.fit, EveryBatch):
            return min(most, 2 * self.batch)

        @cache
        def bytes_at(batch: int) -> int:
            used = self._validating_bytes(batch)
            return UNLIMITED_BYTES if used is None else used

        found = most_within(bytes_at, self.planned.budget.num_bytes, self.batch, most)
        return most if found is None else found

    def _validating_bytes(self, batch: int) -> int | None:
        """Return the peak with another micro-batch's validation; None where it is no such one."""
        pair = aligned(self.tape, self.evaluator.fit.tape(batch))
        if pair is None:
            return None
        own = self._evaluation(pair[0])
        other = self.evaluator.answers(pair[1])
        sizes = replace(own, requested=pair[1].events.requested_bytes, device=other).sizes
        validates = np.array(
            pair[0].events.section[own.program.rows] == tapes.SECTIONS.index("validation")
        )
        return own.used_with(np.where(validates, sizes, own.sizes))

    @property
    def is_next_recorded(self) -> bool:
        """Whether one image more could be recorded."""
        return self.batch + 1 in self.evaluator.fit.recorded_batches

    def next_peak_bytes(self) -> int:
        """Return the device-used peak with one image more."""
        tape = self.evaluator.fit.tape(self.batch + 1)
        peaks = self.evaluator.peaks(tape, self.split, self.planned.spec.allocator)
        return peaks.device_used_peak_bytes

    def multi_scale(self) -> tuple[int | None, int | None]:
        """Return the largest side under multi-scale and its peak; None where there is none."""
        planned = self.planned
        question = planned.question
        is_on = not isinstance(question.made, MultiScale) or question.made.multi_scale
        if is_on or not isinstance(question.workload, str):
            return None, None
        try:
            scaled = replace(question, arguments={**question.arguments, "multi_scale": True})
            made = scaled.made
            assert isinstance(made, MultiScale)
            small = made.resize(made.prepare(made.make_batch(1)))
            tape = scaled.record(self.batch, planned.spec)
        except MemplanError:
            return None, None
        peaks = self.evaluator.peaks(tape, self.split, planned.spec.allocator)
        return int(small["images"].shape[-1]), peaks.device_used_peak_bytes


def _num_images(batch: Any) -> int | None:
    return None if batch is None else len(next(iter(batch.values())))


def _validation(now: int | None, within: int | None, tried: int) -> dict[str, Any]:
    return {
        "validation_batch_size": now,
        "validation_within_budget": within,
        "validation_tried": tried,
    }
