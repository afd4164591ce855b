"""Answers which settings to train with: a plan for each card."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from memplan.advise.budget import budget_of
from memplan.advise.crowding import Crowds, run_risk
from memplan.advise.infeasible import NoPlanError, below_context, explain
from memplan.advise.inside_plan import block_savings, phase_peaks
from memplan.advise.notes import growth_notes, notes_on
from memplan.advise.other_ranks import other_ranks
from memplan.advise.question import (
    Question,
    check_precision,
    gpu_facts,
    silent,
    warm_up,
)
from memplan.answers import (
    BatchFacts,
    InfeasibleAnswer,
    PlanAnswer,
    Setting,
    WorkloadFacts,
)
from memplan.capabilities import Described, MultiScale
from memplan.device.card import Card
from memplan.device.life import Life
from memplan.device.replay import Simulator
from memplan.errors import UsageError
from memplan.evaluation.evaluate import evaluate
from memplan.fit.predictor import Say
from memplan.parallel import kept_processes
from memplan.planner.evaluate import Recordings, ends_of
from memplan.planner.search import NothingFitsError, Outcome, search
from memplan.planner.space import (
    ROUNDING_FRACTION,
    Budget,
    Space,
    plain_configurations,
)
from memplan.spec import FREE, LEVERS, MODULES

# From this share of all live bytes on, what the assigner keeps for each object makes a few percent
# of the step: it holds about four tensors of the largest kind at its most.
_WORTH_PARTING = 0.005
_LEAST_IMAGES_A_PART = 4


def recordings_of(question: Question) -> Recordings:
    """Return recordings that the plans for several cards share."""
    return Recordings(question.recorder)


@kept_processes()
def plan_many(
    question: Question,
    *,
    effective_batch_size: int | None = None,
    safety_fraction: float | None = None,
    num_images: int | None = None,
    num_epochs: int | None = None,
    free: Collection[str] = FREE,
    data: str = "data.yaml",
    recordings: Recordings | None = None,
    say: Say = silent,
) -> list[PlanAnswer | InfeasibleAnswer]:
    """Return for each card of the question a plan, or why there is none.

    The arguments are those of `plan_one`.

    Raises:
        UsageError: a value is out of its range.
    """
    recordings = recordings_of(question) if recordings is None else recordings
    answers: list[PlanAnswer | InfeasibleAnswer] = []
    for gpu in question.gpus or (None,):
        try:
            answers.append(
                plan_one(
                    question if gpu is None else replace(question, gpus=(gpu,)),
                    effective_batch_size=effective_batch_size,
                    safety_fraction=safety_fraction,
                    num_images=num_images,
                    num_epochs=num_epochs,
                    free=free,
                    data=data,
                    recordings=recordings,
                    say=say,
                )
            )
        except NoPlanError as error:
            answers.append(error.answer)
    return answers


@kept_processes()
def plan_one(
    question: Question,
    *,
    effective_batch_size: int | None = None,
    safety_fraction: float | None = None,
    num_images: int | None = None,
    num_epochs: int | None = None,
    free: Collection[str] = FREE,
    data: str = "data.yaml",
    recordings: Recordings | None = None,
    say: Say = silent,
) -> PlanAnswer:
    """Return the fastest setting that fits the first card of the question.

    Args:
        question: what is trained and on what.
        effective_batch_size: images a step, >= 1; None takes the workload's nominal batch.
        safety_fraction: part of the capacity left alone, in 0-1; None takes what is right for
            what is known of the data.
        num_images: training images in an epoch, for the time of one.
        num_epochs: of the run, for the chance that it meets an image too full; takes the data's
            `object_counts`. None leaves that out.
        free: levers that the plan may choose by itself, by name.
        data: what to call the data set in the command.
        recordings: those of plans for other cards; None begins anew.
        say: called with a line on what is being done.

    Raises:
        NoPlanError: nothing fits; says by how much, and the nearest change that would.
        UsageError: a value is out of its range.
    """
    start = time.perf_counter()
    question.check()
    workload = question.made
    nominal = workload.nominal_batch_size
    effective = nominal if effective_batch_size is None else effective_batch_size
    crowds = Crowds.of(question, num_images, num_epochs)
    margin = crowds.margin(safety_fraction)
    check_plan(effective, margin.fraction, question.devices)
    bare = replace(question, capacity_bytes=None).cards()[0]
    if refusal := below_context(question, bare, start):
        raise refusal
    simulator = question.simulators()[0]
    check_precision(simulator.card, question.spec.precision)
    budget, taken = budget_of(question, simulator.card, margin.fraction)
    warm_up()
    if recordings is None:
        recordings = recordings_of(question)
    space = _space(question, effective, free, simulator.card)
    space = _without_idle_parts(space, recordings, crowds)
    simulators = {one: question.simulator(one) for one in space.allocators}
    try:
        outcome = search(
            recordings,
            simulators,
            space,
            budget,
            num_images=num_images,
            objects=crowds.objects,
            say=say,
        )
    except NothingFitsError as nothing:
        raise explain(
            question, simulator, space, budget, nothing, recordings, crowds, start=start, say=say
        ) from nothing
    chosen = outcome.chosen
    spec, split = chosen.spec, chosen.split
    simulator = simulators[spec.allocator]
    accumulates = split.accumulates
    say("Looking into the chosen setting")
    tape = recordings.tape(spec, split.micro_batch_size)
    objects = crowds.objects(split.micro_batch_size)
    return replace(
        answer_for(question, simulator, chosen, outcome.pareto, budget, data=data, start=start),
        other_ranks=other_ranks(question, simulator, tape, accumulates=accumulates),
        phase_peaks=phase_peaks(simulator, tape, objects, accumulates=accumulates),
        block_savings=block_savings(
            lambda one: recordings.tape(one, split.micro_batch_size), simulator, spec
        ),
        safety_source=f"{margin.source} {taken}".rstrip(),
        taken_bytes=budget.taken_bytes,
        unchecked=_unchecked(recordings),
        notes=(*notes_on(simulator, question), *growth_notes(recordings.recorded(spec))),
        batch=_batch_facts(outcome, effective, nominal),
        risk=run_risk(
            crowds,
            simulator,
            spec,
            split.micro_batch_size,
            [one.micro_batch_size for one in space.splits()],
            accumulates=accumulates,
            safety_fraction=margin.fraction,
            say=say,
        ),
        seconds=time.perf_counter() - start,
    )


def _unchecked(recordings: Recordings) -> tuple[str, ...]:
    """Return which batches were left out of a plan because they could not be recorded."""
    failures = recordings.failures
    if not failures:
        return ()
    batch = min(failures)
    named = ", ".join(map(str, sorted(failures)))
    sentence = (
        f"Not checked, because it could not be recorded in every way to run: micro-batch {named} "
        f"({failures[batch]})."
    )
    return (sentence,)


def _space(question: Question, effective: int, free: Collection[str], card: Card) -> Space:
    """Return what a plan may choose from."""
    automatic = "recompute" in free
    base = question.step_spec
    if automatic:
        base = replace(base, recompute=())
    choices: dict[str, tuple[Any, ...]] = {}
    for lever in LEVERS:
        value = getattr(base, lever.name)
        if lever.name in free and lever.kind != MODULES:
            choices[lever.name] = lever.choices(question.made, value)
    if "precision" in choices and not card.supports_bfloat16:
        choices["precision"] = tuple(one for one in choices["precision"] if one != "amp-bf16")
    choices = {name: values for name, values in choices.items() if len(values) > 1}
    base = replace(base, **{name: values[0] for name, values in choices.items()})
    return Space(
        base=base,
        choices=choices,
        effective_batch_size=effective,
        nominal_batch_size=question.made.nominal_batch_size,
        devices=question.devices,
        blocks=question.all_blocks if automatic else (),
        rounding_fraction=ROUNDING_FRACTION,
    )


def _without_idle_parts(space: Space, recordings: Recordings, crowds: Crowds) -> Space:
    """Return the space without objects matched in parts where that saves next to nothing.

    That depends on the images and not on the budget, so that a larger budget never gives a worse
    plan.
    """
    parts = space.choices.get("assigner_parts")
    if parts is None:
        return space
    is_large = space.share >= _LEAST_IMAGES_A_PART * max(parts)
    if is_large and _crowded_fraction(space, recordings, crowds) >= _WORTH_PARTING:
        return space
    rest = {name: values for name, values in space.choices.items() if name != "assigner_parts"}
    return replace(space, choices=rest)


def _crowded_fraction(space: Space, recordings: Recordings, crowds: Crowds) -> float:
    """Return the largest tensor that grows with the objects, as a part of all that live at once."""
    several = plain_configurations(space)
    ends = ends_of([one.micro_batch_size for one in space.splits()], several[0])
    objects = crowds.objects(ends[1])
    if not objects:
        return 0.0
    recordings.need([(spec, batch) for spec in several for batch in ends])
    if not recordings.has(several[0], ends[1]):
        return 0.0
    tape = recordings.tape(several[0], ends[1])
    alone = evaluate(tape, Life(), None, objects)
    largest = alone.program.largest_varying_bytes(alone.requested, max(objects))
    return float(largest / alone.live_bytes.max())


def _batch_facts(outcome: Outcome, requested: int, nominal: int) -> BatchFacts:
    """Return what the chosen batch means for the training."""
    chosen = outcome.chosen
    rate = chosen.predicted.images_per_second
    gain: float | None = 0.0
    effective = chosen.split.effective_batch_size
    if effective != requested:
        exact = outcome.exact
        gain = rate / exact.predicted.images_per_second - 1 if exact else None
    cost = None
    if chosen.split.accumulates and outcome.unsplit is not None:
        cost = max(0.0, outcome.unsplit.predicted.images_per_second / rate - 1)
    return BatchFacts(
        asked_batch_size=requested,
        rounding_gain_fraction=gain,
        accumulation_cost_fraction=cost,
        weight_decay_factor=effective / nominal,
    )


def answer_for(
    question: Question,
    simulator: Simulator,
    chosen: Setting,
    alternatives: tuple[Setting, ...],
    budget: Budget,
    *,
    data: str,
    start: float,
) -> PlanAnswer:
    """Return the answer that states a chosen setting.

    Args:
        question: what is trained and on what.
        simulator: the card.
        chosen: the setting.
        alternatives: the Pareto set, the chosen one included.
        budget: what the plan may take.
        data: what to call the data set in the command.
        start: when the work began, by `time.perf_counter`.
    """
    workload = question.made
    return PlanAnswer(
        workload=WorkloadFacts(
            name=workload.name,
            img=workload.image_size,
            spec=chosen.spec,
            parameters=question.num_parameters,
            devices=question.devices,
            objects_per_image=workload.objects_per_image,
        ),
        gpu=gpu_facts(simulator),
        spec=chosen.spec,
        split=chosen.split,
        nominal_batch_size=chosen.nominal_batch_size,
        predicted=chosen.predicted,
        budget_bytes=budget.num_bytes,
        headroom_bytes=budget.num_bytes - chosen.predicted.device_used_peak_bytes,
        alternatives=alternatives,
        command=_train_command(question, chosen, data),
        versions=question.versions,
        seconds=time.perf_counter() - start,
        notes=notes_on(simulator, question),
    )


def check_plan(effective: int, safety_fraction: float, devices: int) -> None:
    """Refuse numbers that no plan can have.

    Raises:
        UsageError: a value is out of its range, or devices cannot share the batch.
    """
    if effective < 1:
        raise UsageError(f"--effective-batch {effective} is below 1. Give the images a step.")
    if effective % devices:
        nearest = max(devices, round(effective / devices) * devices)
        raise UsageError(
            f"--effective-batch {effective} cannot be shared evenly by --devices {devices}. "
            f"Nearest: {nearest}."
        )
    if not 0 <= safety_fraction < 1:
        raise UsageError(f"--safety {safety_fraction} is not in 0 to 1, such as 0.05.")


def _train_command(question: Question, chosen: Setting, data: str) -> str:
    """Return the line that runs a plan."""
    workload, split = question.made, chosen.split
    words = [*chosen.spec.variables("train"), "memplan", "train"]
    cfg = workload.cfg if isinstance(workload, Described) else None
    words += ["--cfg", cfg] if cfg else ["--workload", workload.name]
    if blocks := question.arguments.get("blocks"):
        words += ["--blocks", blocks]
    words += ["--data", data, "--img", str(workload.image_size)]
    words += ["--batch", str(split.micro_batch_size)]
    words += ["--accumulate", str(split.accumulation_steps)]
    if workload.validation_batch_size is not None:
        words += ["--val-batch", str(workload.validation_batch_size)]
    # Blocks that were never looked for are not all of them.
    words += chosen.spec.options("train", blocks=question.__dict__.get("all_blocks", ()))
    if isinstance(workload, MultiScale) and workload.multi_scale:
        words.append("--multi-scale")
    if split.devices > 1:
        words += ["--device", ",".join(map(str, range(split.devices)))]
    return shlex.join(words)
