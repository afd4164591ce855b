"""Sections of a plan: what was chosen, what it takes, what else would fit."""

from __future__ import annotations

import math

from memplan.answers import PlanAnswer, Setting
from memplan.present.probe import rank_lines
from memplan.present.questions import beside_plan, command_check
from memplan.present.section import Number, Section, Table, percent, rate_origin
from memplan.present.words import batch_words, setting_words
from memplan.spec import LEVERS
from memplan.units import format_bytes, format_seconds, gib, three_digits

# An alternative is listed if it takes no more than this part of the next one's memory.
_WORTH_A_LINE = 0.85


def crowded_images(answer: PlanAnswer) -> list[Section]:
    """Return what crowded images may do; nothing where not asked."""
    risk = answer.risk
    if risk is None:
        return []
    size = answer.split.micro_batch_size
    chosen = next(row for row in risk.batches if row.micro_batch_size == size)
    lead = (
        f"Crowded images: with a margin of {risk.safety_fraction:.1%} the chance that any of "
        f"{risk.num_steps:,} micro-batches ({risk.num_epochs} epochs) exceeds the budget is "
        f"{percent(chosen.chance)} (predicted; {percent(chosen.chance_low)} to "
        f"{percent(chosen.chance_high)} over resampled data). The fullest image holds "
        f"{risk.usual_objects} objects in half the runs, {risk.fullest_objects} in 99 of 100."
    )
    rows = tuple(
        (
            str(row.micro_batch_size),
            _tolerated(row.tolerated_objects),
            percent(row.chance),
            f"{percent(row.chance_low)} to {percent(row.chance_high)}",
            percent(row.chance_of_running_out),
        )
        for row in risk.batches
    )
    header = ("Micro-batch", "Objects that fit", "Over budget", "5 to 95 %", "Over the card")
    table = Table(header=header, rows=rows, left=0)
    return [
        Section(title="Crowded images", sentences=(lead,)),
        Section(title="Chance that a run exceeds its memory", table=table),
    ]


def _tolerated(objects: int | None) -> str:
    if objects is None:
        return "any number"
    return str(objects) if objects >= 0 else "not even none"


def _budget_line(answer: PlanAnswer) -> str:
    """Return where the budget comes from."""
    margin = answer.gpu.capacity_bytes - answer.taken_bytes - answer.budget_bytes
    parts = [f"Budget: {format_bytes(answer.gpu.capacity_bytes)}", f"{format_bytes(margin)} margin"]
    if answer.taken_bytes:
        parts.append(f"{format_bytes(answer.taken_bytes)} in use")
    context = (
        f"{format_bytes(answer.gpu.context_bytes)} of it go to the CUDA context "
        f"(+- {format_bytes(answer.gpu.context_uncertainty_bytes)})"
    )
    return f"{' - '.join(parts)} = {format_bytes(answer.budget_bytes)}; {context}."


def _input_lines(answer: PlanAnswer) -> list[str]:
    """Return whether loading keeps up, where that was asked."""
    pipeline = answer.input_pipeline
    if pipeline is None:
        return []
    rate = answer.predicted.images_per_second
    workers = max(1, pipeline.num_workers)
    who = "the training process" if not pipeline.num_workers else f"{workers} loader processes"
    line = (
        f"Loading gives {three_digits(pipeline.images_per_second)} images/s: {who} at "
        f"{three_digits(pipeline.images_per_second_per_worker)} each ({pipeline.origin})"
    )
    if pipeline.images_per_second >= rate:
        return [f"{line}, which is enough."]
    needed = math.ceil(rate / pipeline.images_per_second_per_worker)
    return [f"{line}, which holds the card back; it would take {needed} loader processes."]


def _batch_lines(answer: PlanAnswer) -> list[str]:
    """Return what the batch means: rounding, scaling, batch norm, the cost of accumulation."""
    facts, lines = answer.batch, []
    effective, nominal = answer.split.effective_batch_size, answer.nominal_batch_size
    if facts is not None and facts.asked_batch_size != effective:
        gain = facts.rounding_gain_fraction
        than = (
            "no split of that very number fits"
            if gain is None
            else f"{gain:.1%} faster than the best split of that very number (predicted)"
        )
        lines.append(f"{effective} images a step instead of the {facts.asked_batch_size}: {than}.")
    if effective != nominal:
        decay = effective / nominal
        lines.append(
            f"The effective batch {effective} is not the recipe's nominal {nominal}: training "
            f"scales weight decay by {decay:.3g} and leaves the learning rate as it is (to scale "
            f"that too, multiply lr0 in --hyp by {decay:.3g})."
        )
    if answer.split.accumulates:
        line = f"Batch norm sees {answer.split.micro_batch_size} images at a time"
        if facts is not None and facts.accumulation_cost_fraction is not None:
            cost = facts.accumulation_cost_fraction
            line += f"; all images of a step at once would be {cost:.1%} faster (predicted)"
        lines.append(f"{line}.")
    return lines


def _listed(answer: PlanAnswer) -> list[Setting]:
    """Return the alternatives worth a line: each saves a good part of the next one's memory.

    The chosen one always is.
    """
    kept: list[Setting] = []
    for setting in reversed(answer.alternatives):
        used = setting.predicted.device_used_peak_bytes
        saves = not kept or used <= _WORTH_A_LINE * kept[-1].predicted.device_used_peak_bytes
        if saves or is_chosen(answer, setting):
            kept.append(setting)
    return kept[::-1]


def is_chosen(answer: PlanAnswer, setting: Setting) -> bool:
    """Return whether a setting is the plan's own, in all that a step does."""
    return (setting.spec, setting.split) == (answer.spec, answer.split)


def plan_sections(answer: PlanAnswer) -> list[Section]:
    """Return all that a plan says, in the order it is read."""
    return [
        *command_check(answer),
        Section(title="The plan", sentences=tuple(plan_lines(answer))),
        *_alternatives(answer),
        *crowded_images(answer),
        *beside_plan(answer),
        Section(title="Command", sentences=(f"Run it: {answer.command}",)),
        *(
            Section(title="Note", sentences=(f"Note: {note}",))
            for note in (*answer.notes, *answer.unchecked)
        ),
    ]


def plan_numbers(answer: PlanAnswer) -> list[Number]:
    """Return the few numbers that a plan is known by."""
    predicted = answer.predicted
    images, how = batch_words(answer.split).split(" ", 1)
    seconds = predicted.epoch_seconds
    return [
        Number(value=images, label=how, detail=answer.spec.words()),
        Number(
            value=format_bytes(predicted.device_used_peak_bytes),
            label=f"device-used on {answer.gpu.name} ({predicted.origin})",
            detail=(
                f"budget {format_bytes(answer.budget_bytes)}, "
                f"{format_bytes(answer.headroom_bytes)} headroom"
            ),
        ),
        Number(
            value=f"{three_digits(predicted.images_per_second)}/s",
            label=f"images ({rate_origin(answer.gpu)})",
            detail="" if seconds is None else f"an epoch in {format_seconds(seconds)}",
        ),
    ]


def plan_lines(answer: PlanAnswer) -> list[str]:
    """Return the plan itself as sentences: batch, memory, speed, budget, margin."""
    predicted = answer.predicted
    where = f"{answer.workload.name}, {answer.workload.img} px on {answer.gpu.name}"
    memory = (
        f"Device-used {format_bytes(predicted.device_used_peak_bytes)} of a budget of "
        f"{format_bytes(answer.budget_bytes)} ({format_bytes(answer.headroom_bytes)} headroom)"
    )
    rate = three_digits(predicted.images_per_second)
    lines = [
        f"{where}: {setting_words(answer)}.",
        f"{memory}, about {rate} images/s ({rate_origin(answer.gpu)}).",
    ]
    if predicted.epoch_seconds is not None:
        lines.append(f"An epoch takes about {format_seconds(predicted.epoch_seconds)} (predicted).")
    lines += [*_input_lines(answer), *_batch_lines(answer)]
    if answer.share_fraction is not None:
        lines.append(
            f"This card takes {answer.share_fraction:.0%} of each of "
            f"{answer.split.accumulation_steps} micro-batches; images/s are of all cards together."
        )
    lines.append(_budget_line(answer))
    if answer.safety_source:
        lines.append(answer.safety_source)
    lines += rank_lines(answer.other_ranks)
    return lines


def _alternatives(answer: PlanAnswer) -> list[Section]:
    """Return the settings that take less memory and are slower; a host's plan has none."""
    if not answer.alternatives:
        return []
    listed = _listed(answer)
    # What all rows have in common stands in the first line; a terminal has no room for it here.
    differing = [
        lever
        for lever in LEVERS
        if lever.tried and len({getattr(setting.spec, lever.name) for setting in listed}) > 1
    ]
    rows = tuple(
        (
            str(setting.split.micro_batch_size),
            str(setting.split.accumulation_steps),
            *(lever.cell(getattr(setting.spec, lever.name)) for lever in differing),
            gib(setting.predicted.device_used_peak_bytes),
            three_digits(setting.predicted.images_per_second),
            "chosen" if is_chosen(answer, setting) else "",
        )
        for setting in listed
    )
    header = (
        "Micro-batch",
        "Times",
        *(lever.column for lever in differing),
        "Device-used GiB",
        "Images/s",
        "",
    )
    left_out = len(answer.alternatives) - len(rows)
    more = f"; {left_out} more in --json" if left_out else ""
    caption = f"Less memory, less speed (predicted{more})"
    table = Table(caption=caption, header=header, rows=rows, left=0)
    return [Section(title="Alternatives", table=table)]
