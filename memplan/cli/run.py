"""`memplan run`: a person's own command on a card that is not there."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from memplan.blocks import BlockLives
from memplan.cli.common import (
    Progress,
    blocks_report_option,
    is_html,
    paper_option,
    show,
    snapshot_option,
    write_pages,
    wrote,
)
from memplan.errors import UnknownNameError, UsageError
from memplan.files.writing import check_writable
from memplan.present.script import script_sections
from memplan.recording.find_batch import MOST_TRIALS
from memplan.recording.run import run
from memplan.script_answer import ScriptAnswer
from memplan.trace.snapshot import load_content, parsed
from memplan.trace.snapshot_blocks import snapshot_blocks


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--gpu", required=True, metavar="NAME", help="One of `memplan gpus`.")
@click.option("--capacity", metavar="SIZE", help="Override the card's memory, such as 12GiB.")
@click.option("--devices", type=click.IntRange(1, 8), default=1, metavar="N", help="Cards.  [1]")
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help="Optimizer steps.  [until peaks are steady]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=900.0,
    metavar="SECONDS",
    help="End the script after so long.  [900]",
)
@click.option(
    "--selected",
    type=click.FloatRange(0, 1),
    default=0.01,
    metavar="FRACTION",
    help="Part of a mask over network outputs taken as true.  [0.01]",
)
@click.option(
    "--read",
    "reads",
    multiple=True,
    metavar="FILE:LINE=VALUE",
    help="What a line of the script reads from the card; repeatable.",
)
@click.option(
    "--find-batch",
    metavar="OPTION",
    help="Find the largest batch: the option of your command that gives it, such as --batch.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="FRACTION",
    help="What --find-batch may be short of the largest.  [0: exact]",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=MOST_TRIALS,
    metavar="N",
    help=f"Runs of --find-batch, at most.  [{MOST_TRIALS}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, memory in bytes.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="PATH", help="Also save the answer."
)
@blocks_report_option
@snapshot_option("Also write PyTorch's memory snapshot of the run, for pytorch.org/memory_viz.")
@paper_option
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--quiet", is_flag=True, help="Do not show what the script prints.")
@click.argument("script", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
def command(script: tuple[str, ...], **values: Any) -> None:
    """Run your own training command, unmodified, on a card that is not there.

    \b
    memplan run --gpu rtx-3090 -- python train.py --batch 16
    """
    paths = [values[name] for name in ("output", "report", "snapshot")]
    check_writable(paths, force=values["force"])
    with tempfile.TemporaryDirectory(prefix="memplan-run-") as folder:
        shows_blocks = is_html(values["report"]) and not values["find_batch"]
        kept = values["snapshot"] or (Path(folder) / "run.pickle" if shows_blocks else None)
        answer = _run(script, values, kept)
        lives = _lives(kept, answer) if shows_blocks else []
    if values["snapshot"] is not None:
        wrote(values["snapshot"])
    show(values, [answer], text)
    write_pages(values, lives, scripts=[answer])
    sys.exit(0 if answer.runs else 1)


def _lives(path: Path | None, answer: ScriptAnswer) -> list[BlockLives]:
    """Return a run's blocks from the history that it left, on its card; none of none."""
    if path is None or not path.exists():
        return []
    content = load_content(path)
    histories = content["device_traces"]
    device = max(range(len(histories)), key=lambda index: len(histories[index]), default=0)
    snapshot = parsed(path, content, device)
    lives = snapshot_blocks(snapshot, answer.title)
    outside = answer.device_used_peak_bytes - answer.reserved_peak_bytes
    return [replace(lives, capacity_bytes=answer.capacity_bytes, context_bytes=outside)]


def _run(script: tuple[str, ...], values: dict[str, Any], snapshot: Path | None) -> ScriptAnswer:
    """Run the command and return its answer, saying meanwhile what is being done.

    Raises:
        MemplanError: the command or an option cannot be used.
    """
    progress = Progress(quiet=not values["quiet"])

    def tell(text: str) -> None:
        progress.done()
        click.echo(text, err=True)

    try:
        answer = run(
            script,
            gpu=values["gpu"],
            capacity=values["capacity"],
            devices=values["devices"],
            steps=values["steps"],
            find_batch=values["find_batch"],
            selected=values["selected"],
            read=_lines(values["reads"]),
            timeout_seconds=values["timeout"],
            prints=not values["quiet"],
            asks=True,
            tolerance=values["tolerance"],
            trials=values["trials"],
            snapshot=snapshot,
            say=progress,
            tell=tell,
        )
    except UnknownNameError as error:
        # The card is the one name that is looked up here: an option's value, as any other.
        raise UsageError(str(error)) from None
    progress.done()
    if not values["quiet"]:
        click.echo(err=True)  # what the script printed last may have no end of line
    return answer


def _lines(reads: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for read in reads:
        line, _, value = read.rpartition("=")
        try:
            found[line] = float(value)
        except ValueError:
            line = ""
        if ":" not in line:
            raise UsageError(f"--read {read!r} is not FILE:LINE=VALUE, such as loss.py:120=3.")
    return found


def text(answer: ScriptAnswer) -> str:
    """Return an answer as people read it."""
    return "\n\n".join(section.text for section in script_sections(answer))
