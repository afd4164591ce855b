"""A plan that was made, for the questions beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from memplan.advise.crowding import Crowds
from memplan.advise.question import Question
from memplan.answers import PlanAnswer, Setting
from memplan.device.life import Life
from memplan.device.replay import Peaks, Simulator
from memplan.evaluation.evaluate import evaluate, rate_of
from memplan.fit.predictor import Say
from memplan.planner.evaluate import Recordings
from memplan.planner.space import ROUNDING_FRACTION, Budget, Space
from memplan.spec import Split, StepSpec
from memplan.tape import Tape


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan that was made, and what it was made from."""

    question: Question
    """As it was given, of one card."""
    answer: PlanAnswer
    recordings: Recordings
    """Those that the plan was made from."""
    asked_batch_size: int
    """Images a step, as requested."""
    crowds: Crowds
    free: Collection[str]
    """Levers that the plan might choose by itself."""
    safety_fraction: float | None
    """As given; None takes what is right for what is known of the data."""
    say: Say

    @property
    def chosen(self) -> Setting:
        """The plan's setting."""
        return self.answer.alternatives[-1]

    @property
    def spec(self) -> StepSpec:
        """How the plan's step runs."""
        return self.chosen.spec

    @property
    def base(self) -> StepSpec:
        """How a step runs as it was given, with nothing recomputed."""
        return replace(self.question.step_spec, recompute=())

    @property
    def objects(self) -> Callable[[int], Sequence[int]]:
        """The objects in the fullest image of each step, by micro-batch size."""
        return self.crowds.objects

    @cached_property
    def simulator(self) -> Simulator:
        """The card under the plan's allocator options."""
        return self.question.simulator(self.spec.allocator)

    @property
    def budget(self) -> Budget:
        """What the run may take of the plan's card."""
        return Budget(
            capacity_bytes=self.answer.gpu.capacity_bytes,
            safety_fraction=self.crowds.margin(self.safety_fraction).fraction,
            taken_bytes=self.answer.taken_bytes,
        )

    def space(self, **changes: object) -> Space:
        """Return a space with the question's own settings and the images a step requested."""
        question = self.question
        own = Space(
            base=replace(self.base, precision=self.spec.precision),
            effective_batch_size=self.asked_batch_size,
            nominal_batch_size=question.made.nominal_batch_size,
            devices=question.devices,
            rounding_fraction=ROUNDING_FRACTION,
        )
        return replace(own, **changes)  # type: ignore[arg-type]


def replayed_with_rate(
    planned: Planned, simulator: Simulator, tape: Tape, split: Split
) -> tuple[Peaks, float]:
    """Return the peaks of a tape's life on a card, and images per second of one device.

    Args:
        planned: tells the objects in the fullest images.
        simulator: the card.
        tape: at its micro-batch size.
        split: how many micro-batches go to an optimizer step.
    """
    objects = planned.objects(tape.description.micro_batch_size)
    life = Life(accumulates=split.accumulates)
    peaks = evaluate(tape, life, simulator, objects).peaks
    return peaks, rate_of(tape, simulator, split)
