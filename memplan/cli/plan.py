"""`memplan plan`: the fastest settings that fit a card."""

from __future__ import annotations

from typing import Any

import click

from memplan.answers import PlanAnswer
from memplan.cli.common import (
    Progress,
    card_options,
    check_writable,
    output_options,
    show,
    table,
    workload_options,
    write_pages,
)
from memplan.cli.probe import describe_setting
from memplan.units import format_bytes, format_seconds, gib, three_digits


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
    default=0.05,
    show_default=True,
    metavar="FRACTION",
    help="Part of the card's memory left alone.",
)
@workload_options
@card_options
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Choose micro-batch, accumulation, layout and recompute: the fastest that fits.

    Both tensor layouts are tried unless --memory-format is given, and with --recompute auto
    (the default here) none and all blocks.

    \b
    memplan plan --cfg yolov9-s --gpu rtx-3090 --effective-batch 64
    """
    check_writable((values["output"], values["report"]), force=values["force"])
    answers = _plan(context, values)
    show(values, answers, _text)
    write_pages(values, plans=answers)


def _is_given(context: click.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source is not click.core.ParameterSource.DEFAULT


def _plan(context: click.Context, values: dict[str, Any]) -> list[PlanAnswer]:
    from dataclasses import replace

    from memplan.api import plan_one
    from memplan.cli.question import question_from

    if not _is_given(context, "recompute"):
        values["recompute"] = "auto"
    progress = Progress()
    try:
        question, num_images = question_from(values)
        return [
            plan_one(
                replace(question, gpus=(gpu,)) if gpu is not None else question,
                effective_batch_size=values["effective_batch"],
                safety_fraction=values["safety"],
                num_images=num_images,
                free_formats=not _is_given(context, "memory_format"),
                data=str(values["data_path"] or "data.yaml"),
                say=progress,
            )
            for gpu in (question.gpus or (None,))
        ]
    finally:
        progress.done()


def _text(answer: PlanAnswer) -> str:
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
        f"{memory}, about {rate} images/s (predicted, uncalibrated).",
    ]
    if predicted.epoch_seconds is not None:
        lines.append(f"An epoch takes about {format_seconds(predicted.epoch_seconds)} (predicted).")
    if answer.effective_batch_size != answer.nominal_batch_size:
        lines.append(
            f"The effective batch {answer.effective_batch_size} is not the recipe's nominal "
            f"{answer.nominal_batch_size}; weight decay is scaled with it."
        )
    if answer.accumulation_steps > 1:
        lines.append(f"Batch norm sees {answer.micro_batch_size} images at a time.")
    rows = [
        (
            str(setting.micro_batch_size),
            str(setting.accumulation_steps),
            setting.precision,
            setting.memory_format,
            str(len(setting.recompute)),
            gib(setting.predicted.device_used_peak_bytes),
            three_digits(setting.predicted.images_per_second),
        )
        for setting in answer.alternatives
    ]
    header = (
        "Micro-batch",
        "Accumulation",
        "Precision",
        "Layout",
        "Recomputed",
        "Device-used GiB",
        "Images/s",
    )
    alternatives = "Less memory, less speed (predicted)\n" + table(header, rows, left=0)
    notes = [f"Note: {note}" for note in answer.notes]
    return "\n\n".join(["\n".join(lines), alternatives, f"Run it: {answer.command}", *notes])
