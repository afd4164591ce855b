"""A finished run drawn: `report.pdf` and `plots/`; a failure to draw never loses the run."""

from __future__ import annotations

from pathlib import Path

import click

from memplan.answers import PlanAnswer, load_answers
from memplan.cli.common import wrote
from memplan.errors import MemplanError

_DOTS_PER_INCH = 120


def draw_run(folder: Path, plan: PlanAnswer | None, command: str) -> None:
    """Write `report.pdf` and `plots/` into a run folder, or say why that was not possible.

    Args:
        folder: what the run left.
        plan: what the run followed; None takes the folder's `plan.json`, where there is one.
        command: stated on the report's last page.
    """
    try:
        plans = [plan] if plan is not None else _saved_plans(folder)
        _write_report(folder, plans, command)
        _write_plots(folder, plans[0] if plans else None)
    # The run is done and saved; whatever goes wrong in a drawing is worth a line only.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split()) or type(error).__name__
        click.echo(f"Warning: the run could not be drawn ({reason.rstrip('.')}).", err=True)


def _saved_plans(folder: Path) -> list[PlanAnswer]:
    path = folder / "plan.json"
    if not path.is_file():
        return []
    try:
        return [answer for answer in load_answers(path) if isinstance(answer, PlanAnswer)]
    except MemplanError:
        return []


def _write_report(folder: Path, plans: list[PlanAnswer], command: str) -> None:
    from memplan.report.pages import write_report

    path = folder / "report.pdf"
    wrote(write_report(path, plans=plans, run_folder=folder, command=command, force=True))


def _write_plots(folder: Path, plan: PlanAnswer | None) -> None:
    from memplan.present.run_record import read_run
    from memplan.report.run import training_figure
    from memplan.report.run_memory import live_memory_figure

    run = read_run(folder)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    figures = {"results.png": training_figure(run)}
    if run.memory:
        figures["memory.png"] = live_memory_figure(run, plan)
    for name, figure in figures.items():
        figure.savefig(plots / name, dpi=_DOTS_PER_INCH)
        wrote(plots / name)
