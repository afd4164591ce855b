"""Answers what would make a training fit: a smaller image, the smallest card, freed options."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from memplan.answers import Change, InfeasibleAnswer, Setting
from memplan.api.details import settings_of
from memplan.api.question import Question, gpu_facts, versions
from memplan.capabilities import Lean
from memplan.device import catalogue
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.device.life import Life, Program
from memplan.device.replay import Peaks, Simulator, replay
from memplan.errors import InfeasibleError, MemplanError
from memplan.fit.predictor import Say
from memplan.planner.evaluate import Recordings
from memplan.planner.search import NothingFitsError
from memplan.planner.space import Budget, Space, fits_budget
from memplan.spec import StepSpec
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
            versions=versions(),
            seconds=time.perf_counter() - start,
        )
    )


def explain(
    question: Question,
    simulator: Simulator,
    space: Space,
    budget: Budget,
    nothing: NothingFitsError,
    recordings: Recordings,
    *,
    start: float,
    say: Say,
) -> NoPlanError:
    """Return why nothing fits, with the nearest changes, each tried.

    Args:
        question: what was asked.
        simulator: the card.
        space: what could be chosen.
        budget: what could be taken.
        nothing: what the search found.
        recordings: of this workload.
        start: when the work began, by `time.perf_counter`.
        say: told what is being done.
    """
    least = nothing.least
    changes = [
        *_freed(question, simulator, space, budget, least, recordings, say),
        *_smaller_image(question, simulator, budget, least, recordings, say),
        *_larger_card(question, budget, least, recordings, say),
    ]
    return NoPlanError(
        InfeasibleAnswer(
            workload_name=question.made.name,
            img=question.made.image_size,
            gpu=gpu_facts(simulator),
            reason=str(nothing),
            budget_bytes=budget.num_bytes,
            over_bytes=nothing.over_bytes,
            least=least,
            changes=tuple(changes),
            versions=versions(),
            seconds=time.perf_counter() - start,
        )
    )


def _peaks(simulator: Simulator, tape: Tape, setting: Setting) -> Peaks:
    return replay(
        tape,
        simulator.card,
        simulator.settings if not setting.allocator else AllocatorSettings.parse(setting.allocator),
        life=Life(accumulates=setting.accumulation_steps > 1),
    )


def _lasting_bytes(simulator: Simulator, tape: Tape) -> int:
    """Return what a life holds at its end: parameters, optimizer state, average, workspaces."""
    program = Program(tape, Life())
    device = simulator.device_bytes(tape.convolutions, tape.reductions)
    sizes = program.sizes(tape.events.requested_bytes, device)
    return int(program.live_by_category(sizes)[:, -1].sum())


def _change(what: str, setting: Setting, peaks: Peaks, budget: Budget) -> Change:
    return Change(
        what=what,
        micro_batch_size=setting.micro_batch_size,
        device_used_peak_bytes=peaks.device_used_peak_bytes,
        budget_bytes=budget.num_bytes,
    )


def _base(question: Question, setting: Setting) -> StepSpec:
    return settings_of(question.step_settings(recompute=()), setting)


def _freed(
    question: Question,
    simulator: Simulator,
    space: Space,
    budget: Budget,
    least: Setting,
    recordings: Recordings,
    say: Say,
) -> Iterator[Change]:
    """Yield the options that stand in the way, where leaving them out is enough."""
    freed = []
    settings = _base(question, least)
    if not space.blocks and question.recompute != "all":
        freed.append("--recompute auto")
        settings = replace(settings, recompute=question.all_blocks)
    if not space.leans and isinstance(question.made, Lean) and not question.lean:
        freed.append("--lean")
        settings = replace(settings, lean=True)
    if not freed:
        return
    say("Trying what other options would save")
    try:
        tape = recordings.tape(settings, least.micro_batch_size)
    except MemplanError:
        return
    peaks = _peaks(simulator, tape, least)
    if fits_budget(peaks, budget):
        yield _change(" ".join(freed), least, peaks, budget)


def _smaller_image(
    question: Question,
    simulator: Simulator,
    budget: Budget,
    least: Setting,
    recordings: Recordings,
    say: Say,
) -> Iterator[Change]:
    """Yield the largest image that fits: memory beside what lasts grows with the area.

    Fragmentation does not, so a few sides below the first guess are tried.
    """
    side = question.made.image_size
    tape = recordings.tape(_base(question, least), least.micro_batch_size)
    fixed = simulator.outside.num_bytes + _lasting_bytes(simulator, tape)
    used = least.predicted.device_used_peak_bytes - fixed
    share = max(0.0, (budget.num_bytes - fixed) / max(1, used))
    guess = int(side * share**0.5) // _STEP * _STEP
    for tried in range(min(guess, side - _STEP), 0, -_STEP)[:_MOST_SIDES]:
        say(f"Trying images of {tried} pixels")
        try:
            smaller = replace(question, arguments={**question.arguments, "image_size": tried})
            tape = smaller.record(least.micro_batch_size, _base(smaller, least))
        except MemplanError:
            return
        peaks = _peaks(simulator, tape, least)
        if fits_budget(peaks, budget):
            yield _change(f"--img {tried}", least, peaks, budget)
            return


def _larger_card(
    question: Question, budget: Budget, least: Setting, recordings: Recordings, say: Say
) -> Iterator[Change]:
    """Yield the smallest card of the catalogue that holds the least setting."""
    tape = recordings.tape(_base(question, least), least.micro_batch_size)
    cards = sorted(catalogue.cards(), key=lambda card: card.capacity_bytes)
    for card in cards:
        room = Budget(capacity_bytes=card.capacity_bytes, safety_fraction=budget.safety_fraction)
        too_small = room.num_bytes < least.predicted.allocated_peak_bytes + card.context_bytes
        if too_small or (least.precision == "amp-bf16" and not card.supports_bfloat16):
            continue
        say(f"Trying {card.name}")
        try:
            peaks = _peaks(Simulator(card), tape, least)
        except MemplanError:
            continue
        if fits_budget(peaks, room):
            yield _change(f"--gpu {card.name}", least, peaks, room)
            return
