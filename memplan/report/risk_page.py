"""How crowded the images of a data set get, and what that means for a run's memory."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import PlanAnswer, RunRisk
from memplan.present.plan import crowded_images
from memplan.present.words import batch_words, card_name, workload_title
from memplan.report import theme
from memplan.report.axes import DASHES
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    draw_table,
    new_page,
    table_width,
    wrap,
    write_lines,
)

_PLOT_WIDTH = 4.0
_LAW = (
    "A run draws its images independently, so it stays below m objects with probability F(m) to "
    "the power of the images drawn. The interval comes from resampling the data set."
)


@theme.themed
def risk_figure(plan: PlanAnswer) -> Figure:
    """Return a page: objects in training images, and the chance that a run exceeds its budget.

    Args:
        plan: made for a data set, so that `plan.risk` is known.
    """
    risk = plan.risk
    assert risk is not None
    figure = new_page(
        f"Crowded images: {workload_title(plan.workload)}, {card_name(plan.gpu)}",
        f"{risk.num_images:,} images of {risk.mean_objects:.3g} objects on average over "
        f"{risk.num_epochs} epochs, as augmentation makes them; {batch_words(plan.split)}. "
        f"Chances are {risk.origin}.",
    )
    axes = axes_at(figure, LEFT + 0.6, TOP + 0.3, _PLOT_WIDTH, BOTTOM - TOP - 1.1)
    draw_objects(axes, risk)
    left = LEFT + _PLOT_WIDTH + 1.05
    width = LEFT + WIDTH - left
    lead, chances = crowded_images(plan)
    table = chances.table
    assert table is not None
    header, rows = table.header, table.rows
    size = theme.BODY_POINTS
    while table_width(header, rows, size=size, gap=0.18) > width and size > 6:
        size -= 0.5
    chosen = [row.micro_batch_size for row in risk.batches].index(plan.split.micro_batch_size)
    y = draw_table(
        figure, left, TOP + 0.15, header, rows, align="rrrrr", size=size, gap=0.18,
        emphasised=chosen,
    ) + 0.35  # fmt: skip
    for sentence in (*lead.sentences, plan.safety_source, _LAW):
        y = write_lines(figure, left, y, wrap(sentence, width, theme.BODY_POINTS)) + 0.08
    return figure


def draw_objects(axes: Axes, risk: RunRisk) -> None:
    """Draw the share of images that hold at most so many objects, and the fullest of a run."""
    axes.plot(risk.objects, risk.shares, color=theme.BLUE, marker="o", markersize=4)
    marks = (
        (risk.usual_objects, "fullest of half the runs", theme.GREEN, 0.30),
        (risk.fullest_objects, "fullest of 99 in 100 runs", theme.VERMILION, 0.18),
    )
    top = 1.12 * max(*risk.objects, risk.fullest_objects, 1)
    for objects, name, colour, height in marks:
        axes.axvline(objects, color=colour, linestyle=DASHES, linewidth=1.3)
        side = "right" if objects > 0.5 * top else "left"
        axes.annotate(
            f"{name}: {objects}",
            (objects, height),
            xytext=(-5 if side == "right" else 5, 0),
            textcoords="offset points",
            ha=side,
            fontsize=theme.SMALL_POINTS,
            color=colour,
            bbox={"facecolor": theme.PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        )
    axes.set_xlim(0, top)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("Objects in a training image")
    axes.set_ylabel("Share of images with no more (0 to 1)")
