"""The plans of several cards side by side."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import PlanAnswer
from memplan.present.words import words_apart, workload_title
from memplan.report import theme
from memplan.report.axes import memory_axis
from memplan.report.frame import (
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
from memplan.units import format_bytes, gib, three_digits

CARDS_A_PAGE = 8


@theme.themed
def cards_figure(plans: Sequence[PlanAnswer]) -> Figure:
    """Return a page: memory and speed of each card's plan as bars, and the plans as a table.

    Args:
        plans: two to `CARDS_A_PAGE` of one workload.
    """
    first = plans[0]
    together = first.share_fraction is not None
    figure = new_page(
        f"Cards side by side: {workload_title(first.workload)}",
        (
            f"Unequal cards that train together, {first.split.effective_batch_size} images a step "
            f"in all ({first.predicted.origin})."
            if together
            else f"The plan of each card, {first.predicted.origin}; speed is a roofline's."
        ),
    )
    height = 0.34 * len(plans) + 0.25
    label = 1.35
    half = (WIDTH - 2 * label - 0.9) / 2
    memory = axes_at(figure, LEFT + label, TOP + 0.3, half, height)
    speed = axes_at(figure, LEFT + 2 * label + half + 0.4, TOP + 0.3, half, height)
    draw_memory(memory, plans)
    draw_speed(speed, plans)
    top = TOP + 0.3 + height + 0.85
    header, rows = cards_table(plans)
    size = theme.BODY_POINTS
    while table_width(header, rows, size=size) > WIDTH and size > theme.SMALL_POINTS:
        size -= 0.5
    gap = 0.28 if table_width(header, rows, size=size) <= WIDTH else 0.16
    end = draw_table(figure, LEFT, top, header, rows, align="lrrrlrrr", size=size, gap=gap)
    note = (
        "Images/s are of all cards together; each step lasts as long as the slowest card's."
        if together
        else "The headroom is the budget less the device-used peak."
    )
    lines = wrap(note, WIDTH, theme.BODY_POINTS)
    write_lines(figure, LEFT, end + 0.25, lines, colour=theme.QUIET_INK)
    return figure


def draw_memory(axes: Axes, plans: Sequence[PlanAnswer]) -> None:
    """Draw each card's peak within its capacity, the budget as a tick."""
    rows = list(range(len(plans)))
    capacities = [plan.gpu.capacity_bytes for plan in plans]
    axes.barh(rows, capacities, color=theme.SHADE, edgecolor=theme.RULE, height=0.62)
    used = [plan.predicted.device_used_peak_bytes for plan in plans]
    axes.barh(rows, used, color=theme.BLUE, height=0.62)
    for row, plan in zip(rows, plans, strict=True):
        axes.plot([plan.budget_bytes] * 2, [row - 0.38, row + 0.38], color=theme.BLACK)
        axes.annotate(
            f"{format_bytes(used[row])} of {format_bytes(plan.gpu.capacity_bytes)}",
            (0, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=theme.SMALL_POINTS,
            color=theme.INK,
            bbox={"facecolor": theme.PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
        )
    _label_rows(axes, plans)
    memory_axis(axes, "x", "Device-used peak; | the budget", 1.05 * max(capacities), num_ticks=5)


def draw_speed(axes: Axes, plans: Sequence[PlanAnswer]) -> None:
    """Draw each card's images per second."""
    rates = [plan.predicted.images_per_second for plan in plans]
    axes.barh(range(len(plans)), rates, color=theme.GREEN, height=0.62)
    for row, rate in enumerate(rates):
        axes.annotate(
            three_digits(rate),
            (rate, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=theme.SMALL_POINTS,
        )
    _label_rows(axes, plans)
    axes.set_xlim(0, 1.15 * max(rates))
    axes.set_xlabel("Speed (images/s)")


def _label_rows(axes: Axes, plans: Sequence[PlanAnswer]) -> None:
    axes.set_yticks(range(len(plans)), [plan.gpu.name for plan in plans])
    axes.set_ylim(len(plans) - 0.4, -0.6)


def cards_table(plans: Sequence[PlanAnswer]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one card a row."""
    header = [
        "Card", "Batch", "Devices", "Effective", "How a step runs", "Peak (GiB)",
        "Headroom (GiB)", "Images/s",
    ]  # fmt: skip
    rows = [
        [
            plan.gpu.name,
            plan.split.words,
            str(plan.split.devices),
            str(plan.split.effective_batch_size),
            how,
            gib(plan.predicted.device_used_peak_bytes),
            gib(plan.headroom_bytes),
            three_digits(plan.predicted.images_per_second),
        ]
        for plan, how in zip(plans, words_apart(plans), strict=True)
    ]
    return header, rows
