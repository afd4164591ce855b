"""The pages of a run, in the order they are read."""

from __future__ import annotations

from matplotlib.figure import Figure

from memplan.answers import PlanAnswer
from memplan.present.run import run_sections
from memplan.present.run_record import RunRecord
from memplan.report.frame import page_title
from memplan.report.run import glance_figure, training_figure
from memplan.report.run_memory import live_memory_figure
from memplan.report.run_pictures import picture_figures
from memplan.report.run_scores import scores_figure
from memplan.report.sections_page import height_under, sections_figures

_LABELS = "labels.png"
# The picture of labels leaves so much of its page to the facts about the data, inches.
_MOST_BELOW = 3.2


def run_figures(run: RunRecord, plan: PlanAnswer | None) -> list[Figure]:
    """Return the pages: a glance, curves, memory, scores, pictures, and all facts as tables.

    Args:
        run: read from its folder.
        plan: that it followed; None where there was none.
    """
    scores = scores_figure(run)
    sections = run_sections(run, plan)
    about_data = [one for one in sections if one.title == "Data"]
    below = height_under(about_data)
    pictures = picture_figures(run, {_LABELS: below} if below < _MOST_BELOW else {})
    labels = pictures.get(_LABELS)
    if labels is not None and not sections_figures(
        page_title(labels), "", about_data, after=labels
    ):
        sections = [one for one in sections if one.title != "Data"]
    return [
        glance_figure(run, plan),
        training_figure(run),
        *([live_memory_figure(run, plan)] if run.memory else []),
        *([scores] if scores is not None else []),
        *pictures.values(),
        *sections_figures(f"Run {run.folder.name}: facts", "Measured by the run.", sections),
    ]
