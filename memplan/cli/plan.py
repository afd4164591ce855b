"""`memplan plan`: the fastest settings that fit a card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from memplan.answers import InfeasibleAnswer, PlanAnswer
from memplan.cli.common import (
    Progress,
    card_options,
    given_levers,
    given_parameters,
    output_options,
    show,
    workload_options,
    write_pages,
)
from memplan.cli.plan_answers import also_from, answer_options
from memplan.click_options import lever_options
from memplan.errors import InfeasibleError
from memplan.files.writing import check_writable
from memplan.present.plan import plan_sections
from memplan.spec import free_levers

if TYPE_CHECKING:
    from memplan.advise.plans import PlanRequest

# Parameters that are called otherwise in Python.
_CALLED = {"data_path": "data"}


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
    from memplan.processes import start_server

    check_writable((values["output"], values["report"]), force=values["force"])
    start_server()  # it imports while this process does
    answers = _plan(context, values)
    feasible = [answer for answer in answers if isinstance(answer, PlanAnswer)]
    if feasible or values["as_json"]:
        show(values, answers, _text)
    if not feasible:
        refusals = [one.message for one in answers if isinstance(one, InfeasibleAnswer)]
        raise InfeasibleError("\n".join(refusals))
    write_pages(values, plans=feasible)


def request_from(context: click.Context, values: dict[str, Any]) -> PlanRequest:
    """Return what a command asks.

    Raises:
        UsageError: an option cannot be read.
    """
    from memplan.advise.plans import PlanRequest
    from memplan.cli.question import question_from

    free = free_levers(given_levers(context))
    # What the plan chooses has no value yet.
    values = values | {name: None for name in free if values.get(name) == "auto"}
    return PlanRequest(
        question=question_from(values),
        data=values["data_path"],
        effective_batch_size=values["effective_batch"],
        safety_fraction=values["safety"],
        num_epochs=values["epochs"],
        num_workers=values["workers"],
        worker_rate=values["worker_rate"],
        free=free,
        also=also_from(values),
        given=frozenset(_CALLED.get(one, one) for one in given_parameters(context)),
    )


def _plan(
    context: click.Context, values: dict[str, Any]
) -> Sequence[PlanAnswer | InfeasibleAnswer]:
    from memplan.advise.plans import plans
    from memplan.cli.question import warn

    progress = Progress()
    try:
        return plans(request_from(context, values), say=progress, warn=warn)
    finally:
        progress.done()


def _text(answer: PlanAnswer | InfeasibleAnswer) -> str:
    if isinstance(answer, InfeasibleAnswer):
        return answer.message
    return "\n\n".join(section.text for section in plan_sections(answer))
