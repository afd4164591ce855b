"""Answers which batch a training is started with: the plan of `--auto-batch`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memplan.advise.planning import plan_one
from memplan.advise.plans import known_calibrations
from memplan.advise.question import Question
from memplan.advise.train_request import TrainRequest, option_of
from memplan.answers import PlanAnswer
from memplan.errors import UsageError
from memplan.planner.crowd import Crowd
from memplan.planner.host import plan_for_host
from memplan.spec import free_levers, of_plan
from memplan.tape import Int64
from memplan.training import TrainOptions
from memplan.units import format_bytes
from memplan.workload import TrainingData, Workload

if TYPE_CHECKING:
    import torch

_PLANNING = "Planning the batch: one training step is recorded and replayed..."


def batch_plan(
    request: TrainRequest,
    workload: Workload,
    data: TrainingData,
    options: TrainOptions,
    device: torch.device,
) -> PlanAnswer:
    """Return the plan, which the first of several processes makes for all.

    Args:
        request: tells the card, the margin and the objects in an image.
        workload: what is trained.
        data: tells images and objects.
        options: how it is trained; levers among `given` are not the plan's to choose.
        device: what it is trained on.

    Raises:
        InfeasibleError: not even one image fits.
        UsageError: an option is for another kind of device.
    """
    from memplan.training.distributed import join

    ranks = join(device, options.rank_timeout)
    if ranks.size > 1 and device.type == "cpu":
        raise UsageError(
            "--auto-batch plans host memory for one process. Give --batch, or train on one."
        )

    def work() -> dict[str, Any]:
        if device.type == "cpu":
            made = plan_for_this_host(request, workload, data, options)
        else:
            made = plan_for_card(request, workload, data, options, device.index or 0, ranks.size)
        _tell_plan(request, made)
        return made.to_json()

    return PlanAnswer.from_json(ranks.alone(work))


def plan_for_card(
    request: TrainRequest,
    workload: Workload,
    data: TrainingData,
    options: TrainOptions,
    index: int,
    num_ranks: int,
) -> PlanAnswer:
    """Return the plan for a card: the one trained on, or the one requested.

    Args:
        request: tells the card, the margin and the objects in an image.
        workload: what is trained.
        data: tells images and objects.
        options: how it is trained.
        index: of the card in this machine.
        num_ranks: devices that train together.

    Raises:
        InfeasibleError: not even one image fits.
    """
    from memplan.training.setup import step_spec

    values = request.values
    request.tell(_PLANNING)
    question = Question(
        workload=workload,
        gpus=(index if values["gpu"] is None else values["gpu"],),
        spec=of_plan(step_spec(options, workload)),
        devices=num_ranks,
        calibration=values["calibration"],
        object_counts=_fill_images(workload, data, values["objects_per_image"]),
    )
    return plan_one(
        known_calibrations(question, lambda line: request.tell(f"Warning: {line}")),
        effective_batch_size=options.effective_batch,
        safety_fraction=values["safety"],
        num_images=data.num_training_images,
        free=free_of(request, options),
        data=str(options.data),
        say=request.say,
    )


def free_of(request: TrainRequest, options: TrainOptions) -> frozenset[str]:
    """Return the levers that a plan may choose: those that were not given a value."""
    return free_levers({name: request.values[name] for name in options.given})


def plan_for_this_host(
    request: TrainRequest, workload: Workload, data: TrainingData, options: TrainOptions
) -> PlanAnswer:
    """Return the plan for training on the processor.

    Raises:
        InfeasibleError: not even one image fits.
        UsageError: an option is about a card.
    """
    from memplan.trace.record import record
    from memplan.training.setup import step_spec

    values = request.values
    if values["gpu"] is not None:
        raise UsageError(
            f"--gpu {values['gpu']} plans for a card, but this run is on the CPU. Use "
            "`memplan plan` for a plan alone, or leave out --gpu."
        )
    for name in ("calibration", "safety"):
        if values[name] is not None:
            raise UsageError(
                f"{option_of(name)} is about a card, but this run is on the CPU. Leave it out."
            )
    if values["precision"] not in {None, "fp32"}:
        raise UsageError(f"--precision {values['precision']} needs a GPU; a CPU has fp32.")
    request.tell(_PLANNING)
    _fill_images(workload, data, values["objects_per_image"])
    spec = of_plan(step_spec(options, workload))
    if "memory_format" in free_of(request, options):
        spec = replace(spec, memory_format="channels-last")
    return plan_for_host(
        workload,
        spec,
        record,
        effective_batch=options.effective_batch,
        images=data.num_training_images,
        command=request.command,
    )


def _fill_images(workload: Workload, data: TrainingData, stated: int | None) -> Int64 | None:
    """Set how full the workload's images are; return the data set's counts unless it was stated."""
    counts = data.objects_per_image if stated is None else None
    mean = stated if counts is None else Crowd.of_data(workload, counts).mean
    workload.objects_per_image = max(1, round(mean or 0))
    return counts


def _tell_plan(request: TrainRequest, plan: PlanAnswer) -> None:
    predicted = plan.predicted
    accumulation = (
        f"{plan.split.accumulation_steps} a step" if plan.split.accumulates else "no accumulation"
    )
    request.tell(
        f"Plan for {plan.gpu.name}: {plan.split.micro_batch_size} images at once, {accumulation}, "
        f"{plan.split.effective_batch_size} images a step; {plan.spec.words()}; "
        f"{format_bytes(predicted.device_used_peak_bytes)} of {format_bytes(plan.budget_bytes)} "
        "(predicted)"
    )
    for note in plan.notes:
        request.tell(note)
