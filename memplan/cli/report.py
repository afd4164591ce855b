"""`memplan report`: PDF pages from saved probes, plans and runs."""

from __future__ import annotations

from pathlib import Path

import click

from memplan.answers import PlanAnswer, ProbeAnswer, load_answers
from memplan.cli.common import check_writable, typed_command, wrote
from memplan.errors import UsageError
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
    metavar="PATH.pdf",
    help="Where the pages go.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
def command(files: tuple[Path, ...], output: Path, *, force: bool) -> None:
    """Make PDF pages of saved probes, plans and scripts, and of run folders.

    \b
    memplan report probe.json runs/train/exp --output report.pdf
    """
    from memplan.report import write_report

    check_writable((output,), force=force)
    folders = [path for path in files if path.is_dir()]
    if len(folders) > 1:
        raise UsageError(f"{folders[1]} is a second run folder. Give one run a report.")
    saved = [path for path in files if not path.is_dir()]
    saved += [folder / "plan.json" for folder in folders if (folder / "plan.json").exists()]
    answers = [answer for path in saved for answer in load_answers(path)]
    write_report(
        output,
        probes=[answer for answer in answers if isinstance(answer, ProbeAnswer)],
        plans=[answer for answer in answers if isinstance(answer, PlanAnswer)],
        scripts=[answer for answer in answers if isinstance(answer, ScriptAnswer)],
        run_folder=folders[0] if folders else None,
        command=typed_command(),
        force=force,
    )
    wrote(output)
