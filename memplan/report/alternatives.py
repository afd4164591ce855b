"""The settings a plan was chosen from: memory against speed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
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
from memplan.report.axes import DASHES, memory_axis, top_with_line
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
    row_height,
    table_width,
    wrap,
    write,
    write_lines,
)
from memplan.report.point_labels import label_points
from memplan.units import format_bytes, gib, three_digits

ROWS = 22
_SMALLEST = 7.0
# Points; a diamond reaches farther than its square.
_MARKER, _CHOSEN, _CORNER = 7.0, 11.0, 1.42


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
    while size > _SMALLEST and (
        table_width(header, rows, size=size, gap=0.2) > WIDTH * 0.56
        or (len(rows) + 2.5) * row_height(size) > command_top - TOP - 0.2
    ):
        size -= 0.5
    table_left = LEFT + WIDTH - table_width(header, rows, size=size, gap=0.2)
    axes = axes_at(figure, LEFT + 0.55, TOP + 0.25, max(table_left - LEFT - 0.95, 1.0), height)
    numbers = [str(i + 1) if i in shown else "" for i in range(len(settings))]
    draw_alternatives(axes, settings, labels=numbers, chosen=chosen, budget_bytes=plan.budget_bytes)
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
    """Return which of so many settings the table has; the chosen one always is there."""
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
    axes: Axes,
    settings: Sequence[Setting],
    *,
    labels: Sequence[str],
    chosen: int | None,
    budget_bytes: int,
) -> None:
    """Draw each setting as a labelled diamond, the budget as a dashed line.

    Args:
        axes: empty axes.
        settings: by memory.
        labels: one a setting; one that finds no room, or is empty, is left out.
        chosen: index of the chosen one.
        budget_bytes: what the plan may take.
    """
    points = [(s.predicted.device_used_peak_bytes, s.predicted.images_per_second) for s in settings]
    style = {"marker": "D", "linestyle": "none", "markerfacecolor": theme.PAPER}
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=theme.BLUE,
        markersize=_MARKER,
        label="alternatives",
        **style,  # type: ignore[arg-type]
    )
    if chosen is not None:
        x, y = points[chosen]
        axes.plot(
            [x], [y], "D", markersize=_CHOSEN, color=theme.VERMILION, label="chosen", zorder=5
        )
    axes.set_ylim(0, 1.15 * max([1.0, *(y for _, y in points)]))
    axes.set_ylabel("Speed (images/s)")
    top_bytes = top_with_line(max([0, *(x for x, _ in points)]), budget_bytes)
    memory_axis(axes, "x", "Peak device-used", top_bytes, num_ticks=6)
    halves = [_CORNER * (_CHOSEN if i == chosen else _MARKER) / 2 for i in range(len(points))]
    texts = [f"{text} chosen" if i == chosen else text for i, text in enumerate(labels)]
    label_points(
        axes,
        points,
        texts,
        marker_points=halves,
        first=() if chosen is None else (chosen,),
        clear_of=_draw_budget(axes, budget_bytes),
    )


def _draw_budget(axes: Axes, budget_bytes: int) -> list[Artist]:
    """Draw the budget, or say that it lies beyond the axes; return what labels keep clear of."""
    text = f"budget {format_bytes(budget_bytes)}"
    style = {"textcoords": "offset points", "ha": "right", "fontsize": theme.SMALL_POINTS}
    if budget_bytes > axes.get_xlim()[1]:
        return [
            axes.annotate(
                f"{text}, beyond this axis ▶",
                (1.0, 0.0),
                xycoords="axes fraction",
                xytext=(-2, 6),
                **style,  # type: ignore[arg-type]
            )
        ]
    line = axes.axvline(budget_bytes, color=theme.BLACK, linestyle=DASHES, linewidth=1.2)
    words = axes.annotate(text, (budget_bytes, 0), xytext=(-4, 5), rotation=90, **style)  # type: ignore[arg-type]
    return [line, words]


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
