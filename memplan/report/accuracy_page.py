"""How far predictions were off on cards of a kind, as the measurements of others tell."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import GpuFacts
from memplan.present.published import (
    Published,
    accuracy_section,
    farthest_off,
    published,
    rows_like,
)
from memplan.report import theme
from memplan.report.axes import memory_axis
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    draw_table,
    new_page,
    row_height,
    shorten,
    table_width,
    wrap,
    write,
    write_lines,
)

_PLOT_WIDTH = 4.0
_PLOT_HEIGHT = 2.45
_REACH = 0.4
_CASE_WIDTH = 2.5
_MARKERS = (
    ("o", theme.BLUE), ("s", theme.GREEN), ("^", theme.VERMILION), ("D", theme.BLACK),
    ("v", theme.BLUE), ("P", theme.GREEN),
)  # fmt: skip


@theme.themed
def accuracy_figure(gpu: GpuFacts) -> Figure:
    """Return a page: errors over the measured bytes, a table by study, and the worst rows."""
    rows = rows_like(gpu) or published()
    section = accuracy_section(gpu)
    figure = new_page(
        f"How far to trust it: predictions for cards like {gpu.name}",
        "Trainings that others measured and published, with the card, beside what memplan predicts "
        "of them. Above 0 it predicts too much.",
    )
    axes = axes_at(figure, LEFT + 0.6, TOP + 0.1, _PLOT_WIDTH, _PLOT_HEIGHT)
    draw_errors(axes, rows)
    left = LEFT + _PLOT_WIDTH + 0.95
    width = LEFT + WIDTH - left
    y = TOP + 0.15
    for sentence in section.sentences:
        y = write_lines(figure, left, y, wrap(sentence, width, theme.BODY_POINTS)) + 0.05
    assert section.table is not None
    size = theme.BODY_POINTS
    table = section.table
    while table_width(table.header, table.rows, size=size, gap=0.15) > width and size > 6:
        size -= 0.5
    draw_table(figure, left, y, table.header, table.rows, align="lrrrr", size=size, gap=0.15)
    _draw_worst(figure, rows, TOP + _PLOT_HEIGHT + 1.45)
    return figure


def draw_errors(axes: Axes, rows: Sequence[Published]) -> None:
    """Draw each training's error, a shape a study; those beyond the axis stand at its edge.

    Args:
        axes: empty axes.
        rows: those that ran out of memory are left out.
    """
    compared = [row for row in rows if not row.ran_out]
    axes.axhspan(-0.05, 0.05, color=theme.SHADE, zorder=0)
    axes.axhline(0, color=theme.BLACK, linewidth=0.8)
    studies = list(dict.fromkeys(row.study for row in compared))
    for i, study in enumerate(studies):
        marker, colour = _MARKERS[i % len(_MARKERS)]
        mine = [row for row in compared if row.study == study]
        axes.plot(
            [row.measured_bytes for row in mine],
            [min(max(row.error, -_REACH), _REACH) for row in mine],
            marker=marker,
            color=colour,
            markerfacecolor="none",
            linestyle="none",
            markersize=5,
            clip_on=False,
            label=study,
        )
    memory_axis(axes, "x", "Measured", 1.06 * max(row.measured_bytes for row in compared))
    axes.set_ylim(-_REACH, _REACH)
    ticks = [-0.4, -0.2, -0.05, 0.05, 0.2, 0.4]
    axes.set_yticks(ticks, [f"{tick:+.0%}" for tick in ticks])
    axes.set_ylabel("Error of the prediction")
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.15, -0.2),
        ncols=2,
        fontsize=theme.SMALL_POINTS - 1,
        handletextpad=0.2,
        columnspacing=0.8,
    )


def _draw_worst(figure: Figure, rows: Sequence[Published], top: float) -> None:
    """Draw the rows that are farthest off, as many as the page has room for."""
    size = theme.SMALL_POINTS
    room = int((BOTTOM - top - 0.3) / row_height(size)) - 2
    table = farthest_off(rows, max(room, 1))
    cells = [(shorten(row[0], _CASE_WIDTH, size, weight="bold"), *row[1:]) for row in table.rows]
    bare = [row[:-1] for row in cells]
    left = WIDTH - table_width(table.header[:-1], bare, size=size, gap=0.2) - 0.2
    cells = [(*row[:-1], shorten(row[-1], left, size, weight="bold")) for row in cells]
    write(figure, LEFT, top, table.caption, size=theme.LABEL_POINTS, weight="bold")
    end = draw_table(
        figure, LEFT, top + 0.06, table.header, cells, align="lllrrrl", size=size, gap=0.2
    )
    note = "All rows with their sources: memplan/present/published.csv in the installed package."
    write(figure, LEFT, end + 0.08, note, size=size, colour=theme.QUIET_INK)
