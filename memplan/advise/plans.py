"""Answers a request for plans: one for each card, or a shared one of unequal cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memplan.advise.also import (
    Also,
    CommandCheck,
    check_alone,
    check_also,
    found,
    with_answers,
)
from memplan.advise.command_reading import read_command, refuse_said_twice
from memplan.advise.crowding import Crowds
from memplan.advise.input_pipeline import input_pipeline, limited
from memplan.advise.planned import Planned
from memplan.advise.planning import plan_many, recordings_of
from memplan.advise.question import Question, silent
from memplan.advise.subject import with_data
from memplan.advise.training_command import TrainingCommand
from memplan.advise.unequal_cards import plan_unequal
from memplan.answers import InfeasibleAnswer, PlanAnswer
from memplan.device.calibration import load
from memplan.fit.predictor import Say
from memplan.parallel import kept_processes
from memplan.spec import FREE, LEVERS


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What plans are requested for, and the questions beside them."""

    question: Question
    """What is trained, as it was given, and the cards."""
    data: Path | None = None
    """The data set's description; None where no data is given."""
    effective_batch_size: int | None = None
    """Images a step, >= 1; None takes the workload's nominal batch."""
    safety_fraction: float | None = None
    """Part of the capacity left alone, in 0-1; None takes what is right for what is known."""
    num_images: int | None = None
    """Training images in an epoch; None takes the data's."""
    num_epochs: int | None = None
    """Of the run, for the chance that it meets an image too full for its memory."""
    num_workers: int | None = None
    """Loader processes; None leaves out whether they keep up."""
    worker_rate: float | None = None
    """Images a second of one of them; None measures it on the data."""
    free: frozenset[str] = FREE
    """Levers that the plan may choose by itself, by name."""
    also: tuple[Also, ...] = ()
    """Further questions; any adds the headroom."""
    given: frozenset[str] = frozenset()
    """Parameters that were given and not left at their defaults, by name."""
    command: TrainingCommand | None = None
    """The one of `CommandCheck`, once it is read."""


def prepared(request: PlanRequest, warn: Say = silent) -> PlanRequest:
    """Return a request with its command and data read, and all refused that can be.

    Args:
        request: as it was given.
        warn: called with a line on each other library that a card was calibrated under.

    Raises:
        MemplanError: something in it cannot be used.
    """
    request = _with_command(request)
    question, num_images = with_data(request.question, request.data)
    question = known_calibrations(question, warn)
    request = replace(request, question=question, num_images=request.num_images or num_images)
    question.check()
    check_also(question, request.also, request.effective_batch_size)
    return request


def known_calibrations(question: Question, warn: Say = silent) -> Question:
    """Return a question with its cards' calibrations found, having warned of other libraries.

    Raises:
        MemplanError: there is no such card, or its calibration cannot be used.
    """
    for line in question.calibration_warnings():
        warn(line)
    if isinstance(question.calibration, Path):
        # It has been found to be of one of the cards; the others may come alone.
        return replace(question, calibration=load(question.calibration))
    return question


def _with_command(request: PlanRequest) -> PlanRequest:
    """Return a request about what the command that is to be checked trains."""
    checked = found(request.also, CommandCheck)
    if checked is None:
        return request
    refuse_said_twice(request.given)
    command = read_command(checked.command)
    # What no command says, such as allocator options that are in no environment, is as given.
    own = {
        one.name: getattr(request.question.spec, one.name)
        for one in LEVERS
        if "train" not in one.commands and getattr(command.spec, one.name) == one.plain
    }
    question = replace(
        request.question,
        workload=command.workload,
        arguments=request.question.arguments | dict(command.arguments),
        spec=replace(command.spec, **own),
        devices=command.split.devices,
    )
    return replace(
        request,
        question=question,
        data=command.data,
        effective_batch_size=command.split.effective_batch_size,
        command=command,
    )


@kept_processes()
def plans(
    request: PlanRequest, *, say: Say = silent, warn: Say = silent
) -> list[PlanAnswer | InfeasibleAnswer]:
    """Return for each card of a request a plan with its further answers, or why there is none.

    As many different cards as devices train together, and get plans for one shared batch.

    Args:
        request: as it was given.
        say: called with a line on what is being done.
        warn: called with a line on each other library that a card was calibrated under.

    Raises:
        InfeasibleError: unequal cards together cannot hold the batch.
        MemplanError: something cannot be used.
    """
    request = prepared(request, warn)
    question = request.question
    pipeline = input_pipeline(question.made, request.data, request.num_workers, request.worker_rate)
    if 1 < question.devices == len(set(question.gpus)):
        return list(_shared(request, say))
    answers = _each(request, say)
    return [limited(one, pipeline) if isinstance(one, PlanAnswer) else one for one in answers]


def _shared(request: PlanRequest, say: Say) -> Sequence[PlanAnswer]:
    check_alone(request.also)
    return plan_unequal(
        request.question,
        effective_batch_size=request.effective_batch_size,
        safety_fraction=request.safety_fraction,
        num_images=request.num_images,
        free=request.free,
        data=str(request.data or "data.yaml"),
        say=say,
    )


def _each(request: PlanRequest, say: Say) -> list[PlanAnswer | InfeasibleAnswer]:
    """Return each card's plan with the further answers."""
    question = request.question
    recordings = recordings_of(question)
    answers = plan_many(
        question,
        effective_batch_size=request.effective_batch_size,
        safety_fraction=request.safety_fraction,
        num_images=request.num_images,
        num_epochs=request.num_epochs,
        free=request.free,
        data=str(request.data or "data.yaml"),
        recordings=recordings,
        say=say,
    )
    if not request.also:
        return answers
    crowds = Crowds.of(question, request.num_images, request.num_epochs)
    made: list[PlanAnswer | InfeasibleAnswer] = []
    for answer, gpu in zip(answers, question.gpus or (None,), strict=True):
        if isinstance(answer, InfeasibleAnswer):
            made.append(answer)
            continue
        planned = Planned(
            question=question if gpu is None else replace(question, gpus=(gpu,)),
            answer=answer,
            recordings=recordings,
            asked_batch_size=request.effective_batch_size or question.made.nominal_batch_size,
            crowds=crowds,
            safety_fraction=request.safety_fraction,
            free=request.free,
            say=say,
        )
        made.append(with_answers(planned, request.also, request.command, request.num_images))
    return made
