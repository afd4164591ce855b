"""What the peak is made of: one stacked bar a card, and the same as a table."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from memplan.answers import ProbeAnswer
from memplan.present.words import workload_line, workload_title
from memplan.report import theme
from memplan.report.axes import DASHES, memory_axis
from memplan.report.frame import (
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    draw_table,
    new_page,
    on_page,
    row_height,
    table_width,
    text_width,
)
from memplan.report.series import bands_of
from memplan.units import format_bytes, gib

CARDS_A_PAGE = 3
_LEFT = LEFT + 1.25


@theme.themed
def categories_figure(probes: Sequence[ProbeAnswer]) -> Figure:
    """Return a page: the categories at the peak as bars, and in a table with their shares.

    Args:
        probes: one to `CARDS_A_PAGE` answers.
    """
    first = probes[0]
    figure = new_page(
        f"What the peak is made of: {workload_title(first.workload)}, "
        f"micro-batch {first.reference_batch}",
        f"Bytes by category where allocated memory peaks, {first.timeline.origin}. "
        f"{workload_line(first.workload)}",
    )
    height = 0.62 * len(probes) + 0.25
    axes = axes_at(figure, _LEFT, TOP + 0.1, WIDTH - 1.35, height)
    draw_categories(axes, probes, width=WIDTH - 1.35)
    header, rows = category_table(probes)
    size = theme.LEAD_POINTS
    while size > 6 and table_width(header, rows, size=size, gap=0.4) > WIDTH - 0.7:
        size -= 0.5
    left = LEFT + (WIDTH - table_width(header, rows, size=size, gap=0.4)) / 2
    top = TOP + height + 0.95
    draw_swatches(figure, left - 0.32, top, [row[0] for row in rows], size=size)
    draw_table(
        figure,
        left,
        top,
        header,
        rows,
        align="l" + "rr" * len(probes),
        size=size,
        gap=0.4,
    )
    return figure


def draw_categories(axes: Axes, probes: Sequence[ProbeAnswer], *, width: float) -> None:
    """Draw one horizontal stacked bar a card, each segment named where there is room.

    Args:
        axes: empty axes.
        probes: one answer a bar, the first on top.
        width: width of the axes, inches.
    """
    totals = [sum(probe.categories_at_peak.values()) for probe in probes]
    reach = 1.02 * max([*totals, 1])
    seen: set[str] = set()
    for row, probe in enumerate(probes):
        left = 0
        for band, value in bands_of(probe.categories_at_peak):
            label = f"_{band.label}" if band.name in seen else band.label
            seen.add(band.name)
            axes.barh(
                row,
                value,
                left=left,
                height=0.66,
                facecolor=band.fill,
                hatch=band.hatch,
                edgecolor=theme.QUIET_INK if band.hatch else band.edge,
                linewidth=0.5,
                label=label,
            )
            _name_segment(axes, row, (left, value), band.fill, band.label, inches=width / reach)
            left += value
        if probe.gpu.capacity_bytes <= reach:
            axes.vlines(
                probe.gpu.capacity_bytes,
                row - 0.45,
                row + 0.45,
                color=theme.BLACK,
                linestyle=DASHES,
            )
    axes.set_yticks(range(len(probes)), [probe.gpu.name for probe in probes])
    axes.set_ylim(len(probes) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=theme.INK)
    memory_axis(axes, "x", "Memory at the peak", reach, num_ticks=10)


def _name_segment(
    axes: Axes, row: int, segment: tuple[int, int], fill: str, label: str, *, inches: float
) -> None:
    """Write a segment's name and bytes into it where they fit; `inches` is inches a byte."""
    left, value = segment
    for text in (f"{label}\n{format_bytes(value)}", label):
        widest = max(text_width(line, theme.SMALL_POINTS) for line in text.split("\n"))
        if widest + 0.06 <= value * inches:
            axes.text(
                left + value / 2,
                row,
                text,
                ha="center",
                va="center",
                fontsize=theme.SMALL_POINTS,
                color=theme.ink_on(fill),
                bbox={"facecolor": fill, "edgecolor": "none", "pad": 0.5},
            )
            return


def draw_swatches(
    figure: Figure, left: float, top: float, names: Sequence[str], *, size: float
) -> None:
    """Draw each category's colour before its row of a table; inches from the box's corner."""
    page_width, page_height = figure.get_size_inches()
    step, side = row_height(size), 0.95 * size / 72
    for i, name in enumerate(names):
        band = theme.BAND_OF.get(name.replace(" ", "_"))
        if band is None:
            continue
        figure.add_artist(
            Rectangle(
                on_page(figure, left, top + step * (i + 1.75) + 0.05),
                1.4 * side / page_width,
                side / page_height,
                facecolor=band.fill,
                hatch=band.hatch,
                edgecolor=theme.QUIET_INK,
                linewidth=0.5,
                label=band.label,
            )
        )


def category_table(probes: Sequence[ProbeAnswer]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: each category's GiB and share on each card, totals last."""
    held = [{band.name: value for band, value in bands_of(p.categories_at_peak)} for p in probes]
    header = ["Category"]
    for probe in probes:
        header += [f"{probe.gpu.name} (GiB)", "share"]
    rows = []
    for band in reversed(theme.BANDS):
        if not any(band.name in values for values in held):
            continue
        row = [band.label]
        for values in held:
            value, total = values.get(band.name, 0), max(sum(values.values()), 1)
            row += [gib(value), f"{value / total:.1%}"]
        rows.append(row)
    sums = ["device-used at this peak"]
    capacities = ["capacity"]
    for probe, values in zip(probes, held, strict=True):
        total = sum(values.values())
        sums += [gib(total), "100.0%"]
        share = total / probe.gpu.capacity_bytes
        capacities += [gib(probe.gpu.capacity_bytes), f"{share:.1%} taken"]
    return header, [*rows, sums, capacities]
