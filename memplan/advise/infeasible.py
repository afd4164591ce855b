"""Answers what would make a training fit: a smaller image, the smallest card, freed options."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from memplan.advise.crowding import Crowds
from memplan.advise.question import Question, gpu_facts
from memplan.answers import Change, InfeasibleAnswer, Setting
from memplan.device import catalogue
from memplan.device.card import Card
from memplan.device.life import Life
from memplan.device.replay import Peaks, Simulator
from memplan.errors import InfeasibleError, MemplanError
from memplan.evaluation.evaluate import evaluate
from memplan.fit.predictor import Say
from memplan.planner.evaluate import Recordings
from memplan.planner.search import NothingFitsError
from memplan.planner.space import Budget, Space, fits_budget
from memplan.spec import ALL_BLOCKS, FLAG, LEVERS, MODULES
from memplan.tape import Tape
from memplan.units import format_bytes

# Image sides are tried in steps of a detector's usual stride.
_STEP = 32
_MOST_SIDES = 3


class NoPlanError(InfeasibleError):
    """Nothing fits a card.

    Args:
        answer: says by how much, and what would.
    """

    def __init__(self, answer: InfeasibleAnswer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def below_context(question: Question, card: Card, start: float) -> NoPlanError | None:
    """Return why a capacity holds no training at all; None where it is above the context."""
    capacity = question.capacity_bytes
    if capacity is None or capacity > card.context_bytes:
        return None
    reason = (
        f"Nothing fits {card.title}: --capacity {format_bytes(capacity)} is not above the "
        f"{format_bytes(card.context_bytes)} that a process's CUDA context takes before any tensor."
    )
    return NoPlanError(
        InfeasibleAnswer(
            workload_name=question.made.name,
            img=question.made.image_size,
            gpu=replace(gpu_facts(Simulator(card)), capacity_bytes=capacity),
            reason=reason,
            budget_bytes=0,
            over_bytes=card.context_bytes - capacity,
            least=None,
            changes=(),
            versions=question.versions,
            seconds=time.perf_counter() - start,
        )
    )


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """A search that found nothing, and what it was made from."""

    question: Question
    simulator: Simulator
    space: Space
    budget: Budget
    least: Setting
    """What takes least memory."""
    recordings: Recordings
    crowds: Crowds

    @property
    def batch(self) -> int:
        """Images at once of the least setting."""
        return self.least.split.micro_batch_size

    def tape(self) -> Tape:
        """Return the recording of the least setting."""
        return self.recordings.tape(self.least.spec, self.batch)

    def peaks(self, question: Question, tape: Tape) -> Peaks:
        """Return the peaks of the least setting as another question has it: as a plan would."""
        simulator = question.simulator(self.least.spec.allocator)
        life = Life(accumulates=self.least.split.accumulates)
        return evaluate(tape, life, simulator, self.crowds.objects(self.batch)).peaks

    def change(self, what: str, peaks: Peaks, budget: Budget) -> Change:
        """Return a change that makes the least setting fit."""
        return Change(
            what=what,
            micro_batch_size=self.batch,
            device_used_peak_bytes=peaks.device_used_peak_bytes,
            budget_bytes=budget.num_bytes,
        )


def explain(
    question: Question,
    simulator: Simulator,
    space: Space,
    budget: Budget,
    nothing: NothingFitsError,
    recordings: Recordings,
    crowds: Crowds,
    *,
    start: float,
    say: Say,
) -> NoPlanError:
    """Return why nothing fits, with the nearest changes, each tried as a plan would run it.

    Args:
        question: what is trained.
        simulator: the card.
        space: what could be chosen.
        budget: what could be taken.
        nothing: what the search found.
        recordings: of this workload.
        crowds: the objects the plan reckons with.
        start: when the work began, by `time.perf_counter`.
        say: called with a line on what is being done.
    """
    refused = _Refused(
        question=question,
        simulator=simulator,
        space=space,
        budget=budget,
        least=nothing.least,
        recordings=recordings,
        crowds=crowds,
    )
    changes = [*_freed(refused, say), *_smaller_image(refused, say), *_larger_card(refused, say)]
    return NoPlanError(
        InfeasibleAnswer(
            workload_name=question.made.name,
            img=question.made.image_size,
            gpu=gpu_facts(simulator),
            reason=str(nothing),
            budget_bytes=budget.num_bytes,
            over_bytes=nothing.over_bytes,
            least=nothing.least,
            changes=tuple(changes),
            versions=question.versions,
            seconds=time.perf_counter() - start,
        )
    )


def _lasting_bytes(simulator: Simulator, tape: Tape) -> int:
    """Return what a life holds at its end: parameters, optimizer state, average, workspaces."""
    return int(evaluate(tape, Life(), simulator).live_bytes[-1])


def _freed(refused: _Refused, say: Say) -> Iterator[Change]:
    """Yield the options that stand in the way, where leaving them out is enough."""
    question, least = refused.question, refused.least.spec
    freed: list[str] = []
    spec = least
    for lever in LEVERS:
        if not lever.costs_speed or not lever.is_recorded or lever.name in refused.space.choices:
            continue
        value = getattr(least, lever.name)
        if lever.kind == MODULES:
            if refused.space.blocks or question.spec.recompute == ALL_BLOCKS:
                continue
            freed.append(f"{lever.option} auto")
            spec = replace(spec, recompute=question.all_blocks)
        elif lever.kind == FLAG and len(tried := lever.choices(question.made, value)) > 1:
            freed += lever.typed(tried[-1])
            spec = replace(spec, **{lever.name: tried[-1]})
    if not freed:
        return
    say("Trying what other options would save")
    try:
        peaks = refused.peaks(question, refused.recordings.tape(spec, refused.batch))
    except MemplanError:
        return
    if fits_budget(peaks, refused.budget):
        yield refused.change(" ".join(freed), peaks, refused.budget)


def _smaller_image(refused: _Refused, say: Say) -> Iterator[Change]:
    """Yield the largest image that fits: memory beside what lasts grows with the area.

    Fragmentation does not, so a few sides below the first guess are tried.
    """
    question, budget = refused.question, refused.budget
    side = question.made.image_size
    fixed = refused.simulator.outside.num_bytes
    fixed += _lasting_bytes(refused.simulator, refused.tape())
    used = refused.least.predicted.device_used_peak_bytes - fixed
    share = max(0.0, (budget.num_bytes - fixed) / max(1, used))
    guess = int(side * share**0.5) // _STEP * _STEP
    for tried in range(min(guess, side - _STEP), 0, -_STEP)[:_MOST_SIDES]:
        say(f"Trying images of {tried} pixels")
        try:
            smaller = replace(question, arguments={**question.arguments, "image_size": tried})
            peaks = refused.peaks(smaller, smaller.record(refused.batch, refused.least.spec))
        except MemplanError:
            return
        if fits_budget(peaks, budget):
            yield refused.change(f"--img {tried}", peaks, budget)
            return


def _larger_card(refused: _Refused, say: Say) -> Iterator[Change]:
    """Yield the smallest card of the catalogue that holds the least setting."""
    tape, least = refused.tape(), refused.least
    fraction = refused.budget.safety_fraction
    for card in sorted(catalogue.cards(), key=lambda card: card.capacity_bytes):
        room = Budget(capacity_bytes=card.capacity_bytes, safety_fraction=fraction)
        too_small = room.num_bytes < least.predicted.allocated_peak_bytes + card.context_bytes
        if too_small or (least.spec.precision == "amp-bf16" and not card.supports_bfloat16):
            continue
        say(f"Trying {card.name}")
        other = replace(refused.question, gpus=(card,), capacity_bytes=None, calibration=None)
        try:
            peaks = refused.peaks(other, tape)
        except MemplanError:
            continue
        if fits_budget(peaks, room):
            yield refused.change(f"--gpu {card.name}", peaks, room)
            return
