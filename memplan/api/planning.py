"""Answers which settings to train with: a plan for each card."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace

from memplan.answers import (
    BatchFacts,
    InfeasibleAnswer,
    PlanAnswer,
    Setting,
    WorkloadFacts,
)
from memplan.api.budgets import budget_of
from memplan.api.crowds import Crowds, run_risk
from memplan.api.details import block_savings, phase_peaks, settings_of
from memplan.api.ease import ease, recordings_of
from memplan.api.notes import growth_notes, notes_on
from memplan.api.question import (
    Question,
    check_precision,
    explained,
    gpu_facts,
    silent,
    versions,
)
from memplan.api.ranks import other_ranks
from memplan.api.remedies import NoPlanError, below_context, explain
from memplan.capabilities import Lean
from memplan.device.card import Card
from memplan.device.replay import Simulator
from memplan.errors import UsageError
from memplan.fit.predictor import Say
from memplan.parallel import kept_processes
from memplan.planner.evaluate import Recordings
from memplan.planner.search import NothingFitsError, Outcome, search
from memplan.planner.space import ROUNDING_FRACTION, Budget, Space
from memplan.spec import MEMORY_FORMATS, PRECISIONS
from memplan.trace.build import build
from memplan.trace.fake_cuda import warm_up
from memplan.workload import Workload

# What ends most fragmentation, at no cost in speed that anybody measured.
# Source: "Optimizing memory usage with PYTORCH_ALLOC_CONF", PyTorch 2.11's notes on CUDA.
_OTHER_ALLOCATOR = "expandable_segments:True"


@dataclass(frozen=True, kw_only=True)
class Free:
    """What a plan may choose by itself, beside micro-batch, accumulation and recomputing."""

    precision: bool = False
    """Changes numbers, so it is only free where that was asked for."""
    memory_format: bool = True
    lean: bool = True
    allocator: bool = True
    assigner_parts: bool = True


@kept_processes()
def plan_many(
    question: Question,
    *,
    effective_batch_size: int | None = None,
    safety_fraction: float | None = None,
    num_images: int | None = None,
    num_epochs: int | None = None,
    free: Free | None = None,
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
    free: Free | None = None,
    data: str = "data.yaml",
    recordings: Recordings | None = None,
    say: Say = silent,
) -> PlanAnswer:
    """Return the fastest setting that fits the first card of the question.

    Args:
        question: what is trained and on what; `recompute="auto"` chooses among the blocks.
        effective_batch_size: images a step, >= 1; None takes the workload's nominal batch.
        safety_fraction: part of the capacity left alone, in 0-1; None takes what is right for
            what is known of the data.
        num_images: training images in an epoch, for the time of one.
        num_epochs: of the run, for the chance that it meets an image too full; takes the data's
            `object_counts`. None leaves that out.
        free: what the plan may choose by itself; None takes what changes no numbers.
        data: what to call the data set in the command.
        recordings: those of plans for other cards; None begins anew.
        say: told what is being done.

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
    simulators = _simulators(question, free or Free())
    simulator = simulators[question.allocator]
    check_precision(simulator.card, question.precision)
    base = question.step_settings(recompute=())
    space = _space(question, effective, free or Free(), simulator.card, tuple(simulators))
    budget, taken = budget_of(question, simulator.card, margin.fraction)
    warm_up()
    if recordings is None:
        recordings = recordings_of(question)
    try:
        outcome = search(
            recordings,
            simulators,
            base,
            space,
            budget,
            num_images=num_images,
            objects=crowds.objects,
            say=say,
        )
    except NothingFitsError as nothing:
        raise explain(
            question, simulator, space, budget, nothing, recordings, start=start, say=say
        ) from nothing
    if free is None or free.assigner_parts:
        eased = ease(
            question, outcome, simulators, base, space, budget, recordings, crowds, num_images, say
        )
        question, outcome, recordings = eased
        crowds = replace(crowds, question=question)
    chosen = outcome.chosen
    simulator = simulators[chosen.allocator]
    settings = settings_of(base, chosen)
    accumulates = chosen.accumulation_steps > 1
    say("Looking into the chosen setting")
    tape = recordings.tape(settings, chosen.micro_batch_size)
    objects = crowds.objects(chosen.micro_batch_size)
    return replace(
        answer_for(question, simulator, chosen, outcome.pareto, budget, data=data, start=start),
        other_ranks=other_ranks(question, simulator, tape, accumulates=accumulates),
        phase_peaks=phase_peaks(simulator, tape, objects, accumulates=accumulates),
        block_savings=block_savings(
            lambda one: recordings.tape(one, chosen.micro_batch_size), simulator, settings
        ),
        safety_source=f"{margin.source} {taken}".rstrip(),
        taken_bytes=budget.taken_bytes,
        unchecked=_unchecked(recordings),
        notes=(*notes_on(simulator, question), *growth_notes(recordings.recorded(settings))),
        batch=_batch_facts(outcome, effective, nominal),
        risk=run_risk(
            crowds,
            simulator,
            settings,
            chosen.micro_batch_size,
            [split.micro_batch_size for split in space.splits()],
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


def _simulators(question: Question, free: Free) -> dict[str, Simulator]:
    """Return the first card by the allocator options that may be tried, the plain ones first."""
    options = [question.allocator]
    if free.allocator and not question.allocator:
        options.append(_OTHER_ALLOCATOR)
    return {one: replace(question, allocator=one).simulators()[0] for one in options}


def _space(
    question: Question, effective: int, free: Free, card: Card, allocators: tuple[str, ...]
) -> Space:
    """Return what a plan may choose from."""
    automatic = question.recompute == "auto"
    precisions = [one for one in PRECISIONS if one != "amp-bf16" or card.supports_bfloat16]
    lean = free.lean and not question.lean and isinstance(question.made, Lean)
    return Space(
        precisions=tuple(precisions) if free.precision else (question.precision,),
        memory_formats=MEMORY_FORMATS if free.memory_format else (question.memory_format,),
        recomputes=((),) if automatic else (question.recompute_paths(),),
        effective_batch_size=effective,
        nominal_batch_size=question.made.nominal_batch_size,
        devices=question.devices,
        allocator=question.allocator,
        blocks=question.all_blocks if automatic else (),
        leans=(False, True) if lean else (),
        allocators=allocators[1:],
        rounding_fraction=ROUNDING_FRACTION,
    )


def _batch_facts(outcome: Outcome, asked: int, nominal: int) -> BatchFacts:
    """Return what the chosen batch means for the training."""
    chosen = outcome.chosen
    rate = chosen.predicted.images_per_second
    gain: float | None = 0.0
    if chosen.effective_batch_size != asked:
        exact = outcome.exact
        gain = rate / exact.predicted.images_per_second - 1 if exact else None
    cost = None
    if chosen.accumulation_steps > 1 and outcome.unsplit is not None:
        cost = max(0.0, outcome.unsplit.predicted.images_per_second / rate - 1)
    return BatchFacts(
        asked_batch_size=asked,
        rounding_gain_fraction=gain,
        accumulation_cost_fraction=cost,
        weight_decay_factor=chosen.effective_batch_size / nominal,
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
        question: what was asked.
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
            precision=chosen.precision,
            memory_format=chosen.memory_format,
            optimizer=question.optimizer,
            recompute=chosen.recompute,
            lean=chosen.lean,
            fused=question.fused,
            assigner_parts=workload.assigner_parts,
            parameters=_num_parameters(workload),
            devices=question.devices,
            objects_per_image=workload.objects_per_image,
            deterministic=question.deterministic or workload.deterministic,
        ),
        gpu=gpu_facts(simulator),
        **{name: getattr(chosen, name) for name in Setting.__dataclass_fields__},
        budget_bytes=budget.num_bytes,
        headroom_bytes=budget.num_bytes - chosen.predicted.device_used_peak_bytes,
        alternatives=alternatives,
        command=_train_command(question, chosen, data),
        versions=versions(),
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


def _num_parameters(workload: Workload) -> int:
    with explained(workload):
        return sum(parameter.numel() for parameter in build(workload).parameters())


def _train_command(question: Question, chosen: Setting, data: str) -> str:
    """Return the line that runs a plan."""
    words = ["memplan", "train"]
    if chosen.allocator:
        words.insert(0, f"PYTORCH_CUDA_ALLOC_CONF={chosen.allocator}")
    cfg = getattr(question.made, "cfg", None)
    words += ["--cfg", cfg] if cfg else ["--workload", question.made.name]
    words += ["--data", data, "--img", str(question.made.image_size)]
    words += ["--batch", str(chosen.micro_batch_size)]
    words += ["--accumulate", str(chosen.accumulation_steps)]
    if question.made.validation_batch_size is not None:
        words += ["--val-batch", str(question.made.validation_batch_size)]
    words += ["--precision", chosen.precision, "--memory-format", chosen.memory_format]
    words += ["--optimizer", question.optimizer]
    words += ["--lean"] * chosen.lean + ["--fused"] * question.fused
    parts = question.made.assigner_parts
    words += ["--assigner-parts", str(parts)] if parts > 1 else []
    words += ["--multi-scale"] * bool(getattr(question.made, "multi_scale", False))
    if chosen.devices > 1:
        words += ["--device", ",".join(map(str, range(chosen.devices)))]
    if chosen.recompute:
        everything = chosen.recompute == question.__dict__.get("all_blocks")
        words += ["--recompute", "all" if everything else ",".join(chosen.recompute)]
    return shlex.join(words)
