"""A plan with the further answers that were requested beside it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

from memplan.advise.command_check import command_fit
from memplan.advise.compare_cards import card_choice
from memplan.advise.headroom import edge_of
from memplan.advise.max_image_size import largest_images
from memplan.advise.planned import Planned
from memplan.advise.question import Question
from memplan.advise.second_card import check_second, second_card
from memplan.advise.training_command import TrainingCommand
from memplan.answers import PlanAnswer
from memplan.errors import UsageError
from memplan.parallel import kept_processes


@dataclass(frozen=True)
class Headroom:
    """Asks how near the plan is to its budget and card: `PlanAnswer.edge`."""

    OPTION: ClassVar[str] = ""
    """Of `memplan plan`, which answers this one always."""


@dataclass(frozen=True)
class MaxImageSize:
    """Asks for the largest images that fit: `PlanAnswer.largest_image`."""

    OPTION: ClassVar[str] = "--largest-image"


@dataclass(frozen=True)
class SecondCard:
    """Asks what a second card of the kind brings: `PlanAnswer.second_card`."""

    OPTION: ClassVar[str] = "--second-card"


@dataclass(frozen=True)
class CompareCards:
    """Asks what each card of the catalogue would do: `PlanAnswer.cards`.

    Args:
        prices: by catalogue name, in one unit; empty compares by watt.
    """

    OPTION: ClassVar[str] = "--cards"

    prices: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CommandCheck:
    """Asks whether a training command fits as typed, and what would make it: `PlanAnswer.fit`.

    The command says what is trained, with what data and on how many devices, so none of that is
    given beside it.

    Args:
        command: of `train_dual.py`, `train.py`, `memplan train` or `yolo train`, as a shell has it.
    """

    OPTION: ClassVar[str] = "--fit"

    command: str


Also = Headroom | MaxImageSize | SecondCard | CompareCards | CommandCheck
"""A question beside the plan."""
One = TypeVar("One", Headroom, MaxImageSize, SecondCard, CompareCards, CommandCheck)


def found(also: Iterable[Also], kind: type[One]) -> One | None:
    """Return the first of the questions that is of a kind; None where none is."""
    return next((one for one in also if isinstance(one, kind)), None)


def check_also(question: Question, also: Iterable[Also], effective_batch_size: int | None) -> None:
    """Refuse, before a plan is made, questions that have no answer.

    Raises:
        UsageError: the size of the workload's images cannot be changed, two cards cannot share the
            batch, or the catalogue is compared for several plans.
    """
    questions = tuple(also)
    if found(questions, CompareCards) and len(question.gpus) > 1:
        raise UsageError("--cards compares the whole catalogue. Give one --gpu for the plan.")
    if found(questions, SecondCard):
        check_second(question.devices, effective_batch_size or 2)
    if found(questions, MaxImageSize) and not question.takes("image_size"):
        raise UsageError(
            f"--largest-image: workload {question.made.name!r} takes no 'image_size', so its "
            "images stay as they are. Leave it out."
        )


def check_alone(also: Iterable[Also]) -> None:
    """Refuse further questions about unequal cards that train together.

    Raises:
        UsageError: there is one.
    """
    for one in also:
        if one.OPTION:
            raise UsageError(
                f"{one.OPTION} is not offered for unequal cards together. Leave it out."
            )


@kept_processes()
def with_answers(
    planned: Planned,
    also: Iterable[Also],
    command: TrainingCommand | None = None,
    num_images: int | None = None,
) -> PlanAnswer:
    """Return the plan with its headroom, and with the other answers requested.

    Args:
        planned: the plan.
        also: further questions.
        command: the one of `CommandCheck`, read; None without one.
        num_images: training images in an epoch; None where the data is not known.
    """
    start = time.perf_counter()
    questions = tuple(also)
    answer = replace(planned.answer, edge=edge_of(planned))
    if command is not None:
        answer = replace(answer, fit=command_fit(planned, command))
    if found(questions, MaxImageSize):
        answer = replace(answer, largest_image=largest_images(planned))
    if found(questions, SecondCard):
        answer = replace(answer, second_card=second_card(planned, num_images))
    if compared := found(questions, CompareCards):
        answer = replace(answer, cards=card_choice(planned, compared.prices))
    return replace(answer, seconds=answer.seconds + time.perf_counter() - start)
