"""Looks whether a plan is better off with objects matched in parts: where images are crowded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from memplan.api.crowds import Crowds
from memplan.api.question import Question
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.replay import Simulator
from memplan.errors import InfeasibleError
from memplan.fit.predictor import Say
from memplan.planner.evaluate import Recordings, ends_of
from memplan.planner.search import Outcome, search
from memplan.planner.space import DEPARTURE_FRACTION, Budget, Space, score
from memplan.spec import StepSpec

_PARTS = 4
# Fewer images at once than two in each part are not worth parting.
_FEWEST_IMAGES = 2 * _PARTS
# The assigner keeps about four tensors of this kind at its most, so from this share of all live
# bytes on it is a few percent of the step.
_WORTH_FRACTION = 0.005


def recordings_of(question: Question) -> Recordings:
    """Return recordings that the plans for several cards share."""
    return Recordings(question.recorder)


def ease(
    question: Question,
    outcome: Outcome,
    simulators: Mapping[str, Simulator],
    base: StepSpec,
    space: Space,
    budget: Budget,
    recordings: Recordings,
    crowds: Crowds,
    num_images: int | None,
    say: Say,
) -> tuple[Question, Outcome, Recordings]:
    """Return question, outcome and recordings with objects matched in parts where that is better.

    Whether it is looked into depends on the images and not on the budget, so that a larger budget
    never gives a worse plan.

    Args:
        question: what is trained.
        outcome: the best of the search without parts.
        simulators: the card, by allocator options.
        base: what all configurations share.
        space: what may be chosen.
        budget: what may be taken.
        recordings: those that the outcome was made from.
        crowds: the objects the plan reckons with.
        num_images: training images in an epoch; None when the data set is not known.
        say: told what is being done.
    """
    if question.made.assigner_parts != 1 or space.share < 2 * _FEWEST_IMAGES:
        return question, outcome, recordings
    own = score(outcome.chosen, space)
    if own >= outcome.ceiling * (1 - DEPARTURE_FRACTION):
        return question, outcome, recordings
    if _crowded_fraction(base, space, recordings, crowds) < _WORTH_FRACTION:
        return question, outcome, recordings
    parted = question.with_assigner_parts(_PARTS)
    others = recordings_of(parted)
    say(f"Trying objects matched in {_PARTS} parts")
    try:
        found = search(
            others,
            simulators,
            base,
            replace(space, smallest_micro_batch=_FEWEST_IMAGES),
            budget,
            num_images=num_images,
            objects=crowds.objects,
            say=say,
        )
    except InfeasibleError:
        return question, outcome, recordings
    if score(found.chosen, space) * (1 - DEPARTURE_FRACTION) <= own:
        return question, outcome, recordings
    return parted, found, others


def _crowded_fraction(
    base: StepSpec, space: Space, recordings: Recordings, crowds: Crowds
) -> float:
    """Return the largest tensor that grows with the objects, as a part of all that live at once."""
    batch = ends_of([one.micro_batch_size for one in space.splits()])[1]
    settings = replace(base, memory_format=space.memory_formats[0])
    if not recordings.has(settings, batch):
        return 0.0
    tape = recordings.tape(settings, batch)
    program = Program(tape, Life())
    objects = crowds.objects(batch)
    if not objects:
        return 0.0
    requested = tape.events.requested_bytes
    sizes = program.sizes(requested, DeviceBytes.none(tape), objects[-program.num_steps :])
    live = program.live_by_category(sizes).sum(axis=0).max()
    return float(program.largest_varying_bytes(requested, max(objects)) / live)
