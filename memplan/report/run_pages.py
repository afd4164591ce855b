"""The pages of a run, in the order they are read."""

from __future__ import annotations

from matplotlib.figure import Figure

from memplan.answers import PlanAnswer
from memplan.present.run import run_sections
from memplan.present.run_record import RunRecord
from memplan.report.run import glance_figure, training_figure
from memplan.report.run_memory import live_memory_figure
from memplan.report.run_pictures import picture_figures
from memplan.report.run_scores import scores_figure
from memplan.report.sections_page import sections_figures


def run_figures(run: RunRecord, plan: PlanAnswer | None) -> list[Figure]:
    """Return the pages: a glance, curves, memory, scores, pictures, and all facts as tables.

    Args:
        run: read from its folder.
        plan: that it followed; None where there was none.
    """
    scores = scores_figure(run)
    return [
        glance_figure(run, plan),
        training_figure(run),
        *([live_memory_figure(run, plan)] if run.memory else []),
        *([scores] if scores is not None else []),
        *picture_figures(run),
        *sections_figures(
            f"Run {run.folder.name}: facts", "Measured by the run.", run_sections(run, plan)
        ),
    ]
