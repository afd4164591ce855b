"""Answers how unequal cards train together: a plan for each, one effective batch."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memplan.advise.crowding import Crowds
from memplan.advise.planning import answer_for, check_plan
from memplan.advise.question import Question, check_precision, silent, warm_up
from memplan.answers import PlanAnswer, Setting
from memplan.device.life import Life
from memplan.device.replay import Simulator
from memplan.errors import InfeasibleError
from memplan.fit.predictor import Predictor, Say
from memplan.parallel import kept_processes
from memplan.planner.devices import Sharing, best_sharing, seconds_between
from memplan.planner.search import settings_at
from memplan.planner.space import Budget, Space, configurations
from memplan.spec import FREE, MEMORY_FORMATS, Split, StepSpec

# Sizes at which a card's time is worked out; between them it is nearly a line.
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class _Found:
    """A way to share, and what each card does then."""

    sharing: Sharing
    settings: tuple[Setting, ...]


@kept_processes()
def plan_unequal(
    question: Question,
    *,
    effective_batch_size: int | None = None,
    safety_fraction: float | None = None,
    num_images: int | None = None,
    free: Collection[str] = FREE,
    data: str = "data.yaml",
    say: Say = silent,
) -> list[PlanAnswer]:
    """Return a plan for each of the question's cards, which together give the effective batch.

    All take the same number of micro-batches a step, and the slower or smaller card takes fewer
    images in each.

    Args:
        question: what is trained; as many cards as devices.
        effective_batch_size: images a step on all cards; None takes the workload's nominal batch.
        safety_fraction: part of each capacity left alone; None takes the default.
        num_images: training images in an epoch, for the time of one.
        free: levers that may be chosen; of them tensor layout and recomputing are.
        data: what to call the data set in the command.
        say: called with a line on what is being done.

    Raises:
        InfeasibleError: the cards together cannot hold it.
        UsageError: a value is out of its range.
    """
    start = time.perf_counter()
    question.check()
    nominal = question.made.nominal_batch_size
    effective = nominal if effective_batch_size is None else effective_batch_size
    crowds = Crowds.of(question, None, None)
    margin = crowds.margin(safety_fraction)
    check_plan(effective, margin.fraction, 1)
    simulators = question.simulators()
    for simulator in simulators:
        check_precision(simulator.card, question.spec.precision)
    base = question.step_spec
    choices: dict[str, tuple[Any, ...]] = {}
    if "memory_format" in free:
        choices["memory_format"] = MEMORY_FORMATS
    if "recompute" in free:
        choices["recompute"] = ((), question.all_blocks)
    space = Space(
        base=base,
        choices=choices,
        effective_batch_size=effective,
        nominal_batch_size=nominal,
    )
    budgets = [
        Budget(capacity_bytes=one.card.capacity_bytes, safety_fraction=margin.fraction)
        for one in simulators
    ]
    warm_up()
    found = [
        one
        for spec in configurations(space)
        if (one := _shared(question, simulators, budgets, space, spec, num_images, say))
    ]
    if not found:
        names = " and ".join(one.card.title for one in simulators)
        raise InfeasibleError(
            f"An effective batch of {effective} does not fit {names} together, one image each at "
            "least. Lower --img, or give another --effective-batch."
        )
    best = min(found, key=lambda one: one.sharing.seconds)
    total = best.settings[0].split.images_at_once
    return [
        replace(
            answer_for(question, simulator, setting, (setting,), budget, data=data, start=start),
            share_fraction=setting.split.micro_batch_size / total,
            safety_source=margin.source,
            notes=(_NOTE,),
        )
        for simulator, budget, setting in zip(simulators, budgets, best.settings, strict=True)
    ]


_NOTE = (
    "Unequal cards step together: losses must be sums over images, as YOLOv9's is, so that "
    "averaged gradients are those of the whole batch. `memplan train` gives every process the same "
    "micro-batch; take the smallest of the cards' there."
)


def _shared(
    question: Question,
    simulators: Sequence[Simulator],
    budgets: Sequence[Budget],
    space: Space,
    spec: StepSpec,
    num_images: int | None,
    say: Say,
) -> _Found | None:
    """Return the best way to share in one configuration; None where nothing fits."""
    effective = space.effective_batch_size
    predictor = Predictor(
        question.recorder(spec),
        simulators,
        Life(accumulates=True),
        1,
        min(effective, _SIZES[-1]),
        say,
        objects=question.objects,
    )
    cards = range(len(simulators))
    sharing = None
    # What is recorded of one sharing may make another one the best.
    while sharing is None or not predictor.check(sharing.micro_batches):
        largest = [
            predictor.largest_batch(card, budgets[card].num_bytes, effective).batch
            for card in cards
        ]
        if min(largest) < 1:
            return None
        sharing = _best(predictor, space, spec, largest)
        if sharing is None:
            return None
    rate = effective / sharing.seconds
    chosen = []
    for card, batch in zip(cards, sharing.micro_batches, strict=True):
        ((setting, _),) = settings_at(predictor, card, space, spec, [batch], None)
        predicted = replace(
            setting.predicted,
            images_per_second=rate,
            epoch_seconds=num_images / rate if num_images else None,
        )
        chosen.append(
            replace(
                setting,
                split=Split(
                    micro_batch_size=batch,
                    accumulation_steps=sharing.accumulation_steps,
                    devices=question.devices,
                    others_batch_size=sum(sharing.micro_batches) - batch,
                ),
                predicted=predicted,
            )
        )
    return _Found(sharing, tuple(chosen))


def _best(
    predictor: Predictor, space: Space, spec: StepSpec, largest: Sequence[int]
) -> Sharing | None:
    """Return the fastest way to share a batch among cards that hold so many images at most."""
    times = []
    for card, most in enumerate(largest):
        sizes = sorted({size for size in _SIZES if size < most} | {most})
        rates = [
            setting.predicted.images_per_second
            for setting, _ in settings_at(predictor, card, space, spec, sizes, None)
        ]
        times.append(
            seconds_between(sizes, [n / rate for n, rate in zip(sizes, rates, strict=True)])
        )
    return best_sharing(space.effective_batch_size, largest, times)
