"""The Python functions `probe`, `plan`, `record` and `replay`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, overload

from memplan.advise.also import Also
from memplan.advise.infeasible import NoPlanError
from memplan.advise.inference import TRAIN, check_mode_options
from memplan.advise.keywords import (
    Gpu,
    Gpus,
    PlanArguments,
    ProbeArguments,
    arguments_from,
    bytes_from,
    cards_from,
    spec_from,
)
from memplan.advise.plans import PlanRequest, plans
from memplan.advise.probing import probe_many
from memplan.advise.question import DEFAULT_WORKLOAD, Question, silent
from memplan.advise.subject import with_data
from memplan.answers import InfeasibleAnswer, PlanAnswer, ProbeAnswer
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.device.chosen import calibrated_card
from memplan.device.life import Life
from memplan.device.replay import Peaks
from memplan.device.replay import replay as replay_on
from memplan.fit.predictor import Say
from memplan.spec import Levers, StepSpec, free_levers
from memplan.tape import Int64, Tape
from memplan.workload import Workload


@overload
def probe(
    workload: str | Workload = ...,
    *,
    gpu: Gpu | None = None,
    **arguments: Unpack[ProbeArguments],
) -> ProbeAnswer: ...


@overload
def probe(
    workload: str | Workload = ...,
    *,
    gpu: Gpus,
    **arguments: Unpack[ProbeArguments],
) -> list[ProbeAnswer]: ...


def probe(
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    gpu: Gpu | Gpus | None = None,
    batch: int | Sequence[int] = 16,
    mode: str = TRAIN,
    half: bool = False,
    img: int | None = None,
    capacity: int | str | None = None,
    devices: int = 1,
    spec: StepSpec | None = None,
    data: str | Path | None = None,
    objects_per_image: int | None = None,
    object_counts: Int64 | None = None,
    val_batch: int | None = None,
    multi_scale: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    calibration: Path | Calibration | None = None,
    cuda_version: str | None = None,
    cudnn_version: str | None = None,
    what_if: bool = False,
    say: Say = silent,
    **levers: Unpack[Levers],
) -> ProbeAnswer | list[ProbeAnswer]:
    """Return where a training's memory goes on a card, and how it grows with the batch.

    Args:
        workload: a name as on the command line, or a workload.
        gpu: a card or several; None takes the one in this machine.
        batch: micro-batch sizes to answer for.
        mode: `train`, or `val` or `predict` for what running the trained network takes, in fp32
            unless `precision` says otherwise.
        half: with those, run it in half precision.
        img: side of the images, pixels; None takes the workload's default.
        capacity: overrides the cards' memory, bytes or text such as `24GiB`.
        devices: cards that train together.
        spec: how a step runs; None takes the defaults.
        data: the data set's description, whose labels tell the objects in an image.
        objects_per_image: labelled objects in an image.
        object_counts: objects in each image of the data set, int64 `[images]`.
        val_batch: images validated at once; None leaves it to the workload.
        multi_scale: whether training resizes its images; plans are for the largest.
        arguments: further ones for the workload's factory.
        calibration: what was measured on one of the cards; None takes what is kept of each.
        cuda_version: the CUDA of the training's torch; None takes the installed one.
        cudnn_version: the cuDNN of the training; None takes the installed one.
        what_if: whether to replay other layouts, levers and optimizers too.
        say: called with a line on what is being done.
        **levers: single levers in place of those of `spec`, such as `precision="fp32"`.

    Returns:
        One answer, or a list when several cards were given.

    Raises:
        MemplanError: something cannot be used; the message says what and the way out.
    """
    check_mode_options(mode, half=half, given=levers)
    if mode != TRAIN and spec is None:
        levers.setdefault("precision", "fp32")
    question = Question(
        workload=workload,
        arguments=arguments_from(arguments, img, objects_per_image, val_batch, multi_scale),
        gpus=cards_from(gpu),
        capacity_bytes=None if capacity is None else bytes_from(capacity),
        spec=spec_from(probe, spec, levers),
        devices=devices,
        calibration=calibration,
        cuda_version=cuda_version,
        cudnn_version=cudnn_version,
        object_counts=object_counts,
    )
    question, _ = with_data(question, None if data is None else Path(data))
    batches = [batch] if isinstance(batch, int) else list(batch)
    answers = probe_many(question, batches, mode=mode, half=half, changes=what_if, say=say)
    return answers if isinstance(gpu, list | tuple) else answers[0]


@overload
def plan(
    workload: str | Workload | None = None,
    *,
    gpu: Gpu | None = None,
    **arguments: Unpack[PlanArguments],
) -> PlanAnswer: ...


@overload
def plan(
    workload: str | Workload | None = None,
    *,
    gpu: Gpus,
    **arguments: Unpack[PlanArguments],
) -> list[PlanAnswer | InfeasibleAnswer]: ...


def plan(
    workload: str | Workload | None = None,
    *,
    gpu: Gpu | Gpus | None = None,
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
    data: str | Path | None = None,
    objects_per_image: int | None = None,
    object_counts: Int64 | None = None,
    val_batch: int | None = None,
    multi_scale: bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    workers: int | None = None,
    worker_rate: float | None = None,
    calibration: Path | Calibration | None = None,
    cuda_version: str | None = None,
    cudnn_version: str | None = None,
    say: Say = silent,
    **levers: Unpack[Levers],
) -> PlanAnswer | list[PlanAnswer | InfeasibleAnswer]:
    """Return the fastest setting that fits a card.

    Args:
        workload: a name as on the command line, or a workload; None takes the command's that is to
            be checked, else the default.
        gpu: a card or several; None takes the one in this machine. As many different cards as
            `devices` train together and get plans for one shared batch.
        effective_batch: images a step; None takes the workload's nominal batch.
        img: side of the images, pixels; None takes the workload's default.
        images: training images in an epoch, for the time of one; None takes the data's.
        epochs: of the run, for the chance that it meets an image too full; takes `data`, or
            `object_counts` and `images`.
        safety: part of the capacity left alone, in 0-1; None takes what is right for what is known
            of the data.
        also: further questions, such as `(SecondCard(), CommandCheck("train_dual.py --batch 64"))`;
            any adds the headroom.
        capacity: overrides the cards' memory, bytes or text such as `24GiB`.
        devices: cards that train together.
        spec: how a step runs, where the plan does not choose; None takes the defaults.
        free: levers that the plan may choose by itself, by name; None takes all that leave losses
            as they are and are not among `levers`.
        data: the data set's description, whose labels tell the objects in an image.
        objects_per_image: labelled objects in an image.
        object_counts: objects in each image of the data set, int64 `[images]`.
        val_batch: images validated at once; None leaves it to the workload.
        multi_scale: whether training resizes its images; plans are for the largest.
        arguments: further ones for the workload's factory.
        workers: loader processes, for whether they keep up; None leaves that out.
        worker_rate: images a second of one of them; None measures it on the data.
        calibration: what was measured on one of the cards; None takes what is kept of each.
        cuda_version: the CUDA of the training's torch; None takes the installed one.
        cudnn_version: the cuDNN of the training; None takes the installed one.
        say: called with a line on what is being done.
        **levers: single levers in place of those of `spec`, which the plan leaves as they are;
            `recompute="auto"` lets it choose the blocks, as it does without.

    Returns:
        One answer, or a list when several cards were given, with an `InfeasibleAnswer` for each
        that holds no plan.

    Raises:
        InfeasibleError: nothing fits the one card; the message says by how much and what would.
        MemplanError: something cannot be used.
    """
    fixed = {name: value for name, value in levers.items() if value != "auto"}
    given = {
        "workload": workload,
        "img": img,
        "val_batch": val_batch,
        "multi_scale": multi_scale,
        "data": data,
        "effective_batch": effective_batch,
        "devices": None if devices == 1 else devices,
        "spec": spec,
    }
    question = Question(
        workload=DEFAULT_WORKLOAD if workload is None else workload,
        arguments=arguments_from(arguments, img, objects_per_image, val_batch, multi_scale),
        gpus=cards_from(gpu),
        capacity_bytes=None if capacity is None else bytes_from(capacity),
        spec=spec_from(plan, spec, fixed),
        devices=devices,
        calibration=calibration,
        cuda_version=cuda_version,
        cudnn_version=cudnn_version,
        object_counts=object_counts,
    )
    request = PlanRequest(
        question=question,
        data=None if data is None else Path(data),
        effective_batch_size=effective_batch,
        safety_fraction=safety,
        num_images=images,
        num_epochs=epochs,
        num_workers=workers,
        worker_rate=worker_rate,
        free=free_levers(levers) if free is None else frozenset(free),
        also=tuple(also),
        given=frozenset(name for name, one in given.items() if one is not None) | levers.keys(),
    )
    answers = plans(request, say=say)
    if isinstance(gpu, list | tuple):
        return answers
    (answer,) = answers
    if isinstance(answer, InfeasibleAnswer):
        raise NoPlanError(answer)
    return answer


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
        arguments=arguments_from(arguments, img, objects_per_image, val_batch, multi_scale),
        spec=spec_from(record, spec, levers),
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
        card = card.with_capacity(bytes_from(capacity))
    settings = AllocatorSettings.parse(allocator)
    return replay_on(tape, card, settings, life=Life(accumulates=accumulates))
