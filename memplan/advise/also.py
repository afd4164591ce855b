"""A plan with the further answers that were asked for."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from memplan.advise.command_check import command_fit
from memplan.advise.compare_cards import card_choice
from memplan.advise.headroom import edge_of
from memplan.advise.max_image_size import largest_images
from memplan.advise.planned import Planned
from memplan.advise.question import Question
from memplan.advise.second_card import second_card
from memplan.advise.training_command import TypedCommand
from memplan.answers import PlanAnswer
from memplan.errors import UsageError
from memplan.parallel import kept_processes


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked beside the plan itself."""

    fit: TypedCommand | None = None
    """A command that may or may not fit."""
    cards: bool = False
    """Whether the catalogue is compared."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """By catalogue name, in one unit."""
    largest_image: bool = False
    second_card: bool = False


@dataclass(frozen=True)
class Headroom:
    """Asks how near the plan is to its budget and card: `PlanAnswer.edge`."""


@dataclass(frozen=True)
class MaxImageSize:
    """Asks for the largest images that fit: `PlanAnswer.largest_image`."""


@dataclass(frozen=True)
class SecondCard:
    """Asks what a second card of the kind brings: `PlanAnswer.second_card`."""


@dataclass(frozen=True)
class CompareCards:
    """Asks what each card of the catalogue would do: `PlanAnswer.cards`.

    Args:
        prices: by catalogue name, in one unit; empty compares by watt.
    """

    prices: Mapping[str, float] = field(default_factory=dict)


Also = Headroom | MaxImageSize | SecondCard | CompareCards
"""A question beside the plan."""


def asked_of(also: Collection[Also]) -> Asked:
    """Return questions as one record."""
    compared = [one for one in also if isinstance(one, CompareCards)]
    return Asked(
        cards=bool(compared),
        prices=compared[0].prices if compared else {},
        largest_image=any(isinstance(one, MaxImageSize) for one in also),
        second_card=any(isinstance(one, SecondCard) for one in also),
    )


def check_asked(question: Question, asked: Asked) -> None:
    """Refuse, before a plan is made, questions that the workload cannot be asked.

    Raises:
        UsageError: the size of its images cannot be changed.
    """
    if asked.largest_image and not question.takes("image_size"):
        raise UsageError(
            f"--largest-image: workload {question.made.name!r} takes no 'image_size', so its "
            "images stay as they are. Leave it out."
        )


@kept_processes()
def with_answers(planned: Planned, asked: Asked, num_images: int | None = None) -> PlanAnswer:
    """Return the plan with its edge, and with what else was asked.

    Args:
        planned: the plan.
        asked: further questions.
        num_images: training images in an epoch; None where the data is not known.

    Raises:
        UsageError: two cards cannot share the batch.
    """
    start = time.perf_counter()
    check_asked(planned.question, asked)
    answer = replace(planned.answer, edge=edge_of(planned))
    if asked.fit is not None:
        answer = replace(answer, fit=command_fit(planned, asked.fit))
    if asked.largest_image:
        answer = replace(answer, largest_image=largest_images(planned))
    if asked.second_card:
        answer = replace(answer, second_card=second_card(planned, num_images))
    if asked.cards:
        answer = replace(answer, cards=card_choice(planned, asked.prices))
    return replace(answer, seconds=answer.seconds + time.perf_counter() - start)
