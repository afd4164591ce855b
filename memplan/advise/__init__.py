"""The functions behind the commands: probe, plan, record and replay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from memplan.advise.also import (
    Also,
    CompareCards,
    Headroom,
    MaxImageSize,
    SecondCard,
    asked_of,
    check_asked,
    with_answers,
)
from memplan.advise.crowding import Crowds
from memplan.advise.planned import Planned
from memplan.advise.planning import plan_many, plan_one, recordings_of
from memplan.advise.probing import probe_many
from memplan.advise.question import (
    DEFAULT_SAFETY,
    DEFAULT_WORKLOAD,
    Question,
    silent,
    versions,
)
from memplan.answers import PlanAnswer, ProbeAnswer
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.device.chosen import calibrated_card
from memplan.device.life import Life
from memplan.device.replay import Peaks
from memplan.device.replay import replay as replay_on
from memplan.errors import UnknownNameError
from memplan.fit.predictor import Say
from memplan.spec import LEVER, Levers, StepSpec, free_levers, spec_of
from memplan.tape import Int64, Tape
from memplan.units import parse_bytes
from memplan.workload import Workload

__all__ = [
    "DEFAULT_SAFETY",
    "DEFAULT_WORKLOAD",
    "CompareCards",
    "Headroom",
    "MaxImageSize",
    "Question",
    "SecondCard",
    "plan",
    "plan_many",
    "plan_one",
    "probe",
    "probe_many",
    "record",
    "replay",
    "versions",
]

Gpu = str | int | Card


def _spec(
    function: Callable[..., Any], spec: StepSpec | None, levers: Mapping[str, Any]
) -> StepSpec:
    """Return a spec with single levers in place of its own, refused where there is none such."""
    for name in levers:
        if name not in LEVER:
            known = {*inspect.signature(function).parameters, *LEVER} - {"levers"}
            raise UnknownNameError("option", name, known)
    given = spec_of(levers)
    return replace(spec or StepSpec(), **{name: getattr(given, name) for name in levers})


def _arguments(
    arguments: Mapping[str, Any] | None,
    img: int | None,
    objects_per_image: int | None,
    val_batch: int | None,
    multi_scale: bool | None,
) -> dict[str, Any]:
    """Return the arguments of a workload's factory; None is not given."""
    named = {
        "image_size": img,
        "objects_per_image": objects_per_image,
        "validation_batch_size": val_batch,
        "multi_scale": multi_scale,
    }
    return dict(arguments or {}) | {key: one for key, one in named.items() if one is not None}


def _cards(gpu: Gpu | Sequence[Gpu] | None) -> tuple[Gpu, ...]:
    if gpu is None:
        return ()
    return (gpu,) if isinstance(gpu, str | int | Card) else tuple(gpu)


def _bytes(capacity: int | str | None) -> int | None:
    return parse_bytes(capacity) if isinstance(capacity, str) else capacity


def probe(
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    gpu: Gpu | Sequence[Gpu] | None = None,
    batch: int | Sequence[int] = 16,
    img: int | None = None,
    capacity: int | str | None = None,
    devices: int = 1,
    spec: StepSpec | None = None,
    objects_per_image: int | None = None,
    object_counts: Int64 | None = None,
    val_batch: int | None = None,
    multi_scale: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    calibration: Path | Calibration | None = None,
    cuda_version: str | None = None,
    cudnn_version: str | None = None,
    say: Say = silent,
    **levers: Unpack[Levers],
) -> ProbeAnswer | list[ProbeAnswer]:
    """Return where a training's memory goes on a card, and how it grows with the batch.

    Args:
        workload: a name as on the command line, or a workload.
        gpu: a card or several; None takes the one in this machine.
        batch: micro-batch sizes to answer for.
        img: side of the images, pixels; None takes the workload's default.
        capacity: overrides the cards' memory, bytes or text such as `24GiB`.
        devices: cards that train together.
        spec: how a step runs; None takes the defaults.
        objects_per_image: labelled objects in an image.
        object_counts: objects in each image of the data set, int64 `[images]`.
        val_batch: images validated at once; None leaves it to the workload.
        multi_scale: whether training resizes its images; plans are for the largest.
        arguments: further ones for the workload's factory.
        calibration: what was measured on one of the cards; None takes what is kept of each.
        cuda_version: the CUDA of the training's torch; None takes the installed one.
        cudnn_version: the cuDNN of the training; None takes the installed one.
        say: told what is being done.
        **levers: single levers in place of those of `spec`, such as `precision="fp32"`.

    Returns:
        One answer, or a list when several cards were given.

    Raises:
        MemplanError: something cannot be used; the message says what and the way out.
    """
    question = Question(
        workload=workload,
        arguments=_arguments(arguments, img, objects_per_image, val_batch, multi_scale),
        gpus=_cards(gpu),
        capacity_bytes=_bytes(capacity),
        spec=_spec(probe, spec, levers),
        devices=devices,
        calibration=calibration,
        cuda_version=cuda_version,
        cudnn_version=cudnn_version,
        object_counts=object_counts,
    )
    batches = [batch] if isinstance(batch, int) else list(batch)
    answers = probe_many(question, batches, say=say)
    return answers if isinstance(gpu, list | tuple) else answers[0]


def plan(
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    gpu: Gpu | None = None,
    effective_batch: int | None = None,
    img: int | None = None,
    images: int | None = None,
    epochs: int | None = None,
    safety: float | None = None,
    also: Collection[Also] = (),
    capacity: int | str | None = None,
    devices: int = 1,
    spec: StepSpec | None = None,
    free: Collection[str] | None = None,
    objects_per_image: int | None = None,
    object_counts: Int64 | None = None,
    val_batch: int | None = None,
    multi_scale: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    calibration: Path | Calibration | None = None,
    cuda_version: str | None = None,
    cudnn_version: str | None = None,
    data: str = "data.yaml",
    say: Say = silent,
    **levers: Unpack[Levers],
) -> PlanAnswer:
    """Return the fastest setting that fits a card.

    Args:
        workload: a name as on the command line, or a workload.
        gpu: a card; None takes the one in this machine.
        effective_batch: images a step; None takes the workload's nominal batch.
        img: side of the images, pixels; None takes the workload's default.
        images: training images in an epoch, for the time of one.
        epochs: of the run, for the chance that it meets an image too full; takes
            `object_counts` and `images`.
        safety: part of the capacity left alone, in 0-1; None takes what is right for what is known
            of the data.
        also: further questions, such as `(Headroom(), SecondCard())`; any adds the headroom.
        capacity: overrides the card's memory, bytes or text such as `24GiB`.
        devices: cards that train together.
        spec: how a step runs, where the plan does not choose; None takes the defaults.
        free: levers that the plan may choose by itself, by name; None takes all that leave losses
            as they are and are not among `levers`.
        objects_per_image: labelled objects in an image.
        object_counts: objects in each image of the data set, int64 `[images]`.
        val_batch: images validated at once; None leaves it to the workload.
        multi_scale: whether training resizes its images; plans are for the largest.
        arguments: further ones for the workload's factory.
        calibration: what was measured on the card; None takes what is kept of it.
        cuda_version: the CUDA of the training's torch; None takes the installed one.
        cudnn_version: the cuDNN of the training; None takes the installed one.
        data: what to call the data set in the command.
        say: told what is being done.
        **levers: single levers in place of those of `spec`, which the plan leaves as they are;
            `recompute="auto"` lets it choose the blocks, as it does without.

    Raises:
        InfeasibleError: nothing fits; the message says by how much and what would.
        MemplanError: something cannot be used.
    """
    fixed = {name: value for name, value in levers.items() if value != "auto"}
    question = Question(
        workload=workload,
        arguments=_arguments(arguments, img, objects_per_image, val_batch, multi_scale),
        gpus=() if gpu is None else (gpu,),
        capacity_bytes=_bytes(capacity),
        spec=_spec(plan, spec, fixed),
        devices=devices,
        calibration=calibration,
        cuda_version=cuda_version,
        cudnn_version=cudnn_version,
        object_counts=object_counts,
    )
    may_choose = free_levers(levers) if free is None else free
    recordings, asked = recordings_of(question), asked_of(also)
    check_asked(question, asked)
    answer = plan_one(
        question,
        effective_batch_size=effective_batch,
        safety_fraction=safety,
        num_images=images,
        num_epochs=epochs,
        free=may_choose,
        data=data,
        recordings=recordings,
        say=say,
    )
    if not also:
        return answer
    planned = Planned(
        question=question,
        answer=answer,
        recordings=recordings,
        asked_batch_size=effective_batch or question.made.nominal_batch_size,
        crowds=Crowds.of(question, images, epochs),
        free=may_choose,
        safety_fraction=safety,
        say=say,
    )
    return with_answers(planned, asked, images)


def record(
    workload: str | Workload = DEFAULT_WORKLOAD,
    batch: int = 16,
    *,
    img: int | None = None,
    spec: StepSpec | None = None,
    objects_per_image: int | None = None,
    val_batch: int | None = None,
    multi_scale: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    **levers: Unpack[Levers],
) -> Tape:
    """Return the tape of a training's life at one micro-batch size.

    Args:
        workload: a name as on the command line, or a workload.
        batch: micro-batch size, >= 1.
        img: side of the images, pixels; None takes the workload's default.
        spec: how a step runs; None takes the defaults.
        objects_per_image: labelled objects in an image.
        val_batch: images validated at once; None leaves it to the workload.
        multi_scale: whether training resizes its images; the largest is recorded.
        arguments: further ones for the workload's factory.
        **levers: single levers in place of those of `spec`.

    Raises:
        MemplanError: something cannot be used.
    """
    question = Question(
        workload=workload,
        arguments=_arguments(arguments, img, objects_per_image, val_batch, multi_scale),
        spec=_spec(record, spec, levers),
    )
    question.check()
    return question.record(batch, question.step_spec)


def replay(
    tape: Tape,
    *,
    gpu: str | int | Card | None = None,
    capacity: int | str | None = None,
    allocator: str = "",
    accumulates: bool = False,
) -> Peaks:
    """Return the peaks of a tape on a card.

    Args:
        tape: what `record` returned or `memplan.tape.load_tape` read.
        gpu: a card; None takes the one in this machine.
        capacity: overrides the card's memory, bytes or text such as `24GiB`.
        allocator: PyTorch's option string.
        accumulates: whether gradients of several micro-batches are summed before a step.

    Raises:
        MemplanError: something cannot be used.
    """
    card = calibrated_card(gpu)
    if capacity is not None:
        num_bytes = parse_bytes(capacity) if isinstance(capacity, str) else capacity
        card = card.with_capacity(num_bytes)
    settings = AllocatorSettings.parse(allocator)
    return replay_on(tape, card, settings, life=Life(accumulates=accumulates))
