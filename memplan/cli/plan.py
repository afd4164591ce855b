"""`memplan plan`: the fastest settings that fit a card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from memplan.answers import InfeasibleAnswer, PlanAnswer, Setting
from memplan.cli.common import (
    Progress,
    card_options,
    check_writable,
    given_levers,
    lever_options,
    output_options,
    rate_origin,
    show,
    table,
    workload_options,
    write_pages,
)
from memplan.cli.plan_answers import (
    answer_options,
    asked_from,
    before_plan,
    beside_plan,
    refuse_unequal,
    with_all_answers,
)
from memplan.cli.probe import describe_setting, rank_lines
from memplan.errors import InfeasibleError
from memplan.spec import LEVERS, free_levers
from memplan.units import format_bytes, format_seconds, gib, three_digits

if TYPE_CHECKING:
    from memplan.api import Question
    from memplan.api.asked import Asked

# An alternative is listed as text if it takes no more than this part of the next one's memory.
_WORTH_A_LINE = 0.85


@click.command()
@click.option(
    "--effective-batch",
    type=int,
    metavar="N",
    help="Images an optimizer step sees.  [the workload's nominal batch, 64]",
)
@click.option(
    "--safety",
    type=float,
    metavar="FRACTION",
    help="Part of the card's memory that stays free.  [0.05; with --epochs 0.025]",
)
@click.option(
    "--epochs",
    type=int,
    metavar="N",
    help="With --data: the chance that so long a run meets an image too full for its memory.",
)
@click.option(
    "--workers",
    "workers",
    type=int,
    metavar="N",
    help="Loader processes: says whether they keep up, measured on --data.",
)
@click.option(
    "--worker-rate",
    type=float,
    metavar="IMAGES",
    help="Images a second of one loader process, instead of measuring it.",
)
@answer_options
@workload_options
@lever_options("plan")
@card_options
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Choose micro-batch, accumulation and how a step runs: the fastest that fits.

    What is not given is chosen, but for what changes losses; --precision auto chooses that too.
    Of settings within one percent the plainer one wins.

    \b
    memplan plan --cfg yolov9-s --gpu rtx-3090 --effective-batch 64
    """
    from memplan.parallel import kept_processes
    from memplan.processes import start_server

    check_writable((values["output"], values["report"]), force=values["force"])
    start_server()  # it imports while this process does
    with kept_processes():
        answers = _plan(context, values)
    feasible = [answer for answer in answers if isinstance(answer, PlanAnswer)]
    if feasible or values["as_json"]:
        show(values, answers, _text)
    if not feasible:
        refusals = [one.message for one in answers if isinstance(one, InfeasibleAnswer)]
        raise InfeasibleError("\n".join(refusals))
    write_pages(values, plans=feasible)


def what_is_asked(
    context: click.Context, values: dict[str, Any]
) -> tuple[Asked, Question, frozenset[str], int | None]:
    """Return the questions of a command, refused where the workload cannot be asked them.

    Args:
        context: tells which options were given.
        values: by name; those that follow from others are set.

    Returns:
        What is asked beside the plan, what is planned, the levers that the plan may choose, and
        the training images where data is given.

    Raises:
        MemplanError: an option cannot be used.
    """
    from memplan.api.asked import check_asked
    from memplan.cli.question import question_from

    asked = asked_from(context, values)
    free = free_levers(given_levers(context))
    # What the plan chooses has no value yet.
    values |= {name: None for name in free if values.get(name) == "auto"}
    question, num_images = question_from(values)
    question.check()
    check_asked(question, asked)
    return asked, question, free, num_images


def _plan(
    context: click.Context, values: dict[str, Any]
) -> Sequence[PlanAnswer | InfeasibleAnswer]:
    from memplan.api import plan_many
    from memplan.api.devices import plan_unequal
    from memplan.api.inputs import input_pipeline, limited
    from memplan.api.planning import recordings_of

    asked, question, free, num_images = what_is_asked(context, values)
    progress = Progress()
    try:
        pipeline = input_pipeline(
            question.made, values["data_path"], values["workers"], values["worker_rate"]
        )
        if 1 < question.devices == len(set(question.gpus)):
            refuse_unequal(asked)
            return plan_unequal(
                question,
                effective_batch_size=values["effective_batch"],
                safety_fraction=values["safety"],
                num_images=num_images,
                free=free,
                data=str(values["data_path"] or "data.yaml"),
                say=progress,
            )
        recordings = recordings_of(question)
        answers = plan_many(
            question,
            effective_batch_size=values["effective_batch"],
            safety_fraction=values["safety"],
            num_images=num_images,
            num_epochs=values["epochs"],
            free=free,
            data=str(values["data_path"] or "data.yaml"),
            recordings=recordings,
            say=progress,
        )
        answers = with_all_answers(
            question, answers, recordings, asked, values, free, num_images, progress
        )
        return [limited(one, pipeline) if isinstance(one, PlanAnswer) else one for one in answers]
    finally:
        progress.done()


def risk_lines(answer: PlanAnswer) -> list[str]:
    """Return what crowded images may do, as a sentence and a table; nothing where not asked."""
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
    rows = [
        (
            str(row.micro_batch_size),
            _tolerated(row.tolerated_objects),
            percent(row.chance),
            f"{percent(row.chance_low)} to {percent(row.chance_high)}",
            percent(row.chance_of_running_out),
        )
        for row in risk.batches
    ]
    header = ("Micro-batch", "Objects that fit", "Over budget", "5 to 95 %", "Over the card")
    return [lead, table(header, rows, left=0)]


def _tolerated(objects: int | None) -> str:
    if objects is None:
        return "any number"
    return str(objects) if objects >= 0 else "not even none"


def percent(chance: float) -> str:
    """Return a chance as people read it, never as a false 0 or 1."""
    if chance in (0.0, 1.0):
        return f"{chance:.0%}"
    if chance < 0.0001:
        return "below 0.01%"
    if chance > 0.9999:
        return "above 99.99%"
    return f"{100 * chance:.2g}%"


def _text(answer: PlanAnswer | InfeasibleAnswer) -> str:
    return answer.message if isinstance(answer, InfeasibleAnswer) else _plan_text(answer)


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


def _listed(alternatives: Sequence[Setting]) -> list[Setting]:
    """Return the alternatives worth a line: each saves a good part of the next one's memory."""
    kept: list[Setting] = []
    for setting in reversed(alternatives):
        used = setting.predicted.device_used_peak_bytes
        if not kept or used <= _WORTH_A_LINE * kept[-1].predicted.device_used_peak_bytes:
            kept.append(setting)
    return kept[::-1]


def _plan_text(answer: PlanAnswer) -> str:
    chosen = answer.alternatives[-1]
    predicted = answer.predicted
    where = f"{answer.workload.name}, {answer.workload.img} px on {answer.gpu.name}"
    memory = (
        f"Device-used {format_bytes(predicted.device_used_peak_bytes)} of a budget of "
        f"{format_bytes(answer.budget_bytes)} ({format_bytes(answer.headroom_bytes)} headroom)"
    )
    rate = three_digits(predicted.images_per_second)
    lines = [
        f"{where}: {describe_setting(chosen)}.",
        f"{memory}, about {rate} images/s ({rate_origin(answer.gpu)}).",
    ]
    if predicted.epoch_seconds is not None:
        lines.append(f"An epoch takes about {format_seconds(predicted.epoch_seconds)} (predicted).")
    lines += [*_input_lines(answer), *_batch_lines(answer)]
    listed = _listed(answer.alternatives)
    # What all rows have in common stands in the first line; a terminal has no room for it here.
    differing = [
        lever
        for lever in LEVERS
        if lever.tried and len({getattr(setting.spec, lever.name) for setting in listed}) > 1
    ]
    rows = [
        (
            str(setting.split.micro_batch_size),
            str(setting.split.accumulation_steps),
            *(lever.cell(getattr(setting.spec, lever.name)) for lever in differing),
            gib(setting.predicted.device_used_peak_bytes),
            three_digits(setting.predicted.images_per_second),
        )
        for setting in listed
    ]
    header = (
        "Micro-batch",
        "Accumulation",
        *(lever.column for lever in differing),
        "Device-used GiB",
        "Images/s",
    )
    if answer.share_fraction is not None:
        lines.append(
            f"This card takes {answer.share_fraction:.0%} of each of "
            f"{answer.split.accumulation_steps} micro-batches; images/s are of all cards together."
        )
    lines.append(_budget_line(answer))
    if answer.safety_source:
        lines.append(answer.safety_source)
    lines += rank_lines(answer.other_ranks)
    left_out = len(answer.alternatives) - len(rows)
    more = f"; {left_out} more in --json" if left_out else ""
    alternatives = f"Less memory, less speed (predicted{more})\n" + table(header, rows, left=0)
    notes = [f"Note: {note}" for note in (*answer.notes, *answer.unchecked)]
    parts = [*before_plan(answer), "\n".join(lines), alternatives, *risk_lines(answer)]
    parts += beside_plan(answer)
    return "\n\n".join([*parts, f"Run it: {answer.command}", *notes])
