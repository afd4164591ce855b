"""`memplan probe`: where memory goes, and how it grows with the batch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from memplan.answers import ProbeAnswer
from memplan.blocks import BlockLives
from memplan.cli.common import (
    Progress,
    card_options,
    given_parameters,
    is_html,
    output_options,
    show,
    typed_command,
    workload_options,
    write_pages,
    wrote,
)
from memplan.click_options import lever_options
from memplan.files.writing import check_writable
from memplan.present.probe import probe_sections


@click.command()
@click.option(
    "--batch",
    "batches",
    multiple=True,
    metavar="N|FIRST:LAST",
    help="Micro-batch sizes; repeatable, or a range such as 1:64.  [16; with --mode val 32, "
    "predict 1]",
)
@click.option(
    "--mode",
    default="train",
    show_default=True,
    metavar="train|val|predict",
    help="Training, or running the trained network as memplan val or memplan predict does.",
)
@click.option("--half", is_flag=True, help="With --mode val or predict: in half precision.")
@workload_options
@lever_options("probe")
@card_options
@click.option(
    "--tape",
    "tape_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Also save the recording, for `memplan replay`.",
)
@click.option(
    "--what-if/--no-what-if",
    default=None,
    help="Replay other layouts, levers and optimizers too.  [with --report]",
)
@output_options
@click.pass_context
def command(context: click.Context, /, **values: Any) -> None:
    """Record a training step without a GPU and show where memory goes on a card.

    \b
    memplan probe --cfg yolov9-s --img 640 --batch 1:64 --gpu rtx-3090 --gpu a100-80gb
    """
    from memplan.processes import start_server

    check_writable((values["output"], values["report"], values["tape_path"]), force=values["force"])
    start_server()  # it imports while this process does
    from memplan.advise.inference import check_mode_options
    from memplan.cli.question import parse_batches, question_from, warn

    mode = values["mode"]
    check_mode_options(mode, half=values["half"], given=given_parameters(context))
    default = {"val": "32", "predict": "1"}.get(mode, "16")
    batches = parse_batches(values["batches"] or (default,))
    from memplan.advise import probe_many
    from memplan.advise.plans import known_calibrations
    from memplan.advise.subject import with_data

    progress = Progress()
    try:
        question, _ = with_data(question_from(values), values["data_path"])
        question = known_calibrations(question, warn)
        lives: list[BlockLives] = []
        keep = lives.append if is_html(values["report"]) else None
        answers = probe_many(
            question,
            batches,
            mode=mode,
            half=values["half"],
            changes=wants_changes(values),
            command=typed_command(),
            say=progress,
            keep=keep,
        )
    finally:
        progress.done()
    show(values, answers, _text)
    if values["tape_path"] is not None:
        _save_tape(question, batches[-1], values["tape_path"])
    write_pages(values, probes=answers, lives=lives)


def wants_changes(values: Mapping[str, Any]) -> bool:
    """Return whether to say what changes would do: as typed, else where pages show it."""
    typed: bool | None = values["what_if"]
    return values["report"] is not None if typed is None else typed


def _save_tape(question: Any, batch: int, path: Path) -> None:
    question.record(batch, question.step_spec).save(path)
    wrote(path)
    card = question.cards()[0].name
    click.echo(f"Next: {shlex.join(['memplan', 'replay', str(path), '--gpu', card])}", err=True)


def _text(answer: ProbeAnswer) -> str:
    return "\n\n".join(section.text for section in probe_sections(answer))
