"""A finished run drawn: reports and `plots/`; a failure to draw never loses the run."""

from __future__ import annotations

from pathlib import Path

from memplan.answers import PlanAnswer, load_answers
from memplan.errors import MemplanError
from memplan.fit.predictor import Say
from memplan.training import RunSummary

_DOTS_PER_INCH = 120


def draw_run(folder: Path, plan: PlanAnswer | None, command: str, tell: Say) -> None:
    """Write `report.pdf`, `report.html` and `plots/` into a run folder, or say why not.

    Args:
        folder: what the run left.
        plan: what the run followed; None takes the folder's `plan.json`, where there is one.
        command: stated on the report's last page.
        tell: called with a line on each file written, and on what went wrong.
    """
    try:
        plans = [plan] if plan is not None else _saved_plans(folder)
        _write_report(folder, plans, command, tell)
        _write_plots(folder, plans[0] if plans else None, tell)
    # The run is done and saved; whatever goes wrong in a drawing is worth a line only.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split()) or type(error).__name__
        tell(f"Warning: the run could not be drawn ({reason.rstrip('.')}).")


def is_worth_drawing(summary: RunSummary) -> bool:
    """Return whether there is something to draw that is not drawn yet, and may be."""
    is_drawn = summary.was_finished and (summary.run_folder / "report.pdf").exists()
    return summary.draws and bool(summary.epochs_done) and not is_drawn


def _saved_plans(folder: Path) -> list[PlanAnswer]:
    path = folder / "plan.json"
    if not path.is_file():
        return []
    try:
        return [answer for answer in load_answers(path) if isinstance(answer, PlanAnswer)]
    except MemplanError:
        return []


def _write_report(folder: Path, plans: list[PlanAnswer], command: str, tell: Say) -> None:
    from memplan.html import write_html
    from memplan.report.pages import write_report

    path = folder / "report.pdf"
    written = write_report(path, plans=plans, run_folder=folder, command=command, force=True)
    tell(f"Wrote {written}")
    page = write_html(
        folder / "report.html", plans=plans, run_folder=folder, command=command, force=True
    )
    tell(f"Wrote {page}")


def _write_plots(folder: Path, plan: PlanAnswer | None, tell: Say) -> None:
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
        tell(f"Wrote {plots / name}")
