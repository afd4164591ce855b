"""The settings a plan was chosen from: memory against speed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import PlanAnswer, Setting
from memplan.present.plan import is_chosen, plan_lines
from memplan.present.words import (
    batch_words,
    card_name,
    words_apart,
    workload_line,
    workload_title,
)
from memplan.report import theme
from memplan.report.axes import DASHES, memory_axis, spread
from memplan.report.fonts import MONO
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    draw_table,
    line_height,
    new_page,
    table_width,
    wrap,
    write,
    write_lines,
)
from memplan.units import format_bytes, gib, three_digits

ROWS = 16
# Where a point's number stands from it, points, by how it is aligned.
_OFFSETS = {"left": (8, -4), "right": (-8, 4), "center": (0, -18)}


@theme.themed
def alternatives_figure(plan: PlanAnswer) -> Figure:
    """Return a page: the Pareto set in memory and images per second, the chosen one marked."""
    figure = new_page(
        f"The plan and its alternatives: {workload_title(plan.workload)}, {card_name(plan.gpu)}",
        f"Chosen: {batch_words(plan.split)}. Device-used peaks and images per second, "
        f"{plan.predicted.origin}. {workload_line(plan.workload)}",
    )
    command_top = BOTTOM - 0.75
    height = command_top - TOP - 1.0
    settings = by_memory(plan.alternatives)
    chosen = chosen_index(plan, settings)
    shown = shown_rows(len(settings), chosen)
    header, rows = alternatives_table(settings)
    rows = [rows[i] for i in shown]
    size = theme.BODY_POINTS
    while table_width(header, rows, size=size, gap=0.2) > WIDTH * 0.56 and size > 6:
        size -= 0.5
    table_left = LEFT + WIDTH - table_width(header, rows, size=size, gap=0.2)
    axes = axes_at(figure, LEFT + 0.55, TOP + 0.25, max(table_left - LEFT - 0.95, 1.0), height)
    draw_alternatives(axes, settings, chosen=chosen, budget_bytes=plan.budget_bytes)
    end = draw_table(
        figure,
        table_left,
        TOP + 0.2,
        header,
        rows,
        align="lrrlrr",
        size=size,
        gap=0.2,
        emphasised=None if chosen is None else shown.index(chosen),
    )
    if len(settings) > ROWS:
        more = f"{len(settings) - ROWS} more are in the saved answer."
        write(figure, table_left, end + 0.1, more, colour=theme.QUIET_INK)
    y = end + 0.45
    for sentence in plan_lines(plan):
        lines = wrap(sentence, LEFT + WIDTH - table_left, theme.BODY_POINTS)
        if y + line_height(theme.BODY_POINTS) * len(lines) > command_top:
            break  # the pages of sections have the rest
        y = write_lines(figure, table_left, y, lines) + 0.06
    write(figure, LEFT, command_top, "Run it", weight="bold")
    lines = wrap(plan.command, WIDTH, theme.BODY_POINTS, family=MONO)[:3]
    write_lines(figure, LEFT, command_top + 0.24, lines, family=MONO)
    return figure


def shown_rows(count: int, chosen: int | None) -> list[int]:
    """Return which of so many settings the table has room for; the chosen one always is there."""
    shown = list(range(min(count, ROWS)))
    if chosen is not None and chosen not in shown:
        shown[-1] = chosen
    return shown


def by_memory(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings, least device-used memory first."""
    return sorted(settings, key=lambda setting: setting.predicted.device_used_peak_bytes)


def chosen_index(plan: PlanAnswer, settings: Sequence[Setting]) -> int | None:
    """Return which of the settings the plan chose, or None where it is not among them."""
    for i, setting in enumerate(settings):
        if is_chosen(plan, setting):
            return i
    return None


def draw_alternatives(
    axes: Axes, settings: Sequence[Setting], *, chosen: int | None, budget_bytes: int
) -> None:
    """Draw each setting as a numbered diamond, the budget as a dashed line.

    Args:
        axes: empty axes.
        settings: by memory; they are numbered from 1.
        chosen: index of the chosen one.
        budget_bytes: what the plan may take.
    """
    points = [(s.predicted.device_used_peak_bytes, s.predicted.images_per_second) for s in settings]
    style = {"marker": "D", "linestyle": "none", "markerfacecolor": theme.PAPER}
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=theme.BLUE,
        markersize=7,
        label="alternatives",
        **style,  # type: ignore[arg-type]
    )
    if chosen is not None:
        x, y = points[chosen]
        axes.plot([x], [y], "D", markersize=11, color=theme.VERMILION, label="chosen", zorder=5)
    widest = max([budget_bytes, *(x for x, _ in points)])
    axes.set_ylim(0, 1.15 * max([1.0, *(y for _, y in points)]))
    heights = _label_heights(axes, points, widest)
    for number, (x, _) in enumerate(points, start=1):
        if heights[number - 1] is None and number - 1 != chosen:
            continue
        text = f"{number} chosen" if chosen == number - 1 else str(number)
        # To the left a label would lie on the axis of a point that takes little.
        is_near_axis = x < 0.12 * widest
        place = "center" if number - 1 == chosen else "left" if is_near_axis else "right"
        axes.annotate(
            text,
            (x, heights[number - 1] or points[number - 1][1]),
            xytext=_OFFSETS[place],
            textcoords="offset points",
            ha=place,
            fontsize=theme.SMALL_POINTS,
            fontweight="bold" if chosen == number - 1 else "normal",
        )
    memory_axis(
        axes,
        "x",
        "Peak device-used",
        1.1 * max([budget_bytes, *(x for x, _ in points)]),
        num_ticks=6,
    )
    axes.set_ylabel("Speed (images/s)")
    axes.axvline(budget_bytes, color=theme.BLACK, linestyle=DASHES, linewidth=1.2)
    axes.annotate(
        f"budget {format_bytes(budget_bytes)}",
        (budget_bytes, 0),
        xytext=(-4, 5),
        textcoords="offset points",
        rotation=90,
        ha="right",
        fontsize=theme.SMALL_POINTS,
    )


def _label_heights(
    axes: Axes, points: Sequence[tuple[int, float]], widest: float
) -> list[float | None]:
    """Return where each point's number stands, images/s: points side by side never share a place.

    Two settings that differ in one lever alone may lie on each other. A number that would stand
    far from its point is left out, as None: numbers go by memory, and the table has them all.
    """
    low, high = axes.get_ylim()
    height_points = axes.get_window_extent().height / axes.get_figure(root=True).dpi * 72  # type: ignore[union-attr]
    gap = (high - low) * 1.3 * theme.SMALL_POINTS / height_points
    heights = [y for _, y in points]
    first = 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i][0] - points[i - 1][0] > 0.035 * widest:
            heights[first:i] = spread(heights[first:i], gap)
            first = i
    pairs = zip(heights, points, strict=True)
    return [height if abs(height - y) <= 1.5 * gap else None for height, (_, y) in pairs]


def alternatives_table(settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, numbered as in the plot."""
    header = ["#", "Batch", "Effective", "How a step runs", "Peak (GiB)", "Images/s"]
    rows = [
        [
            str(number),
            s.split.words,
            str(s.split.effective_batch_size),
            how,
            gib(s.predicted.device_used_peak_bytes),
            three_digits(s.predicted.images_per_second),
        ]
        for number, (s, how) in enumerate(
            zip(settings, words_apart(settings), strict=True), start=1
        )
    ]
    return header, rows
