"""What would change a training's memory: each change replayed, beside the training as asked."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import ProbeAnswer, WhatIf
from memplan.present.what_if import ranked, what_if_notes, what_if_section
from memplan.present.words import card_name, workload_line, workload_title
from memplan.report import theme
from memplan.report.axes import BACKING, capacity_line_across, memory_axis
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    new_page,
    rule,
    shorten,
    wrap,
    write,
    write_lines,
)
from memplan.units import format_bytes

CARDS_A_PAGE = 2
_LABEL_WIDTH = 3.1
_COLUMN_WIDTHS = (1.15, 0.6, 0.5, 0.7, 0.75)
_NUMBERS_WIDTH = sum(_COLUMN_WIDTHS)
_MOST_ROW = 0.42
_NOTE_HEIGHT = 0.5


@theme.themed
def what_if_figure(probes: Sequence[ProbeAnswer]) -> Figure:
    """Return a page: a bar a change for each card, what it saves, and how far it lets one go.

    Args:
        probes: one to `CARDS_A_PAGE` answers that say what changes would do.
    """
    first = probes[0]
    figure = new_page(
        f"What would change it: {workload_title(first.workload)}, "
        f"micro-batch {first.reference_batch}",
        f"Peak device-used with one thing set otherwise, {first.what_if[0].origin}. "
        f"{workload_line(first.workload)}",
    )
    notes = list(dict.fromkeys(note for probe in probes for note in what_if_notes(probe)))
    lines = [line for note in notes for line in wrap(note, WIDTH, theme.SMALL_POINTS)][:4]
    bottom = BOTTOM - 0.16 * len(lines) - 0.1
    height = (bottom - TOP) / len(probes)
    for i, probe in enumerate(probes):
        _draw_card(figure, probe, TOP + 0.1 + i * height, height - 0.1)
    write_lines(figure, LEFT, bottom + 0.2, lines, size=theme.SMALL_POINTS, colour=theme.QUIET_INK)
    return figure


def _draw_card(figure: Figure, probe: ProbeAnswer, top: float, height: float) -> None:
    """Draw one card's bars and numbers in a strip of the page, inches."""
    rows = ranked(probe)
    write(figure, LEFT, top + 0.1, card_name(probe.gpu), size=theme.LEAD_POINTS, weight="bold")
    plot_top = top + 0.45
    plot_height = min(height - 1.1, _MOST_ROW * len(rows))
    width = WIDTH - _LABEL_WIDTH - _NUMBERS_WIDTH - 0.35
    axes = axes_at(figure, LEFT + _LABEL_WIDTH, plot_top, width, plot_height)
    draw_changes(axes, rows, capacity_bytes=probe.gpu.capacity_bytes)
    table = what_if_section(probe).table
    assert table is not None
    _write_row(figure, table.header[1:], plot_top - 0.12, size=theme.SMALL_POINTS, weight="bold")
    rule(figure, LEFT + WIDTH - _NUMBERS_WIDTH, plot_top - 0.05, _NUMBERS_WIDTH, strong=True)
    pitch = plot_height / len(rows)
    for i, cells in enumerate(table.rows):
        y = plot_top + (i + 0.5) * pitch + 0.04
        weight = "bold" if i == 0 else "normal"
        label = shorten(cells[0], _LABEL_WIDTH - 0.1, theme.SMALL_POINTS, weight=weight)
        write(
            figure, LEFT + _LABEL_WIDTH - 0.1, y, label,
            size=theme.SMALL_POINTS, weight=weight, align="right",
        )  # fmt: skip
        _write_row(figure, cells[1:], y, size=theme.BODY_POINTS - 1, weight=weight)


def _write_row(figure: Figure, cells: Sequence[str], y: float, *, size: float, weight: str) -> None:
    """Write what stands beside a bar, inches from the box's upper edge."""
    right = LEFT + WIDTH - _NUMBERS_WIDTH
    for text, width in zip(cells, _COLUMN_WIDTHS, strict=True):
        right += width
        write(figure, right, y, text, size=size, align="right", weight=weight)


def draw_changes(axes: Axes, rows: Sequence[WhatIf], *, capacity_bytes: int) -> None:
    """Draw a bar a change, lighter than that of the training as asked; the capacity as a line.

    Args:
        axes: empty axes; what changes stands to their left.
        rows: the training as asked, then its changes.
        capacity_bytes: of the card.
    """
    used = [one.device_used_peak_bytes for one in rows]
    places = range(len(rows))
    colours = [theme.BLUE, *[theme.BAND_OF["workspace"].fill] * (len(rows) - 1)]
    axes.barh(places, used, color=colours, height=0.66)
    axes.axvline(used[0], color=theme.BLUE, linewidth=0.9, zorder=0)
    for place, one in zip(places, rows, strict=True):
        if one.fits:
            continue
        axes.annotate(
            "not possible" if one.refusal else "does not fit",
            (one.device_used_peak_bytes, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=theme.SMALL_POINTS,
            color=theme.VERMILION,
            annotation_clip=False,
            bbox=BACKING,
        )
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    most = max(used)
    shows_capacity = capacity_bytes <= 1.6 * most
    top = 1.05 * max(most * 1.12, capacity_bytes if shows_capacity else 0)
    memory_axis(axes, "x", "Peak device-used", top, num_ticks=6)
    if shows_capacity:
        capacity_line_across(axes, capacity_bytes, f"capacity {format_bytes(capacity_bytes)}")
