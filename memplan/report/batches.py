"""Peak memory versus batch: what is predicted, where the card ends, how straight the line is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import BatchPeaks, ProbeAnswer
from memplan.present.words import joined, workload_line, workload_title
from memplan.report import theme
from memplan.report.axes import (
    BACKING,
    capacity_line,
    end_labels,
    integer_axis,
    memory_axis,
    top_with_line,
)
from memplan.report.frame import BOTTOM, LEFT, TOP, WIDTH, axes_at, new_page, wrap
from memplan.report.series import (
    device_used_at,
    peaks_at,
    residuals,
    sorted_batches,
    split_by_recorded,
)
from memplan.units import format_bytes

PANELS_A_PAGE = 3
RESIDUAL_HEIGHT = 0.85
_MOST_SHARE = 1.5
_SERIES: tuple[tuple[str, str, Callable[[BatchPeaks], int]], ...] = (
    ("allocated", theme.GREEN, lambda peaks: peaks.allocated_peak_bytes),
    ("reserved", theme.BLUE, lambda peaks: peaks.reserved_peak_bytes),
    ("device-used", theme.BLACK, lambda peaks: peaks.device_used_peak_bytes),
)


@theme.themed
def batches_figure(probes: Sequence[ProbeAnswer]) -> Figure:
    """Return a page: peak versus micro-batch, one panel a card, residuals below each.

    Args:
        probes: one to `PANELS_A_PAGE` answers.
    """
    names = dict.fromkeys(workload_title(probe.workload) for probe in probes)
    share = common_share(probes)
    figure = new_page(
        f"Peak memory versus micro-batch: {joined(list(names))}",
        f"Peaks of a whole life, {probes[0].fit.origin}. Solid within the recorded batches, "
        f"dotted beyond them; every axis ends at {share:.0%} of its card. "
        f"{workload_line(probes[0].workload)}",
    )
    pitch = WIDTH / len(probes)
    height = BOTTOM - TOP - RESIDUAL_HEIGHT - 1.7
    for i, probe in enumerate(probes):
        left, width = LEFT + 0.55 + i * pitch, pitch - 1.45
        axes = axes_at(figure, left, TOP + 0.3, width, height)
        draw_batches(axes, probe, top_bytes=share * probe.gpu.capacity_bytes)
        axes.set_title(probe.gpu.name, pad=8)
        below = axes_at(figure, left, TOP + 0.3 + height + 0.58, width, RESIDUAL_HEIGHT)
        draw_residuals(below, probe, width=pitch - 0.75)
        below.set_xlim(axes.get_xlim())
    return figure


def common_share(probes: Sequence[ProbeAnswer]) -> float:
    """Return where the memory axes end, as a share of each card's capacity.

    One share for all is a common scale that a large card cannot squeeze a small one's by: their
    capacities lie side by side. What a card lacks by far is left above the axis.
    """
    needed = max(_top_bytes(probe) / probe.gpu.capacity_bytes for probe in probes)
    return min(needed, _MOST_SHARE)


def _top_bytes(probe: ProbeAnswer) -> float:
    used = [p.device_used_peak_bytes for p in probe.batches]
    used.append(device_used_at(probe, probe.largest_batch))
    return top_with_line(max(used), probe.gpu.capacity_bytes)


def draw_batches(axes: Axes, probe: ProbeAnswer, *, top_bytes: float, small: bool = False) -> None:
    """Draw allocated, reserved and device-used peaks over the micro-batch with the capacity.

    Args:
        axes: empty axes.
        probe: the answer for one card.
        top_bytes: upper end of the memory axis, bytes.
        small: True leaves out allocated and device-used.
    """
    batches = sorted_batches(probe)
    last = max([p.micro_batch_size for p in batches] + [probe.largest_batch, 1])
    axes.set_xlim(0, last * 1.02)
    memory_axis(axes, "y", "Peak device-used" if small else "Peak", top_bytes)
    ends = []
    for label, colour, bytes_of in _SERIES[2:] if small else _SERIES:
        points = [(p.micro_batch_size, bytes_of(p)) for p in batches]
        _draw_line(axes, points, probe, label=label, colour=colour)
        if points:
            ends.append((*points[-1], label, colour))
    _draw_extension(axes, probe, last)
    side: Literal["left", "right"] = "left" if probe.largest_batch > last / 2 else "right"
    capacity_line(axes, probe.gpu.capacity_bytes, "capacity", side=side)
    _mark_misfits(axes, batches)
    _mark_largest(axes, probe, size=theme.SMALL_POINTS if small else theme.BODY_POINTS - 0.5)
    integer_axis(axes, "x")
    axes.set_xlabel("Micro-batch (images)")
    if not small:
        top = axes.get_ylim()[1]
        end_labels(axes, [(x, min(y, 0.98 * top), label, colour) for x, y, label, colour in ends])


def _draw_line(
    axes: Axes, points: list[tuple[int, int]], probe: ProbeAnswer, *, label: str, colour: str
) -> None:
    """Draw a predicted line, dotted beyond the recorded batches; a lone point as a diamond."""
    if len(points) < 2:
        axes.plot(
            *zip(*points, strict=True), color=colour, marker="D", linestyle="none", label=label
        )
        return
    for i, (recorded, piece) in enumerate(split_by_recorded(points, probe.fit.recorded_batches)):
        axes.plot(
            [x for x, _ in piece],
            [y for _, y in piece],
            color=colour,
            linestyle="-" if recorded else (0, (1, 1.3)),
            label=label if i == 0 else f"_{label}",
        )


def _draw_extension(axes: Axes, probe: ProbeAnswer, last: int) -> None:
    """Draw a dotted line from the largest batch asked for to the largest that fits."""
    evaluated = [p.micro_batch_size for p in probe.batches]
    start = 0 if len(evaluated) < 2 else max(evaluated)
    if start >= last:
        return
    axes.plot(
        [start, last],
        [device_used_at(probe, start), device_used_at(probe, last)],
        color=theme.BLACK,
        linewidth=1.0,
        linestyle=(0, (1, 1.3)),
        label="_straight line",
    )


def _mark_misfits(axes: Axes, batches: Sequence[BatchPeaks]) -> None:
    """Put a cross on batches that do not fit, at most about a dozen."""
    top = axes.get_ylim()[1]
    misfits = [p for p in batches if not p.fits and p.device_used_peak_bytes <= top]
    shown = misfits[:: max(1, -(-len(misfits) // 12))]
    if not shown:
        return
    axes.plot(
        [p.micro_batch_size for p in shown],
        [p.device_used_peak_bytes for p in shown],
        marker="x",
        markersize=6,
        markeredgewidth=1.6,
        linestyle="none",
        color=theme.VERMILION,
        label="out of memory",
        zorder=7,
    )
    middle = shown[len(shown) // 2]
    axes.annotate(
        "× out of memory",  # noqa: RUF001
        (middle.micro_batch_size, middle.device_used_peak_bytes),
        xytext=(-8, 6),
        textcoords="offset points",
        ha="right",
        fontsize=theme.SMALL_POINTS,
        color=theme.VERMILION,
    )


def _mark_largest(axes: Axes, probe: ProbeAnswer, *, size: float) -> None:
    """Mark the largest micro-batch size that fits, or say that none does."""
    if probe.largest_batch == 0:
        axes.annotate(
            "not even one image fits",
            (0.98, 0.05),
            xycoords="axes fraction",
            ha="right",
            fontsize=size,
            fontweight="bold",
            bbox=BACKING,
            color=theme.VERMILION,
        )
        return
    used = device_used_at(probe, probe.largest_batch)
    axes.vlines(probe.largest_batch, 0, used, color=theme.BLACK, linewidth=0.8, linestyle=":")
    axes.plot(
        [probe.largest_batch],
        [used],
        marker="D",
        markersize=8,
        color=theme.VERMILION,
        markeredgecolor=theme.PAPER,
        linestyle="none",
        zorder=9,
        label="largest that fits",
    )
    evaluated = peaks_at(probe, probe.largest_batch) is not None
    of_what = "device-used" if evaluated else "by the line"
    left_half = probe.largest_batch < axes.get_xlim()[1] / 2
    # Memory grows with the batch, so that what lies low beside a large batch is free.
    axes.annotate(
        f"largest that fits: {probe.largest_batch}\n{format_bytes(used)} {of_what}",
        (probe.largest_batch, 0),
        xytext=(6 if left_half else -6, 8),
        textcoords="offset points",
        ha="left" if left_half else "right",
        va="bottom",
        fontsize=size,
        fontweight="bold",
        bbox={"facecolor": theme.PAPER, "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
        zorder=5,
    )


def draw_residuals(axes: Axes, probe: ProbeAnswer, *, width: float) -> None:
    """Draw how far the reserved peaks lie from the straight line; `width` of the text, inches."""
    of_line = set(probe.fit.line_batches)
    # Batches that fit only by emptying the cache are not part of the line.
    points = [point for point in residuals(probe) if not of_line or point[0] in of_line]
    reach = 1.25 * max([abs(value) for _, value in points] + [1 << 20])
    axes.vlines(
        [x for x, _ in points],
        0,
        [value for _, value in points],
        color=theme.BLUE,
        linewidth=1.4,
        label="reserved minus line",
    )
    axes.axhline(0, color=theme.BLACK, linewidth=0.8)
    recorded = probe.fit.recorded_batches
    last = max([probe.largest_batch, *(row.micro_batch_size for row in probe.batches)])
    shown = [batch for batch in recorded if batch <= last]
    axes.plot(
        shown,
        [-reach] * len(shown),
        marker="^",
        markersize=6,
        linestyle="none",
        color=theme.BLACK,
        clip_on=False,
        label="recorded",
        zorder=9,
    )
    memory_axis(axes, "y", "Residual", reach, low_bytes=-reach, num_ticks=5)
    integer_axis(axes, "x")
    line = (
        f"reserved = {format_bytes(probe.fit.base_bytes)} + "
        f"{format_bytes(probe.fit.bytes_per_image)} x batch, "
        f"{probe.fit.error_words}"
    )
    facts = (
        f"{len(probe.batches)} batch{'' if len(probe.batches) == 1 else 'es'} evaluated; "
        f"▲ recorded: {', '.join(map(str, recorded))}"
    )
    lines = [part for text in (line, facts) for part in wrap(text, width, theme.SMALL_POINTS)]
    axes.set_xlabel("\n".join(lines), fontsize=theme.SMALL_POINTS)
