"""`memplan plan`: the fastest settings that fit a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from memplan.answers import InfeasibleAnswer, PlanAnswer
from memplan.cli.common import (
    Progress,
    card_options,
    check_writable,
    given_levers,
    lever_options,
    output_options,
    show,
    workload_options,
    write_pages,
)
from memplan.cli.plan_answers import (
    answer_options,
    asked_from,
    refuse_unequal,
    with_all_answers,
)
from memplan.errors import InfeasibleError
from memplan.present.plan import plan_sections
from memplan.spec import free_levers

if TYPE_CHECKING:
    from memplan.advise import Question
    from memplan.advise.also import Asked


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
    from memplan.advise.also import check_asked
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
    from memplan.advise import plan_many
    from memplan.advise.input_pipeline import input_pipeline, limited
    from memplan.advise.planning import recordings_of
    from memplan.advise.unequal_cards import plan_unequal

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


def _text(answer: PlanAnswer | InfeasibleAnswer) -> str:
    if isinstance(answer, InfeasibleAnswer):
        return answer.message
    return "\n\n".join(section.text for section in plan_sections(answer))
