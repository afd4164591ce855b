"""`memplan report`: PDF pages, or an HTML page, from saved probes, plans and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memplan.answers import PlanAnswer, ProbeAnswer, load_answers
from memplan.cli.common import (
    folded,
    is_html,
    paper_option,
    typed_command,
    write_pages,
    wrote,
)
from memplan.errors import UsageError
from memplan.files.writing import check_writable
from memplan.present.diff import Holdings, diff_sections, holdings_of
from memplan.script_answer import ScriptAnswer


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.pdf"),
    show_default=True,
    metavar="PATH.pdf|.html",
    help="Where the report goes; the name says which kind.",
)
@click.option("--diff", is_flag=True, help="Say what grew from the first file to the second.")
@paper_option
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def command(
    files: tuple[Path, ...], output: Path, *, diff: bool, paper: str | None, force: bool
) -> None:
    """Make PDF pages, or an HTML page, of saved probes, plans and scripts, and of run folders.

    \b
    memplan report probe.json runs/train/exp --output report.pdf
    memplan report before.json after.json --diff
    """
    check_writable((output,), force=force)
    if diff:
        _compare(files, output, paper)
        return
    folders = [path for path in files if path.is_dir()]
    if len(folders) > 1:
        raise UsageError(f"{folders[1]} is a second run folder. Give one run a report.")
    saved = [path for path in files if not path.is_dir()]
    saved += [folder / "plan.json" for folder in folders if (folder / "plan.json").exists()]
    answers = [answer for path in saved for answer in load_answers(path)]
    write_pages(
        {"report": output, "paper": paper, "force": force},
        probes=[answer for answer in answers if isinstance(answer, ProbeAnswer)],
        plans=[answer for answer in answers if isinstance(answer, PlanAnswer)],
        scripts=[answer for answer in answers if isinstance(answer, ScriptAnswer)],
        run_folder=folders[0] if folders else None,
    )


def _compare(files: tuple[Path, ...], output: Path, paper: str | None) -> None:
    """Print and draw what grew between two saved answers, or the same cards of two files."""
    if len(files) != 2:
        raise UsageError(f"--diff compares 2 files, not {len(files)}. Give one before, one after.")
    one, other = files
    pairs = _pairs([*load_answers(one)], [*load_answers(other)], one, other)
    text = "\n\n".join(
        section.text for before, now in pairs for section in diff_sections(before, now)
    )
    click.echo(folded(text))
    if is_html(output):
        from memplan.html.report import write_diff_html

        # That it may be overwritten was looked at before.
        write_diff_html(output, pairs, command=typed_command(), force=True)
    else:
        from memplan.report.diff_pages import write_diff

        write_diff(output, pairs, paper=paper)
    wrote(output)


def _pairs(
    before: list[Any], after: list[Any], one: Path, other: Path
) -> list[tuple[Holdings, Holdings]]:
    """Return answers side by side: of several cards those alike, else in the order of the files.

    Raises:
        UsageError: a file holds nothing, or the two have no card in common.
    """
    if not before or not after:
        raise UsageError(f"{other if before else one} holds no answer. Give probes, plans or runs.")
    if len(before) == len(after) == 1:
        return [(holdings_of(before[0], str(one)), holdings_of(after[0], str(other)))]
    cards = {_card_of(answer): answer for answer in after}
    pairs = [
        (holdings_of(answer, str(one)), holdings_of(cards[_card_of(answer)], str(other)))
        for answer in before
        if _card_of(answer) in cards
    ]
    if not pairs:
        raise UsageError(f"{one} and {other} have no card in common. Give answers for the same.")
    return pairs


def _card_of(answer: Any) -> str:
    gpu = answer.gpu
    return gpu if isinstance(gpu, str) else str(gpu.name)
