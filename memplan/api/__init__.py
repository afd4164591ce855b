"""The functions behind the commands: probe, plan, record and replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from memplan.answers import PlanAnswer, ProbeAnswer
from memplan.api.planning import Free, plan_many, plan_one
from memplan.api.probing import probe_many
from memplan.api.question import (
    DEFAULT_SAFETY,
    DEFAULT_WORKLOAD,
    Question,
    silent,
    versions,
)
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.device.chosen import calibrated_card
from memplan.device.life import Life
from memplan.device.replay import Peaks
from memplan.device.replay import replay as replay_on
from memplan.errors import UnknownNameError
from memplan.fit.predictor import Say
from memplan.tape import Tape
from memplan.trace.record import record as record_step
from memplan.units import parse_bytes
from memplan.workload import Workload

__all__ = [
    "DEFAULT_SAFETY",
    "DEFAULT_WORKLOAD",
    "Free",
    "Question",
    "plan",
    "plan_many",
    "plan_one",
    "probe",
    "probe_many",
    "record",
    "replay",
    "versions",
]


# Options that are arguments of the workload's factory.
_ARGUMENTS = {
    "objects_per_image": "objects_per_image",
    "assigner_parts": "assigner_parts",
    "val_batch": "validation_batch_size",
    "multi_scale": "multi_scale",
}


def _question(
    workload: str | Workload, gpu: Any, img: int | None, options: dict[str, Any]
) -> Question:
    gpus = gpu if isinstance(gpu, list | tuple) else () if gpu is None else (gpu,)
    capacity = options.pop("capacity", None)
    if isinstance(capacity, str):
        capacity = parse_bytes(capacity)
    arguments = dict(options.pop("arguments", None) or {})
    if img is not None:
        arguments["image_size"] = img
    for name, argument in _ARGUMENTS.items():
        if (value := options.pop(name, None)) is not None:
            arguments[argument] = value
    known = {field.name for field in fields(Question)} - {"workload", "gpus", "capacity_bytes"}
    for name in options:
        if name not in known:
            raise UnknownNameError("option", name, known | {*_ARGUMENTS, "capacity", "img"})
    return Question(
        workload=workload,
        arguments=arguments,
        gpus=tuple(gpus),
        capacity_bytes=capacity,
        **options,
    )


def probe(
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    gpu: str | int | Card | Sequence[str | int | Card] | None = None,
    batch: int | Sequence[int] = 16,
    img: int | None = None,
    **options: Any,
) -> ProbeAnswer | list[ProbeAnswer]:
    """Return where a training's memory goes on a card, and how it grows with the batch.

    Args:
        workload: a name as on the command line, or a workload.
        gpu: a card or several; None takes the one in this machine.
        batch: micro-batch sizes to answer for.
        img: side of the images, pixels; None takes the workload's default.
        **options: `precision`, `memory_format`, `optimizer`, `recompute`, `allocator`, `devices`,
            `capacity` (bytes, or text such as `24GiB`), `objects_per_image`, `val_batch`,
            `assigner_parts`, `multi_scale`, `lean`, `fused`, and `arguments` for
            the workload's factory, and `object_counts` (objects in each image of the data set).

    Returns:
        One answer, or a list when several cards were given.

    Raises:
        MemplanError: something cannot be used; the message says what and the way out.
    """
    question = _question(workload, gpu, img, options)
    batches = [batch] if isinstance(batch, int) else list(batch)
    answers = probe_many(question, batches)
    return answers if isinstance(gpu, list | tuple) else answers[0]


def plan(
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    gpu: str | int | Card | None = None,
    effective_batch: int | None = None,
    img: int | None = None,
    images: int | None = None,
    epochs: int | None = None,
    safety: float | None = None,
    memory_format: str | None = None,
    recompute: str | tuple[str, ...] = "auto",
    say: Say = silent,
    **options: Any,
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
        memory_format: fixes the tensor layout; None tries both.
        recompute: `auto`, `none`, `all`, or module paths.
        say: told what is being done.
        **options: as for `probe`.

    Raises:
        InfeasibleError: nothing fits; the message says by how much and what would.
        MemplanError: something cannot be used.
    """
    data = options.pop("data", "data.yaml")
    question = _question(
        workload,
        gpu,
        img,
        {**options, "recompute": recompute, "memory_format": memory_format or "contiguous"},
    )
    return plan_one(
        question,
        effective_batch_size=effective_batch,
        safety_fraction=safety,
        num_images=images,
        num_epochs=epochs,
        free=Free(
            memory_format=memory_format is None,
            lean="lean" not in options,
            assigner_parts="assigner_parts" not in options,
            allocator="allocator" not in options,
        ),
        data=data,
        say=say,
    )


def record(workload: str | Workload = DEFAULT_WORKLOAD, batch: int = 16, **options: Any) -> Tape:
    """Return the tape of a training's life at one micro-batch size.

    Args:
        workload: a name as on the command line, or a workload.
        batch: micro-batch size, >= 1.
        **options: `img`, `precision`, `memory_format`, `optimizer`, `recompute`, `arguments`.

    Raises:
        MemplanError: something cannot be used.
    """
    question = _question(workload, None, options.pop("img", None), options)
    question.check()
    return record_step(question.made, batch, question.step_settings())


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
