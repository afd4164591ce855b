"""A run's memory over its steps: measured beside what compares with it, with the guard's events."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from memplan.answers import MEASURED, PREDICTED, PlanAnswer
from memplan.present.run import memory_section
from memplan.present.run_details import told_events
from memplan.present.run_record import DEVICE_QUANTITIES, HOST_RESIDENT, RunRecord
from memplan.report import theme
from memplan.report.axes import DASHES, capacity_line, end_labels, integer_axis, memory_axis
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
    wrap,
    write,
    write_lines,
)
from memplan.units import format_bytes

# Colour, marker and dash of each quantity: where lines lie on each other, shape tells them apart.
_STYLE_OF = {
    "allocated": (theme.GREEN, "o", (0, (1.5, 1.5))),
    "reserved": (theme.BLUE, "s", (0, (6, 2))),
    "device_used": (theme.BLACK, "^", "-"),
    HOST_RESIDENT: (theme.VERMILION, "o", "-"),
}
_MARKED = ("out_of_memory", "backed_off", "micro_batch_tried_again", "resumed")
_MAX_DOTS = 45


@theme.themed
def live_memory_figure(run: RunRecord, plan: PlanAnswer | None = None) -> Figure:
    """Return a page: memory measured while the run went on, against what was predicted."""
    figure = new_page(
        f"Run {run.folder.name}: memory, measured against predicted",
        "Marks are measured while the run went on; lines are predicted peaks of the same quantity.",
    )
    if not run.memory:
        write(figure, LEFT, TOP + 0.3, "memory.csv holds no memory rows.")
        return figure
    section = memory_section(run)
    table = section.table
    lines = [line for text in section.after for line in wrap(text, WIDTH, theme.BODY_POINTS)]
    num_rows = 0 if table is None else len(table.rows) + 2
    below = line_height(theme.BODY_POINTS) * len(lines) + row_height(theme.BODY_POINTS) * num_rows
    height = BOTTOM - TOP - 0.95 - below
    axes = axes_at(figure, LEFT + 0.55, TOP + 0.1, WIDTH - 1.95, height)
    draw_live_memory(axes, run, budget_bytes=None if plan is None else plan.budget_bytes)
    y = TOP + height + 0.75
    if table is not None:
        y = draw_table(figure, LEFT, y, table.header, table.rows, align="lrrr") + 0.15
    write_lines(figure, LEFT, y, lines)
    return figure


def draw_live_memory(axes: Axes, run: RunRecord, *, budget_bytes: int | None = None) -> None:
    """Draw measured memory as marks and what compares with it as lines over the run's steps.

    On a device those are the predicted peaks. Of host memory it is what the process held before
    its first step, which no plan contains, and the predicted tensors on top of that.

    Args:
        axes: empty axes.
        run: with memory rows.
        budget_bytes: of the plan, drawn where the axes reach it; None leaves it out.
    """
    on_device = any((MEASURED, quantity) in run.memory for quantity in DEVICE_QUANTITIES)
    measured = (MEASURED, HOST_RESIDENT) in run.memory
    highest = _draw_host(axes, run) if measured and not on_device else _draw_device(axes, run)
    memory_axis(axes, "y", "Memory", 1.15 * highest)
    integer_axis(axes, "x")
    axes.set_xlabel("Step")
    axes.set_xlim(min(run.steps), max(*run.steps, min(run.steps) + 1))
    if budget_bytes is not None and budget_bytes < 1.15 * highest:
        capacity_line(axes, budget_bytes, "budget")
    _mark_events(axes, run)
    _label_ends(axes)


def _draw_device(axes: Axes, run: RunRecord) -> float:
    """Draw every quantity of the device and return the highest figure."""
    highest = 1.0
    for (origin, quantity), values in run.memory.items():
        if quantity != HOST_RESIDENT:
            highest = max(highest, _draw(axes, run, values, quantity, origin))
    return highest


def _draw(
    axes: Axes, run: RunRecord, values: tuple[float, ...], quantity: str, origin: str
) -> float:
    known = [(x, y) for x, y in zip(run.steps, values, strict=False) if not math.isnan(y)]
    colour, marker, dash = _STYLE_OF[quantity]
    is_measured = origin == MEASURED
    shown = known[:: max(1, len(known) // _MAX_DOTS)] if is_measured else known
    axes.plot(
        [x for x, _ in shown],
        [y for _, y in shown],
        color=colour,
        marker=marker if is_measured else None,
        markersize=4,
        markerfacecolor=theme.PAPER if is_measured else colour,
        linestyle="none" if is_measured else dash,
        label=f"{quantity.replace('_', '-')}, {origin}",
    )
    return max((y for _, y in known), default=1.0)


def _draw_host(axes: Axes, run: RunRecord) -> float:
    """Draw the process's host memory, and what it held before its first step, as a ground."""
    highest = _draw(axes, run, run.memory[MEASURED, HOST_RESIDENT], HOST_RESIDENT, MEASURED)
    before = run.host_baseline_bytes
    if before is None:
        return highest
    axes.axhspan(0, before, facecolor=theme.SHADE, edgecolor=theme.RULE, hatch="//", zorder=0)
    axes.annotate(
        f"held before the first step: {format_bytes(before)}\n(Python, torch, network, data)",
        (0.02, before / 2),
        xycoords=blended_transform_factory(axes.transAxes, axes.transData),
        va="center",
        fontsize=theme.SMALL_POINTS,
        bbox={"facecolor": theme.PAPER, "edgecolor": "none", "pad": 1.5},
    )
    predicted = run.memory.get((PREDICTED, "allocated"), ())
    rows = zip(run.steps, predicted, strict=False)
    known = [(x, before + y) for x, y in rows if not math.isnan(y)]
    if known:
        axes.plot(
            [x for x, _ in known], [y for _, y in known], color=theme.BLUE,
            linestyle=DASHES, label="that + predicted tensors",
        )  # fmt: skip
    return max(highest, *(y for _, y in known), before)


def _label_ends(axes: Axes) -> None:
    """Write each series' name at its end."""
    ends = []
    for line in axes.lines:
        points = np.asarray(line.get_xydata(), dtype=float)
        label = str(line.get_label())
        if not label.startswith("_") and len(points):
            x, y = points[-1]
            ends.append((float(x), float(y), label, str(line.get_color())))
    end_labels(axes, ends)


def _mark_events(axes: Axes, run: RunRecord) -> None:
    """Mark what the guard did: a cross where memory ran out, a triangle for all else."""
    at: dict[float, list[str]] = {}
    for event in told_events(run):
        step = _step_of(run, event.facts.get("epoch"))
        if event.name in _MARKED and step is not None:
            at.setdefault(step, []).append(event.name)
    place = blended_transform_factory(axes.transData, axes.transAxes)
    for step, names in at.items():
        ran_out = "out_of_memory" in names
        colour = theme.VERMILION if ran_out else theme.BLACK
        axes.axvline(step, color=colour, linewidth=0.8, linestyle=":", zorder=1)
        axes.plot(
            [step], [0.97], "x" if ran_out else "v", color=colour, markersize=8,
            markeredgewidth=1.8, clip_on=False, label="_event", transform=place,
        )  # fmt: skip
        words = [name.replace("_", " ") for name in dict.fromkeys(names)]
        axes.annotate(
            ", ".join(words),
            (step, 0.97),
            xycoords=place,
            xytext=(8, -3),
            textcoords="offset points",
            fontsize=theme.SMALL_POINTS,
            color=colour,
        )


def _step_of(run: RunRecord, epoch: object) -> float | None:
    """Return the first recorded step of an epoch; None where the table does not say."""
    if not isinstance(epoch, int):
        return None
    rows = zip(run.steps, run.step_epochs, strict=False)
    return next((step for step, of in rows if of >= epoch), None)
