"""Sections of what is asked beside a plan: a command's fit, the edge, images, cards."""

from __future__ import annotations

from memplan.answers import PlanAnswer
from memplan.plan_answers import CardOption, CommandChange, CommandFit, Edge
from memplan.present.section import Section, Table, rate_origin
from memplan.spec import Split, StepSpec
from memplan.units import GIB, format_bytes, format_seconds, gib, three_digits


def command_check(answer: PlanAnswer) -> list[Section]:
    """Return whether the user's own command fits; nothing where it was not asked."""
    return [] if answer.fit is None else _fit_sections(answer, answer.fit)


def beside_plan(answer: PlanAnswer) -> list[Section]:
    """Return the sections that follow the plan's own."""
    parts = [] if answer.edge is None else [_headroom(answer, answer.edge)]
    parts += [_largest_image(answer)] if answer.largest_image else []
    parts += [_second_card(answer)] if answer.second_card is not None else []
    return parts + ([_cards(answer)] if answer.cards is not None else [])


def _fit_sections(answer: PlanAnswer, fit: CommandFit) -> list[Section]:
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
    lines = (
        head,
        (
            f"As typed: {fit.split.micro_batch_size} images at once{each} x "
            f"{fit.split.accumulation_steps} = {fit.split.effective_batch_size} a "
            f"step{validation}: {used} device-used of a budget of {budget}, {distance}; about "
            f"{three_digits(fit.images_per_second)} images/s ({rate_origin(answer.gpu)})."
        ),
        *fit.assumptions,
    )
    below = f"Below: the plan for {fit.split.effective_batch_size} images a step, all options free."
    changes = _changes(fit) if fit.changes else None
    first = (f"With the first: {fit.changes[0].command}",) if fit.changes else ()
    return [
        Section(title="Your command", sentences=lines, table=changes, after=first),
        Section(title="The plan", sentences=(below,)),
    ]


def _changes(fit: CommandFit) -> Table:
    what = "make it faster" if fit.fits else "make it fit, least time first"
    header = ("Batch", "Device-used GiB", "Memory GiB", "Time", "train_dual.py takes it")
    return Table(
        caption=f"Changes that {what} (predicted, against the command as typed)",
        header=("Change", *header),
        rows=tuple(_change_row(one) for one in fit.changes),
    )


def _change_row(one: CommandChange) -> tuple[str, ...]:
    return (
        _shortened(one.options),
        one.split.words,
        gib(one.device_used_peak_bytes),
        f"{one.memory_change_bytes / GIB:+.2f}",
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


def _headroom(answer: PlanAnswer, edge: Edge) -> Section:
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
    return Section(title="How near the edge", sentences=tuple(lines))


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


def _largest_image(answer: PlanAnswer) -> Section:
    rows = tuple(
        (
            one.way,
            _how(one.spec, one.split),
            str(one.img),
            gib(one.device_used_peak_bytes),
            three_digits(one.images_per_second),
            f"{one.time_factor:.2f}",
        )
        for one in answer.largest_image
    )
    header = ("Way", "Setting", "Largest px", "Device-used GiB", "Images/s", "Time an image")
    last = answer.largest_image[-1]
    sentence = (
        f"Largest image: {last.img} px, at {last.time_factor:.1f} times the plan's time an image "
        f"(predicted, {answer.split.effective_batch_size} images a step)."
    )
    table = Table(header=header, rows=rows, left=2)
    return Section(title="Largest image", sentences=(sentence,), table=table)


def _second_card(answer: PlanAnswer) -> Section:
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
    return Section(title="A second card", sentences=tuple(lines))


def _cards(answer: PlanAnswer) -> Section:
    choice = answer.cards
    assert choice is not None
    if not choice.fastest:
        none = f"Cards: none of the {len(choice.cards)} in the catalogue holds this run."
        return Section(title="Cards", sentences=(none,))
    value = f"best value {choice.best_value}" if choice.best_value else "no priced card fits"
    priced = any(one.price is not None for one in choice.cards)
    header = ("Card", "Setting", "Device-used GiB", "Images/s", "Images/s/W")
    sentence = (
        f"Cards (predicted, uncalibrated): smallest that fits {choice.smallest}, fastest "
        f"{choice.fastest}, {value}. Value is {choice.value}."
    )
    table = Table(
        header=(*header, *(["Price", "Images/s/price"] if priced else [])),
        rows=tuple(_card_row(one, priced=priced) for one in choice.cards),
        left=2,
    )
    return Section(title="Cards", sentences=(sentence,), table=table, after=choice.notes)


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
