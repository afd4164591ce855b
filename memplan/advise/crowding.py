"""Answers how crowded images bear on a plan: its margin, and the chance of exceeding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from memplan.advise.question import Question
from memplan.answers import BatchRisk, RunRisk
from memplan.device.life import Life, Program
from memplan.device.replay import Simulator
from memplan.errors import UsageError
from memplan.evaluation.bisection import last_holding
from memplan.fit.predictor import Predictor, Say
from memplan.parallel import map_processes
from memplan.planner.risk import (
    PREDICTION_ERROR,
    RUN_QUANTILE,
    SAFETY_WITHOUT_DATA,
    RunCrowd,
)
from memplan.spec import StepSpec

_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How much of a card is left alone, and why."""

    fraction: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Crowds:
    """The objects a plan reckons with.

    Args:
        question: what is trained.
        run: what the run meets; None where data set or epochs are not known.
        num_epochs: of the run; 0 where it is not known.
    """

    question: Question
    run: RunCrowd | None
    num_epochs: int = 0

    @classmethod
    def of(cls, question: Question, num_images: int | None, num_epochs: int | None) -> Crowds:
        """Return the crowds of a question.

        Raises:
            UsageError: epochs below 1, or without the data they go over.
        """
        if num_epochs is None:
            return cls(question=question, run=None)
        if num_epochs < 1:
            raise UsageError(f"--epochs {num_epochs} is below 1. Give at least one.")
        counts = question.object_counts
        if counts is None or not num_images or not len(counts):
            raise UsageError(
                f"--epochs {num_epochs} tells the chance that a run meets a crowded image, which "
                "takes the labels. Give --data data.yaml, without --objects-per-image."
            )
        run = RunCrowd.of_data(question.made, counts, num_epochs * num_images)
        return cls(question=question, run=run, num_epochs=num_epochs)

    def objects(self, micro_batch_size: int) -> Sequence[int]:
        """Return the objects in the fullest image of each step's batches."""
        if self.run is None or self.question.crowd is None:
            return self.question.objects(micro_batch_size)
        return self.run.steps(self.question.crowd, micro_batch_size)

    def margin(self, given: float | None) -> Margin:
        """Return the margin given, or the one that is right for what is known."""
        if given is not None:
            return Margin(fraction=given, source=f"The margin of {given:.1%} is as given.")
        if self.run is None:
            half = SAFETY_WITHOUT_DATA - PREDICTION_ERROR
            return Margin(
                fraction=SAFETY_WITHOUT_DATA,
                source=(
                    f"The margin of {SAFETY_WITHOUT_DATA:.1%} is a default: {PREDICTION_ERROR:.1%} "
                    "for the prediction's own error (its median on 31 measured runs), and "
                    f"{half:.1%} for crowded images, which --data and --epochs would tell."
                ),
            )
        return Margin(
            fraction=PREDICTION_ERROR,
            source=(
                f"The margin of {PREDICTION_ERROR:.1%} is for the prediction's own error (its "
                "median on 31 measured runs). Crowded images are in the prediction: it is for the "
                f"fullest image of {RUN_QUANTILE:.0%} of runs, {self.run.fullest()} objects."
            ),
        )


def run_risk(
    crowds: Crowds,
    simulator: Simulator,
    spec: StepSpec,
    chosen: int,
    candidates: Sequence[int],
    *,
    accumulates: bool,
    safety_fraction: float,
    say: Say,
) -> RunRisk | None:
    """Return the chance that a run exceeds its budget at the chosen size and beside it.

    Args:
        crowds: what the run meets.
        simulator: the card.
        spec: the chosen one.
        chosen: micro-batch size.
        candidates: micro-batch sizes that were possible.
        accumulates: whether gradients of several micro-batches are summed before a step.
        safety_fraction: part of the capacity left alone.
        say: called with a line on what is being done.

    Returns:
        The risk; None where the data set or the epochs are not known.
    """
    run, question = crowds.run, crowds.question
    if run is None or question.crowd is None:
        return None
    ascending = sorted({*candidates, chosen})
    place = ascending.index(chosen)
    batches = ascending[max(0, place - 1) : place + 2]
    life = Life(accumulates=accumulates)
    predictor = Predictor(
        question.recorder(spec),
        [simulator],
        life,
        chosen,
        chosen,
        say,
        objects=crowds.objects,
    )
    say("Looking for the most objects that fit")
    predictor.check(batches)
    batches = [batch for batch in batches if batch in predictor.attempts.tapes]
    capacity = simulator.card.capacity_bytes
    limits = (int(capacity * (1 - safety_fraction)), capacity)
    tolerated = partial(_tolerated, predictor, crowds, limits)
    made = map_processes(tolerated, batches, doing="looking for the most objects that fit")
    rows = []
    for batch, (within_budget, within_card) in zip(batches, made, strict=True):
        chance, low, high = run.chance(within_budget)
        rows.append(
            BatchRisk(
                micro_batch_size=batch,
                tolerated_objects=within_budget,
                chance=chance,
                chance_low=low,
                chance_high=high,
                chance_of_running_out=run.chance(within_card)[0],
            )
        )
    return RunRisk(
        num_epochs=crowds.num_epochs,
        num_images=run.num_images // crowds.num_epochs,
        num_steps=-(-run.num_images // (chosen * question.devices)),
        safety_fraction=safety_fraction,
        mean_objects=run.tail.mean,
        usual_objects=run.fullest(0.5),
        fullest_objects=run.fullest(),
        batches=tuple(rows),
        objects=tuple(run.tail.at_share(share) for share in _SHARES),
        shares=_SHARES,
    )


def _tolerated(
    predictor: Predictor, crowds: Crowds, limits: Sequence[int], batch: int
) -> list[int | None]:
    """Return the most objects within each limit; -1 where not even none fit, None where any do."""
    assert crowds.run is not None
    bytes_at = _bytes_by_objects(predictor, crowds, batch)
    most = crowds.run.tail.most
    return [
        None
        if bytes_at(most) <= limit
        else last_holding(partial(_stays_within, bytes_at, limit), -1, most)
        for limit in limits
    ]


def _stays_within(bytes_at: Callable[[int], int], limit: int, objects: int) -> bool:
    return bytes_at(objects) <= limit


def _bytes_by_objects(predictor: Predictor, crowds: Crowds, batch: int) -> Callable[[int], int]:
    """Return the device bytes of a life by the objects in its fullest image."""
    run, crowd = crowds.run, crowds.question.crowd
    assert run is not None
    assert crowd is not None
    # Few objects may be too few to matter; the program that they are counted on is one for all.
    program = Program(
        predictor.fit.piece(batch).low, replace(predictor.life, num_steps=len(crowd.steps(batch)))
    )
    own = replace(predictor.evaluation(0, batch), program=program)

    @cache
    def bytes_at(objects: int) -> int:
        return own.with_objects(run.steps(crowd, batch, objects)).used_bytes

    return bytes_at
