"""A run's curves: losses and mAP by epoch, live memory against the prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import MEASURED, PREDICTED
from memplan.report import theme
from memplan.report.axes import end_labels, integer_axis, memory_axis
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    line_height,
    new_page,
    write,
    write_lines,
)
from memplan.report.run_files import DEVICE_QUANTITIES, QUANTITIES, RunRecord
from memplan.units import format_bytes

_COLOUR_OF = dict(
    zip(QUANTITIES, (theme.GREEN, theme.BLUE, theme.BLACK, theme.VERMILION), strict=True),
)
_MAX_DOTS = 400


@theme.themed
def training_figure(run: RunRecord) -> Figure:
    """Return a page: mAP, losses and learning rates, a panel for each kind that was recorded."""
    figure = new_page(
        f"Run {run.folder.name}: mAP, losses and learning rate",
        "Measured by the run, one dot an epoch.",
    )
    panels = [
        ("mAP on the validation images", "mAP (0 to 1)", run.scores),
        ("Training losses", "Loss", run.training_losses),
        ("Validation losses", "Loss", run.validation_losses),
        ("Learning rate at the epoch's end", "Learning rate", run.rates),
    ]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        write(figure, LEFT, TOP + 0.3, "results.csv holds no losses and no mAP yet.")
    height = (BOTTOM - TOP - 1.0) if len(panels) < 3 else (BOTTOM - TOP - 1.75) / 2
    for i, (title, quantity, curves) in enumerate(panels):
        column, row = (i % 2, i // 2) if len(panels) == 4 else (min(i, 1), i // 2)
        top = TOP + 0.3 + row * (height + 0.85)
        tall = height * 2 + 0.85 if i == 0 and len(panels) == 3 else height
        axes = axes_at(figure, LEFT + 0.55 + column * WIDTH / 2, top, WIDTH / 2 - 1.75, tall)
        draw_curves(axes, run.epochs, curves, quantity)
        axes.set_title(title, pad=8)
        axes.set_xlabel("Epoch")
    return figure


def draw_curves(
    axes: Axes, epochs: Sequence[float], curves: Mapping[str, Sequence[float]], quantity: str
) -> None:
    """Draw one curve a column, its name at its end.

    Args:
        axes: empty axes.
        epochs: the x values.
        curves: values by column name, nan where not measured.
        quantity: label of the y axis, with its unit.
    """
    ends = []
    for i, (name, values) in enumerate(curves.items()):
        colour = theme.LINE_COLOURS[i % len(theme.LINE_COLOURS)]
        known = [(x, y) for x, y in zip(epochs, values, strict=False) if not math.isnan(y)]
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            color=colour,
            linewidth=1.1,
            linestyle="-" if i < len(theme.LINE_COLOURS) else "--",
            marker="o",
            markersize=5 if len(known) < 40 else 2.5,
            label=name,
        )
        ends.append((*known[-1], short_name(name), colour))
    highest = max((y for values in curves.values() for y in values if not math.isnan(y)), default=1)
    axes.set_ylim(0, 1.08 * highest if highest > 0 else 1)
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    integer_axis(axes, "x")
    axes.set_ylabel(quantity)
    end_labels(axes, ends)


def short_name(column: str) -> str:
    """Return a column's name without its section and underscores, such as `box loss`."""
    return column.rsplit("/", 1)[-1].replace("_", " ")


@theme.themed
def live_memory_figure(run: RunRecord) -> Figure:
    """Return a page: memory measured while the run went on, against what was predicted."""
    figure = new_page(
        f"Run {run.folder.name}: memory",
        "Dots are measured while the run went on; lines are what its plan predicted as the peak.",
    )
    measured = [q for q in QUANTITIES if (MEASURED, q) in run.memory]
    if not run.memory:
        write(figure, LEFT, TOP + 0.3, "memory.csv holds no memory rows.")
        return figure
    lines = [agreement(run, quantity) for quantity in measured]
    if not set(measured) & set(DEVICE_QUANTITIES):
        lines.append("No device memory was measured: the run was not on a GPU.")
    height = BOTTOM - TOP - 1.0 - line_height(theme.BODY_POINTS) * len(lines)
    axes = axes_at(figure, LEFT + 0.55, TOP + 0.1, WIDTH - 1.75, height)
    draw_live_memory(axes, run)
    write_lines(figure, LEFT + 0.55, TOP + height + 0.85, lines)
    return figure


def draw_live_memory(axes: Axes, run: RunRecord) -> None:
    """Draw measured memory as dots and predicted as lines over the steps of the run."""
    ends: dict[str, tuple[float, float, str, str]] = {}
    highest = 1.0
    for (origin, quantity), values in run.memory.items():
        known = [(x, y) for x, y in zip(run.steps, values, strict=False) if not math.isnan(y)]
        shown = known[:: max(1, len(known) // _MAX_DOTS)] if origin == MEASURED else known
        colour = _COLOUR_OF[quantity]
        axes.plot(
            [x for x, _ in shown],
            [y for _, y in shown],
            color=colour,
            marker="o" if origin == MEASURED else None,
            markersize=3.5,
            linestyle="none" if origin == MEASURED else "-",
            label=f"{quantity.replace('_', '-')}, {origin}",
        )
        highest = max(highest, *(y for _, y in known))
        ends[quantity] = (known[-1][0], known[-1][1], quantity.replace("_", "-"), colour)
    memory_axis(axes, "y", "Memory", 1.12 * highest)
    integer_axis(axes, "x")
    axes.set_xlabel("Step")
    axes.set_xlim(min(run.steps), max(*run.steps, min(run.steps) + 1))
    end_labels(axes, list(ends.values()))


def agreement(run: RunRecord, quantity: str) -> str:
    """Return how the highest measured value compares with the highest predicted one."""
    measured = _highest(run, MEASURED, quantity)
    predicted = _highest(run, PREDICTED, quantity)
    name = quantity.replace("_", "-")
    if measured is None:
        return ""
    if not predicted:
        return f"{name}: {format_bytes(measured)} measured."
    error = (predicted - measured) / measured if measured else 0.0
    return (
        f"{name}: {format_bytes(measured)} measured, {format_bytes(predicted)} predicted "
        f"({error:+.1%})."
    )


def _highest(run: RunRecord, origin: str, quantity: str) -> float | None:
    values = [v for v in run.memory.get((origin, quantity), ()) if not math.isnan(v)]
    return max(values, default=None)
