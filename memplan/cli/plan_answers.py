"""What `memplan plan` is asked beside the plan, and how it is told: fit, cards, images, edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from memplan.answers import InfeasibleAnswer, PlanAnswer
from memplan.cli.common import options
from memplan.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from memplan.advise import Question
    from memplan.advise.also import Asked
    from memplan.fit.predictor import Say
    from memplan.planner.evaluate import Recordings

answer_options = options(
    click.option(
        "--fit",
        "fit_command",
        metavar='"COMMAND"',
        help="Your own training command, of train_dual.py or memplan train: whether it fits as "
        "typed, and the cheapest changes that make it.",
    ),
    click.option(
        "--cards",
        is_flag=True,
        help="Compare the catalogue: the smallest, fastest and best-value card for the run.",
    ),
    click.option(
        "--price",
        "prices",
        multiple=True,
        metavar="CARD=AMOUNT",
        help="With --cards: what a card costs, bought or an hour, in one unit; repeatable.",
    ),
    click.option("--largest-image", is_flag=True, help="The largest images that fit."),
    click.option("--second-card", is_flag=True, help="What a second card of the kind brings."),
)


def asked_from(context: click.Context, values: dict[str, Any]) -> Asked:
    """Return what is asked beside the plan; a command's own options join the values.

    Raises:
        MemplanError: an option cannot be used, or the command cannot be read.
    """
    from memplan.advise.also import Asked
    from memplan.advise.compare_cards import read_prices

    typed = None
    if values["fit_command"] is not None:
        from memplan.cli.fit_command import read_command, refuse_said_twice

        refuse_said_twice(context)
        if values["devices"] > 1:
            raise UsageError(
                f"--fit is about one GPU, but --devices is {values['devices']}. Leave it out."
            )
        typed, said = read_command(values["fit_command"])
        values["settings"] = (*said.pop("settings"), *values["settings"])
        values.update(said)
    if values["prices"] and not values["cards"]:
        raise UsageError(f"--price {values['prices'][0]} is for --cards. Add it, or leave it out.")
    if values["cards"] and len(values["gpus"]) > 1:
        raise UsageError("--cards compares the whole catalogue. Give one --gpu for the plan.")
    if values["second_card"]:
        from memplan.advise.second_card import check_second

        check_second(values["devices"], values["effective_batch"] or 2)
    return Asked(
        fit=typed,
        cards=values["cards"],
        prices=read_prices(values["prices"]),
        largest_image=values["largest_image"],
        second_card=values["second_card"],
    )


def refuse_unequal(asked: Asked) -> None:
    """Refuse further questions about unequal cards that train together.

    Raises:
        UsageError: something beside the plan was asked.
    """
    named = {
        "--fit": asked.fit is not None,
        "--cards": asked.cards,
        "--largest-image": asked.largest_image,
        "--second-card": asked.second_card,
    }
    for option, is_asked in named.items():
        if is_asked:
            raise UsageError(f"{option} is not offered for unequal cards together. Leave it out.")


def with_all_answers(
    question: Question,
    answers: Sequence[PlanAnswer | InfeasibleAnswer],
    recordings: Recordings,
    asked: Asked,
    values: dict[str, Any],
    free: Collection[str],
    num_images: int | None,
    say: Say,
) -> list[PlanAnswer | InfeasibleAnswer]:
    """Return each card's plan with what was asked beside it."""
    from dataclasses import replace

    from memplan.advise.also import with_answers
    from memplan.advise.crowding import Crowds
    from memplan.advise.planned import Planned

    crowds = Crowds.of(question, num_images, values["epochs"])
    made: list[PlanAnswer | InfeasibleAnswer] = []
    for answer, gpu in zip(answers, question.gpus or (None,), strict=True):
        if isinstance(answer, PlanAnswer):
            planned = Planned(
                question=question if gpu is None else replace(question, gpus=(gpu,)),
                answer=answer,
                recordings=recordings,
                asked_batch_size=values["effective_batch"] or question.made.nominal_batch_size,
                crowds=crowds,
                safety_fraction=values["safety"],
                free=free,
                say=say,
            )
            answer = with_answers(planned, asked, num_images)  # noqa: PLW2901
        made.append(answer)
    return made
