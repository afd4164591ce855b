"""How activations pile up along the network: one step a block, in the order blocks run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import ProbeAnswer
from memplan.present.probe import largest_tensors
from memplan.present.section import Table
from memplan.present.words import workload_line, workload_title
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
    shorten,
    table_width,
    write,
)
from memplan.report.series import ModuleGroup, along_network, readable_depth
from memplan.units import format_bytes

MOST_STEPS = 40
_NAMED = 5
_WIDE_STEPS = 16


@theme.themed
def waterfall_figure(probe: ProbeAnswer) -> Figure:
    """Return a page: activations along the network, and the largest tensors at the peak."""
    figure = new_page(
        f"What is kept along the network: {workload_title(probe.workload)}, "
        f"micro-batch {probe.reference_batch}",
        f"Each step is what a block keeps for backward, in the order blocks are built, "
        f"{probe.fit.origin}. {workload_line(probe.workload)}",
    )
    table = largest_tensors(probe).table
    height = BOTTOM - TOP - 1.15 if table is None else 1.85
    axes = axes_at(figure, LEFT + 0.55, TOP + 0.1, WIDTH - 0.6, height)
    draw_waterfall(axes, along_network(probe.modules, depth=readable_depth(probe.modules)))
    if table is not None:
        _draw_tensors(figure, table, TOP + height + 1.2)
    return figure


def draw_waterfall(axes: Axes, groups: Sequence[ModuleGroup]) -> None:
    """Draw a floating bar a block, each from where the one before it ended.

    Args:
        axes: empty axes.
        groups: in network order; of many, those that keep least are put together with their
            neighbours.
    """
    steps = joined_steps(groups, MOST_STEPS)
    fill = theme.BAND_OF["activation"].fill
    floor, floors = 0, []
    for step in steps:
        floors.append(floor)
        floor += step.activation_bytes
    sizes = [step.activation_bytes for step in steps]
    axes.bar(range(len(steps)), sizes, bottom=floors, color=fill, width=0.8, label="activation")
    for i in range(len(steps) - 1):
        top = floors[i] + sizes[i]
        axes.plot([i + 0.4, i + 0.6], [top, top], color=theme.QUIET_INK, linewidth=0.7)
    memory_axis(axes, "y", "Kept for backward", 1.12 * max(floor, 1), num_ticks=5)
    small = theme.SMALL_POINTS if len(steps) <= 24 else 6.5
    names = [shorten(step.path, 0.85, small) for step in steps]
    axes.set_xticks(range(len(steps)), names, rotation=60, ha="right", fontsize=small)
    axes.set_xlim(-0.6, max(len(steps), 1) - 0.4)
    for i in sorted(range(len(steps)), key=lambda i: -sizes[i])[:_NAMED]:
        share = f"{sizes[i] / max(floor, 1):.0%}"
        axes.annotate(
            share if len(steps) > _WIDE_STEPS else f"{format_bytes(sizes[i])}\n{share}",
            (i, floors[i] + sizes[i]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=theme.SMALL_POINTS - 1,
        )


def joined_steps(groups: Sequence[ModuleGroup], most: int) -> list[ModuleGroup]:
    """Return at most `most` steps: neighbours that keep least are joined until there are so few."""
    steps = [group for group in groups if group.activation_bytes]
    while len(steps) > most:
        i = min(
            range(len(steps) - 1),
            key=lambda i: steps[i].activation_bytes + steps[i + 1].activation_bytes,
        )
        one, other = steps[i : i + 2]
        steps[i : i + 2] = [
            ModuleGroup(
                path=f"{one.path.split(' .. ')[0]} .. {other.path.split(' .. ')[-1]}",
                type="",
                activation_bytes=one.activation_bytes + other.activation_bytes,
                workspace_bytes=max(one.workspace_bytes, other.workspace_bytes),
                num_modules=one.num_modules + other.num_modules,
            )
        ]
    return steps


def _draw_tensors(figure: Figure, table: Table, top: float) -> None:
    """Draw the table of tensors as large as the rest of the page lets it be."""
    write(figure, LEFT, top, table.caption, size=theme.LABEL_POINTS, weight="bold")
    size = theme.BODY_POINTS
    room = BOTTOM - top - 0.15
    while size > 6 and (
        table_width(table.header, table.rows, size=size) > WIDTH
        or (len(table.rows) + 1.5) * size * 1.57 / 72 > room
    ):
        size -= 0.5
    draw_table(figure, LEFT, top + 0.07, table.header, table.rows, align="lllll", size=size)
