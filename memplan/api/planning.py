"""Answers which settings to train with: plans for one card."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from memplan.answers import (
    PlanAnswer,
    Setting,
    WorkloadFacts,
)
from memplan.api.question import (
    DEFAULT_SAFETY,
    Question,
    check_precision,
    explained,
    gpu_facts,
    notes_on,
    silent,
    versions,
)
from memplan.errors import UsageError
from memplan.fit.predictor import Say
from memplan.planner.search import (
    Budget,
    Space,
    search,
)
from memplan.tape import Tape
from memplan.trace.build import build
from memplan.trace.fake_cuda import warm_up
from memplan.trace.record import record as record_step
from memplan.trace.step import MEMORY_FORMATS, StepSettings
from memplan.workload import Workload


def plan_one(
    question: Question,
    *,
    effective_batch_size: int | None = None,
    safety_fraction: float = DEFAULT_SAFETY,
    num_images: int | None = None,
    free_formats: bool = True,
    data: str = "data.yaml",
    say: Say = silent,
) -> PlanAnswer:
    """Return the fastest setting that fits the first card of the question.

    Args:
        question: what is trained and on what; `recompute="auto"` tries none and all blocks.
        effective_batch_size: images a step, >= 1; None takes the workload's nominal batch.
        safety_fraction: part of the capacity left alone, in 0-1.
        num_images: training images in an epoch, for the time of one.
        free_formats: whether both tensor layouts may be tried.
        data: what to call the data set in the command.
        say: told what is being done.

    Raises:
        InfeasibleError: nothing fits.
        UsageError: a value is out of its range.
    """
    start = time.perf_counter()
    workload = question.made
    nominal = workload.nominal_batch_size
    effective = nominal if effective_batch_size is None else effective_batch_size
    _check_plan(effective, safety_fraction, question.devices)
    simulator = question.simulators()[0]
    check_precision(simulator.card, question.precision)
    automatic = question.recompute == "auto"
    base = question.step_settings(recompute=())
    space = Space(
        precisions=(question.precision,),
        memory_formats=MEMORY_FORMATS if free_formats else (question.memory_format,),
        recomputes=((), question.all_blocks) if automatic else (question.recompute_paths(),),
        effective_batch_size=effective,
        nominal_batch_size=nominal,
        devices=question.devices,
        allocator=question.allocator,
    )
    budget = Budget(capacity_bytes=simulator.card.capacity_bytes, safety_fraction=safety_fraction)
    warm_up()

    def recorder_of(chosen: StepSettings) -> Callable[[int], Tape]:
        return lambda batch: record_step(workload, batch, chosen)

    outcome = search(
        recorder_of,
        simulator,
        base,
        space,
        budget,
        num_images=num_images,
        objects=question.objects,
        say=say,
    )
    chosen = outcome.chosen
    return PlanAnswer(
        workload=WorkloadFacts(
            name=workload.name,
            img=workload.image_size,
            precision=chosen.precision,
            memory_format=chosen.memory_format,
            optimizer=question.optimizer,
            recompute=chosen.recompute,
            parameters=_num_parameters(workload),
            devices=question.devices,
            objects_per_image=workload.objects_per_image,
            deterministic=base.deterministic,
        ),
        gpu=gpu_facts(simulator),
        **{name: getattr(chosen, name) for name in Setting.__dataclass_fields__},
        budget_bytes=budget.num_bytes,
        headroom_bytes=budget.num_bytes - chosen.predicted.device_used_peak_bytes,
        alternatives=outcome.pareto,
        command=_train_command(question, chosen, data),
        versions=versions(),
        seconds=time.perf_counter() - start,
        notes=notes_on(simulator),
    )


def _check_plan(effective: int, safety_fraction: float, devices: int) -> None:
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
    cfg = getattr(question.made, "cfg", None)
    words += ["--cfg", cfg] if cfg else ["--workload", question.made.name]
    words += ["--data", data, "--img", str(question.made.image_size)]
    words += ["--batch", str(chosen.micro_batch_size)]
    words += ["--accumulate", str(chosen.accumulation_steps)]
    words += ["--precision", chosen.precision, "--memory-format", chosen.memory_format]
    words += ["--optimizer", question.optimizer]
    if chosen.recompute:
        everything = chosen.recompute == question.__dict__.get("all_blocks")
        words += ["--recompute", "all" if everything else ",".join(chosen.recompute)]
    return shlex.join(words)
