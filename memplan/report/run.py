"""A run in one glance, and its curves: mAP, losses and learning rates by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import PlanAnswer
from memplan.present.run import batch_line, best_of, main_score, run_headline, run_numbers
from memplan.present.run_details import event_words, events_words, told_events
from memplan.present.run_record import RunRecord
from memplan.report import theme
from memplan.report.axes import end_labels, integer_axis
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    line_height,
    new_page,
    shorten,
    write,
    write_lines,
)
from memplan.report.numbers import draw_numbers
from memplan.report.run_memory import draw_live_memory

_FEW_EVENTS = 3
# Shape before colour: what lies on each other is still told apart.
_MARKERS = ("o", "s", "^", "D")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


@theme.themed
def glance_figure(run: RunRecord, plan: PlanAnswer | None = None) -> Figure:
    """Return page one of a run: its numbers, the curve, memory, and what happened."""
    figure = new_page(f"Run {run.folder.name}: {run_headline(run)}", _what(run))
    top = draw_numbers(figure, TOP, run_numbers(run, plan)) + 0.45
    events = _event_lines(run)
    height = BOTTOM - top - 0.75 - line_height(theme.BODY_POINTS) * len(events)
    width = WIDTH / 2 - 1.55
    if run.scores:
        axes = axes_at(figure, LEFT + 0.55, top, width, height)
        draw_curves(axes, run.epochs, run.scores, "mAP (0 to 1)")
        _mark_best(axes, run)
        axes.set_title("Accuracy on the validation images", pad=8)
        axes.set_xlabel("Epoch")
    if run.memory:
        axes = axes_at(figure, LEFT + WIDTH / 2 + 0.35, top, width - 0.3, height)
        draw_live_memory(axes, run)
        axes.set_title("Memory while it ran", pad=8)
    if not run.scores and not run.memory:
        write(figure, LEFT, top, "The folder holds no results and no memory figures yet.")
    write_lines(figure, LEFT, top + height + 0.75, events)
    return figure


def _what(run: RunRecord) -> str:
    facts = run.facts_of("started", "resumed")
    parts = [
        str(facts.get("workload", "")),
        f"{run.settings['image_size']} px" if "image_size" in run.settings else "",
        str(facts.get("precision", "")),
        f"on {facts['device']}" if "device" in facts else "",
        batch_line(run),
    ]
    return ", ".join(part for part in parts if part)


def _event_lines(run: RunRecord) -> list[str]:
    """Return what happened, a line an event, the newest ones."""
    told = told_events(run)
    if not told:
        return ["Events: none."] if run.events else []
    lines = [f"Events: {events_words(run)}."]
    for event in told[-_FEW_EVENTS:]:
        epoch = f"epoch {event.facts['epoch']}, " if "epoch" in event.facts else ""
        text = f"{epoch}{event.name.replace('_', ' ')}: {event_words(event.facts)}"
        lines.append(shorten(text, WIDTH, theme.BODY_POINTS))
    return lines


def _mark_best(axes: Axes, run: RunRecord) -> None:
    column = main_score(run)
    best = None if column is None else best_of(run, column)
    if best is None:
        return
    axes.plot(
        [best[0]], [best[1]], marker="o", markersize=11, markerfacecolor="none",
        markeredgecolor=theme.VERMILION, markeredgewidth=1.8, linestyle="none", label="best",
    )  # fmt: skip
    axes.annotate(
        f"best {best[1]:.3f}",
        best,
        # Its curve has nothing above its best; at the end stands the curve's name.
        xytext=(4, -17) if best[0] == run.epochs[-1] else (0, 10),
        textcoords="offset points",
        ha="left" if best[0] == run.epochs[-1] else "center",
        fontsize=theme.SMALL_POINTS,
        color=theme.VERMILION,
    )


@theme.themed
def training_figure(run: RunRecord) -> Figure:
    """Return a page: mAP, losses and learning rates, a panel for each kind that was recorded."""
    figure = new_page(
        f"Run {run.folder.name}: how training went",
        "Measured by the run, one mark an epoch.",
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
    """Draw one curve a column, its name at its end; equal columns are one curve with both names.

    Args:
        axes: empty axes.
        epochs: the x values.
        curves: values by column name, nan where not measured.
        quantity: label of the y axis, with its unit.
    """
    ends = []
    for i, (names, known) in enumerate(joint_curves(epochs, curves)):
        style = i % len(theme.LINE_COLOURS)
        colour = theme.LINE_COLOURS[style]
        label = ", ".join(names)
        axes.plot(
            [x for x, _ in known],
            [y for _, y in known],
            color=colour,
            linewidth=1.2,
            linestyle=_DASHES[style] if i < len(theme.LINE_COLOURS) else ":",
            marker=_MARKERS[style],
            markersize=4.5 if len(known) < 40 else 2.5,
            markevery=max(1, len(known) // 25),
            label=label,
        )
        ends.append((*known[-1], label, colour))
    highest = max((y for values in curves.values() for y in values if not math.isnan(y)), default=1)
    axes.set_ylim(0, 1.08 * highest if highest > 0 else 1)
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    integer_axis(axes, "x")
    axes.set_ylabel(quantity)
    end_labels(axes, ends)


def joint_curves(
    epochs: Sequence[float], curves: Mapping[str, Sequence[float]]
) -> list[tuple[list[str], list[tuple[float, float]]]]:
    """Return curves as points with their short names, columns of equal values together."""
    joint: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, values in curves.items():
        known = [(x, y) for x, y in zip(epochs, values, strict=False) if not math.isnan(y)]
        if known:
            joint.setdefault(tuple(known), []).append(short_name(name))
    return [(names, list(points)) for points, names in joint.items()]


def short_name(column: str) -> str:
    """Return a column's name without its section and underscores, such as `box loss`."""
    return column.rsplit("/", 1)[-1].replace("_", " ")
