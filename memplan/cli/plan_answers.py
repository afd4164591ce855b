"""What `memplan plan` is asked beside the plan, and how it is told: fit, cards, images, edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from memplan.answers import InfeasibleAnswer, PlanAnswer
from memplan.cli.common import options, rate_origin, table
from memplan.errors import UsageError
from memplan.plan_answers import CardOption, CommandChange, CommandFit, Edge
from memplan.units import format_bytes, format_seconds, gib, three_digits

if TYPE_CHECKING:
    from collections.abc import Collection

    from memplan.api import Question
    from memplan.api.asked import Asked
    from memplan.fit.predictor import Say
    from memplan.planner.evaluate import Recordings
    from memplan.spec import Split, StepSpec

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
    from memplan.api.ask_cards import read_prices
    from memplan.api.asked import Asked

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
        from memplan.api.ask_second import check_second

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

    from memplan.api.asked import with_answers
    from memplan.api.asking import Planned
    from memplan.api.crowds import Crowds

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


def before_plan(answer: PlanAnswer) -> list[str]:
    """Return what is told before the plan: whether the user's command fits."""
    return [] if answer.fit is None else [_fit_text(answer, answer.fit)]


def beside_plan(answer: PlanAnswer) -> list[str]:
    """Return the sections that follow the plan's own."""
    parts = [] if answer.edge is None else [_edge_text(answer, answer.edge)]
    parts += [_image_text(answer)] if answer.largest_image else []
    parts += [_second_text(answer)] if answer.second_card is not None else []
    return parts + ([_cards_text(answer)] if answer.cards is not None else [])


def _fit_text(answer: PlanAnswer, fit: CommandFit) -> str:
    card = answer.gpu.name
    used, budget = format_bytes(fit.device_used_peak_bytes), format_bytes(answer.budget_bytes)
    best = fit.changes[0] if fit.changes else None
    if fit.fits:
        faster = f" Faster: {best.options} ({_effect(best)})." if best else ""
        head = f"Your command fits {card} as it is.{faster}"
    elif best is not None:
        head = (
            f"Your command does not fit {card}. Cheapest change: {best.options} ({_effect(best)})."
        )
    else:
        head = f"Your command does not fit {card}, and no change of options that was tried helps."
    distance = f"{format_bytes(abs(fit.over_bytes))} {'too much' if fit.over_bytes > 0 else 'left'}"
    if not fit.fits and fit.over_bytes <= 0:
        distance = "but only with slower convolutions or by emptying the cache again and again"
    elif not fit.fits and fit.fits_card:
        distance += "; it would run, but within the margin"
    validation = (
        f", validation of {fit.validation_batch_size} at once" if fit.validation_batch_size else ""
    )
    devices = fit.split.devices
    each = f" on each of {devices} devices" if devices > 1 else ""
    lines = [
        head,
        (
            f"As typed: {fit.split.micro_batch_size} images at once{each} x "
            f"{fit.split.accumulation_steps} = {fit.split.effective_batch_size} a "
            f"step{validation}: {used} device-used of a budget of {budget}, {distance}; about "
            f"{three_digits(fit.images_per_second)} images/s ({rate_origin(answer.gpu)})."
        ),
        *fit.assumptions,
    ]
    if fit.changes:
        what = "make it faster" if fit.fits else "make it fit, least time first"
        header = ("Batch", "Device-used GiB", "Memory GiB", "Time", "train_dual.py takes it")
        rows = [_change_row(one) for one in fit.changes]
        lines.append(f"\nChanges that {what} (predicted, against the command as typed)")
        lines.append(table(("Change", *header), rows))
        lines.append(f"With the first: {fit.changes[0].command}")
    lines.append(
        f"\nBelow: the plan for {fit.split.effective_batch_size} images a step, all options free."
    )
    return "\n".join(lines)


def _change_row(one: CommandChange) -> tuple[str, ...]:
    return (
        _shortened(one.options),
        one.split.words,
        gib(one.device_used_peak_bytes),
        f"{one.memory_change_bytes / (1 << 30):+.2f}",
        f"{one.time_change_fraction:+.1%}",
        "yes" if one.runs_official else "no",
    )


def _shortened(options: str) -> str:
    """Return options with long lists of blocks cut; JSON has them whole."""
    words = options.split(" ")
    return " ".join(
        f"{word.split(',')[0]},... ({word.count(',') + 1} blocks)" if word.count(",") > 2 else word
        for word in words
    )


def _effect(one: CommandChange) -> str:
    share = one.time_change_fraction
    time = f"{abs(share):.1%} {'more' if share > 0 else 'less'} time"
    return f"{format_bytes(one.device_used_peak_bytes)}, {time}, predicted"


def _edge_text(answer: PlanAnswer, edge: Edge) -> str:
    used = answer.predicted.device_used_peak_bytes
    lines = [
        (
            f"How near the edge (predicted): {format_bytes(used)} is "
            f"{format_bytes(edge.headroom_bytes)} below the budget, "
            f"{format_bytes(edge.card_headroom_bytes)} below what the card has."
        )
    ]
    if edge.expected_objects:
        lines.append(f"  Objects: {_objects(edge)}")
    if edge.validation_batch_size is not None:
        lines.append(f"  Validation: {_validation(edge)}")
    if edge.multi_scale_peak_bytes is not None:
        verdict = _verdict(answer, edge.multi_scale_peak_bytes)
        lines.append(f"  --multi-scale, up to {edge.multi_scale_side} px: {verdict}.")
    verdict = _verdict(answer, edge.next_peak_bytes)
    unsure = "" if edge.next_is_recorded else "; that batch could not be recorded"
    lines.append(f"  One more image at once ({edge.next_micro_batch_size}): {verdict}{unsure}.")
    return "\n".join(lines)


def _objects(edge: Edge) -> str:
    text = f"the plan reckons with {edge.expected_objects} in the fullest image; "
    if not edge.objects_tried:
        return f"{text}their number makes no difference."
    if edge.objects_within_budget is None:
        return f"{text}up to {edge.objects_tried} stay within the budget."
    card = edge.objects_within_card
    beyond = f"up to {edge.objects_tried}" if card is None else f"more than {card}"
    rest = f"{beyond} {'fit' if card is None else 'exceed'} the card"
    return f"{text}more than {edge.objects_within_budget} exceed the budget, {rest}."


def _validation(edge: Edge) -> str:
    text = f"{edge.validation_batch_size} images at once"
    if not edge.validation_tried:
        return f"{text}, as given."
    if edge.validation_within_budget is None:
        return f"{text}; up to {edge.validation_tried} stay within the budget."
    return f"{text}; more than {edge.validation_within_budget} exceed the budget."


def _verdict(answer: PlanAnswer, used: int) -> str:
    over = used - answer.budget_bytes
    if over <= 0:
        return f"{format_bytes(used)}, fits"
    card = "; the card runs out" if used > answer.gpu.capacity_bytes else ""
    return f"{format_bytes(used)}, {format_bytes(over)} over the budget{card}"


def _how(spec: StepSpec, split: Split) -> str:
    """Return a setting in a few words; the precision is the plan's."""
    return f"{split.words}, {spec.words(leave_out={'precision'})}"


def _image_text(answer: PlanAnswer) -> str:
    rows = [
        (
            one.way,
            _how(one.spec, one.split),
            str(one.img),
            gib(one.device_used_peak_bytes),
            three_digits(one.images_per_second),
            f"{one.time_factor:.2f}",
        )
        for one in answer.largest_image
    ]
    header = ("Way", "Setting", "Largest px", "Device-used GiB", "Images/s", "Time an image")
    last = answer.largest_image[-1]
    return (
        f"Largest image: {last.img} px, at {last.time_factor:.1f} times the plan's time an image "
        f"(predicted, {answer.split.effective_batch_size} images a step).\n"
        + table(header, rows, left=2)
    )


def _second_text(answer: PlanAnswer) -> str:
    two = answer.second_card
    assert two is not None
    how = _how(two.spec, two.split)
    lines = [
        (
            f"A second {answer.gpu.name} makes it {two.ratio:.2f} times as fast: "
            f"{three_digits(two.images_per_second)} images/s instead of "
            f"{three_digits(answer.predicted.images_per_second)} (predicted)."
        ),
        (
            f"  Each card: {how}; the same {two.split.effective_batch_size} images a step on both "
            "together."
        ),
        (
            f"  Rank 0 takes {format_bytes(two.first_rank_peak_bytes)} device-used, the other "
            f"{format_bytes(two.other_rank_peak_bytes)}, gradient buckets of "
            f"{format_bytes(two.bucket_bytes)} in each."
        ),
    ]
    if two.epoch_seconds is not None and two.epoch_seconds_alone is not None:
        lines.append(
            f"  An epoch takes {format_seconds(two.epoch_seconds)} instead of "
            f"{format_seconds(two.epoch_seconds_alone)}."
        )
    return "\n".join(lines)


def _cards_text(answer: PlanAnswer) -> str:
    choice = answer.cards
    assert choice is not None
    if not choice.fastest:
        return f"Cards: none of the {len(choice.cards)} in the catalogue holds this run."
    value = f"best value {choice.best_value}" if choice.best_value else "no priced card fits"
    priced = any(one.price is not None for one in choice.cards)
    header = ("Card", "Setting", "Device-used GiB", "Images/s", "Images/s/W")
    rows = [_card_row(one, priced=priced) for one in choice.cards]
    return (
        f"Cards (predicted, uncalibrated): smallest that fits {choice.smallest}, fastest "
        f"{choice.fastest}, {value}. Value is {choice.value}.\n"
        + table((*header, *(["Price", "Images/s/price"] if priced else [])), rows, left=2)
    )


def _card_row(one: CardOption, *, priced: bool) -> tuple[str, ...]:
    if one.fits:
        row = (
            one.name,
            _how(one.spec, one.split),
            gib(one.device_used_peak_bytes),
            three_digits(one.images_per_second),
            three_digits(one.images_per_joule),
        )
    else:
        row = (one.name, "does not fit", "-", "-", "-")
    if not priced:
        return row
    value = one.images_per_second_per_price
    price = "-" if one.price is None else f"{one.price:g}"
    return (*row, price, "-" if not value else three_digits(value))
