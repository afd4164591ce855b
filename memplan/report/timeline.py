"""Memory over one life of a training, stacked by category."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from memplan.answers import ProbeAnswer, Timeline
from memplan.present.words import workload_line, workload_title
from memplan.report import theme
from memplan.report.axes import BACKING, capacity_line, memory_axis, top_with_line
from memplan.report.frame import BOTTOM, LEFT, TOP, WIDTH, axes_at, new_page, text_width
from memplan.report.series import (
    Span,
    allocated_line,
    device_line,
    period_spans,
    phase_spans,
    reserved_line,
    stacked_bands,
)
from memplan.units import format_bytes

LEGEND_WIDTH = 2.5
STRIP_HEIGHT = 0.56
_ABBREVIATIONS = {
    "build": "bld",
    "first_step": "1st",
    "accumulation_step": "acc",
    "steady_step": "stdy",
    "validation": "val",
    "inference": "inf",
    "forward": "F",
    "backward": "B",
    "optimizer_step": "O",
    "transfer": "T",
    "average": "A",
    "predict": "P",
}


@theme.themed
def timeline_figure(probe: ProbeAnswer) -> Figure:
    """Return a page: memory through build, steps and validation at the reference batch."""
    timeline = probe.timeline
    figure = new_page(
        f"Memory over one life: {workload_title(probe.workload)}, "
        f"micro-batch {probe.reference_batch}, {probe.gpu.name}",
        f"Bytes by category, {timeline.origin}; the top of the stack is device-used memory. "
        f"{workload_line(probe.workload)}",
    )
    width = WIDTH - LEGEND_WIDTH - 0.55
    strip = axes_at(figure, LEFT + 0.55, TOP + 0.05, width, STRIP_HEIGHT)
    top = TOP + STRIP_HEIGHT + 0.1
    axes = axes_at(figure, LEFT + 0.55, top, width, BOTTOM - 0.75 - top)
    draw_timeline(axes, timeline, capacity_bytes=probe.gpu.capacity_bytes, card=probe.gpu.name)
    shortened = draw_phases(strip, timeline, width=width)
    for span in period_spans(timeline)[1:]:
        axes.axvline(span.start, color=theme.QUIET_INK, linewidth=0.6, zorder=4)
    axes.set_xticks([])
    axes.set_xlabel("Order of events (samples, thinned to the local peaks; not to scale in time)")
    if shortened:
        words = ", ".join(
            f"{_ABBREVIATIONS[name]} = {name.replace('_', ' ')}" for name in shortened
        )
        figure.text(
            axes.get_position().x0, 0.075, words, fontsize=theme.SMALL_POINTS, color=theme.QUIET_INK
        )
    _legend(axes, timeline)
    return figure


def draw_timeline(axes: Axes, timeline: Timeline, *, capacity_bytes: int, card: str) -> None:
    """Draw the stacked bands, the reserved line, the capacity, and a cross where it is passed.

    Args:
        axes: empty axes.
        timeline: bytes by category at each sample.
        capacity_bytes: the card's memory.
        card: its name, for the label.
    """
    device = device_line(timeline)
    if not device:
        return
    edges = range(len(device) + 1)
    below = [0] * len(device)
    for band, values in stacked_bands(timeline.categories):
        above = [low + value for low, value in zip(below, values, strict=True)]
        axes.fill_between(
            edges,
            _held(below),
            _held(above),
            step="post",
            facecolor=band.fill,
            hatch=band.hatch,
            edgecolor=theme.QUIET_INK if band.hatch else "none",
            linewidth=0,
            label=band.label,
        )
        if band.edge == theme.PAPER:
            # Flat pieces only: upright ones would hide bands that are one sample wide.
            axes.hlines(above, edges[:-1], edges[1:], color=band.edge, linewidth=0.5)
        else:
            axes.step(edges, _held(above), where="post", color=band.edge, linewidth=0.5)
        below = above
    axes.step(
        edges,
        _held(reserved_line(timeline)),
        where="post",
        color=theme.BLACK,
        linewidth=1.1,
        label="reserved",
    )
    memory_axis(axes, "y", "Memory", top_with_line(max(device), capacity_bytes, reach=1.8))
    axes.set_xlim(0, len(device))
    capacity_line(axes, capacity_bytes, f"capacity of {card}", side="right")
    _mark_overflow(axes, device, capacity_bytes)


def _held(values: Sequence[int]) -> list[int]:
    """Return the samples with the last one held to the right edge."""
    return [*values, values[-1]]


def _mark_overflow(axes: Axes, device: Sequence[int], capacity_bytes: int) -> None:
    """Put a cross at the first sample that the card cannot hold."""
    first = next((i for i, num_bytes in enumerate(device) if num_bytes > capacity_bytes), None)
    if first is None:
        return
    axes.plot(
        [first + 0.5],
        [capacity_bytes],
        marker="X",
        markersize=12,
        color=theme.VERMILION,
        markeredgecolor=theme.PAPER,
        linestyle="none",
        zorder=8,
        label="out of memory",
        clip_on=False,
    )
    left_half = first < len(device) / 2
    axes.annotate(
        f"out of memory: needs {format_bytes(max(device))}",
        (first + 0.5, capacity_bytes),
        xytext=(10 if left_half else -10, 9),
        textcoords="offset points",
        ha="left" if left_half else "right",
        fontsize=theme.BODY_POINTS,
        fontweight="bold",
        color=theme.VERMILION,
        bbox=BACKING,
        zorder=8,
    )


def draw_phases(axes: Axes, timeline: Timeline, *, width: float) -> list[str]:
    """Draw periods over phases as two rows of boxes and return the names that were shortened.

    Args:
        axes: empty axes above the plot.
        timeline: the periods and phases.
        width: width of the axes, inches.
    """
    total = max(len(next(iter(timeline.categories.values()), ())), 1)
    axes.set_xlim(0, total)
    axes.set_ylim(0, 2)
    axes.axis("off")
    shortened: list[str] = []
    for row, spans in ((1, period_spans(timeline)), (0, phase_spans(timeline))):
        for i, span in enumerate(spans):
            _draw_box(axes, span, row, shade=i % 2 == 0)
            label = _label_for(span, width * (span.stop - span.start) / total, bold=row == 1)
            if label == _ABBREVIATIONS.get(span.label) and span.label not in shortened:
                shortened.append(span.label)
            axes.text(
                (span.start + span.stop) / 2,
                row + 0.5,
                label,
                ha="center",
                va="center",
                fontsize=theme.SMALL_POINTS,
                fontweight="bold" if row else "normal",
            )
    return shortened


def _draw_box(axes: Axes, span: Span, row: int, *, shade: bool) -> None:
    axes.add_patch(
        Rectangle(
            (span.start, row + 0.04),
            span.stop - span.start,
            0.92,
            facecolor=theme.SHADE if shade else theme.PAPER,
            edgecolor=theme.RULE,
            linewidth=0.5,
        )
    )


def _label_for(span: Span, width: float, *, bold: bool) -> str:
    """Return the longest of name, short name and nothing that fits in `width` inches."""
    weight = "bold" if bold else "normal"
    for text in (span.label.replace("_", " "), _ABBREVIATIONS.get(span.label, "")):
        if text_width(text, theme.SMALL_POINTS, weight=weight) + 0.02 <= width:
            return text
    return ""


def _legend(axes: Axes, timeline: Timeline) -> None:
    """Name each band in the order drawn, with its bytes where allocated memory is highest."""
    device = device_line(timeline)
    allocated = allocated_line(timeline)
    peak = max(range(len(allocated)), key=allocated.__getitem__, default=0)
    handles: list[Line2D | Patch] = [
        Patch(
            facecolor=band.fill,
            edgecolor=theme.QUIET_INK,
            hatch=band.hatch,
            linewidth=0.5,
            label=f"{band.label}  {format_bytes(values[peak])}",
        )
        for band, values in reversed(stacked_bands(timeline.categories))
    ]
    if device:
        reserved = format_bytes(reserved_line(timeline)[peak])
        handles.insert(0, Line2D([], [], color=theme.BLACK, label=f"reserved  {reserved}"))
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        title=f"At the allocated peak\n({timeline.origin})",
        fontsize=theme.BODY_POINTS,
        alignment="left",
        labelspacing=0.7,
        handlelength=1.5,
        borderaxespad=0,
    )
    legend.get_title().set_fontweight("bold")
