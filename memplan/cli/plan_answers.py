"""The questions of `memplan plan` beside the plan: command, cards, images, second card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from memplan.click_options import options
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.advise.also import Also

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


def also_from(values: dict[str, Any]) -> tuple[Also, ...]:
    """Return what is asked beside the plan, the headroom always.

    Raises:
        UsageError: an option cannot be used.
    """
    from memplan.advise.also import CommandCheck, CompareCards, Headroom, MaxImageSize, SecondCard
    from memplan.advise.compare_cards import read_prices

    if values["prices"] and not values["cards"]:
        raise UsageError(f"--price {values['prices'][0]} is for --cards. Add it, or leave it out.")
    also: list[Also] = [Headroom()]
    if values["fit_command"] is not None:
        also.append(CommandCheck(values["fit_command"]))
    if values["largest_image"]:
        also.append(MaxImageSize())
    if values["second_card"]:
        also.append(SecondCard())
    if values["cards"]:
        also.append(CompareCards(read_prices(values["prices"])))
    return tuple(also)
