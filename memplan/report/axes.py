"""What every plot of memory shares: axes in round GiB or MiB, capacity lines, end labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from memplan.report import theme
from memplan.report.frame import printable
from memplan.units import GIB, KIB, MIB, format_bytes

# With fewer an axis has no scale to read.
_LEAST_TICKS = 3
# A tick of an axis of integers takes so much width, points.
_TICK_POINTS = 34.0
DASHES = (0, (5, 2.5))
BACKING = {"facecolor": theme.PAPER, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}


def memory_axis(
    axes: Axes,
    which: Literal["x", "y"],
    quantity: str,
    top_bytes: float,
    *,
    low_bytes: float = 0.0,
    num_ticks: int = 7,
) -> None:
    """Label an axis that is drawn in bytes with round numbers of GiB, MiB or KiB.

    Args:
        axes: the axes; limits become `low_bytes` to `top_bytes`.
        which: `x` or `y`.
        quantity: what is shown, such as `Peak reserved`; the unit is appended.
        top_bytes: upper end, bytes.
        low_bytes: lower end, bytes; anything but 0 only for residuals.
        num_ticks: about how many ticks to aim for.
    """
    top_bytes = max(top_bytes, low_bytes + KIB)
    unit, factor = _unit_of(max(abs(top_bytes), abs(low_bytes)))
    ticks: list[float] = []
    while len(ticks) < _LEAST_TICKS:
        step = _round_step((top_bytes - low_bytes) / factor / num_ticks)
        first = math.ceil(low_bytes / factor / step - 1e-9)
        last = math.floor(top_bytes / factor / step + 1e-9)
        ticks = [i * step for i in range(first, last + 1)]
        num_ticks += 1
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator([tick * factor for tick in ticks]))
    axis.set_ticklabels([f"{tick:g}" for tick in ticks])
    if which == "x":
        axes.set_xlim(low_bytes, top_bytes)
        axes.set_xlabel(f"{quantity} ({unit})")
    else:
        axes.set_ylim(low_bytes, top_bytes)
        axes.set_ylabel(f"{quantity} ({unit})")


def _unit_of(num_bytes: float) -> tuple[str, int]:
    for unit, factor in (("GiB", GIB), ("MiB", MIB)):
        if num_bytes >= 0.9 * factor:
            return unit, factor
    return "KiB", KIB


def _round_step(step: float) -> float:
    """Return the smallest of 1, 2, 5, 10, ... that is at least `step`."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def integer_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Put ticks on integers only, as batches and epochs are."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    room = axes.get_window_extent().width / axes.get_figure(root=True).dpi * 72  # type: ignore[union-attr]
    most = max(1, min(9, int(room / _TICK_POINTS))) if which == "x" else 9
    axis.set_major_locator(
        MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
    )


def top_with_line(peak_bytes: float, line_bytes: float, *, reach: float = 2.0) -> float:
    """Return where a memory axis ends: above the line when that leaves the data readable, bytes."""
    if line_bytes <= reach * peak_bytes:
        return 1.09 * max(peak_bytes, line_bytes)
    return 1.18 * peak_bytes


def capacity_line(
    axes: Axes, num_bytes: int, label: str, *, side: Literal["left", "right"] = "left"
) -> None:
    """Draw a dashed line with its value across the axes, or say that it lies above them."""
    text = printable(f"{label} {format_bytes(num_bytes)}")
    if num_bytes > axes.get_ylim()[1]:
        axes.annotate(
            f"▲ {text}, above this axis",
            (0.0, 1.0),
            xycoords="axes fraction",
            xytext=(4, -10),
            textcoords="offset points",
            fontsize=theme.SMALL_POINTS,
            bbox=BACKING,
            zorder=7,
        )
        return
    axes.axhline(num_bytes, color=theme.BLACK, linestyle=DASHES, linewidth=1.2, zorder=6)
    axes.annotate(
        text,
        (0.0 if side == "left" else 1.0, num_bytes),
        xycoords=("axes fraction", "data"),
        xytext=(4 if side == "left" else -4, 4),
        textcoords="offset points",
        ha=side,
        fontsize=theme.SMALL_POINTS,
        color=theme.BLACK,
        bbox=BACKING,
        zorder=7,
    )


def capacity_line_across(axes: Axes, num_bytes: int, text: str) -> None:
    """Draw a dashed line up the axes with its value above them, where bars lie."""
    axes.axvline(num_bytes, color=theme.BLACK, linestyle=DASHES, linewidth=1.2)
    axes.annotate(
        text,
        (num_bytes, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=theme.SMALL_POINTS,
    )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Return positions moved as little as keeps neighbours at least `gap` apart, order kept."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    clusters: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        clusters.append([i])
        centres.append(positions[i])
        while len(clusters) > 1 and _too_near(clusters, centres, gap):
            clusters[-2].extend(clusters.pop())
            centres.pop()
            members = clusters[-1]
            centres[-1] = sum(positions[j] for j in members) / len(members)
    moved = [0.0] * len(positions)
    for members, centre in zip(clusters, centres, strict=True):
        for rank, i in enumerate(members):
            moved[i] = centre + (rank - (len(members) - 1) / 2) * gap
    return moved


def _too_near(clusters: Sequence[Sequence[int]], centres: Sequence[float], gap: float) -> bool:
    reach = (len(clusters[-1]) + len(clusters[-2])) / 2 * gap
    return centres[-1] - centres[-2] < reach


def _within(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions pushed up from `low` and down from `high`, still `gap` apart."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    for rank, i in enumerate(order):
        moved[i] = max(moved[i], low + rank * gap)
    for rank, i in enumerate(reversed(order)):
        moved[i] = min(moved[i], high - rank * gap)
    return moved


def end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each series' name beside its end, none over another.

    Args:
        axes: the axes, their limits set already.
        ends: x and y of the last point, label, colour.
    """
    low, high = axes.get_ylim()
    height_points = axes.get_window_extent().height / axes.get_figure(root=True).dpi * 72  # type: ignore[union-attr]
    gap = (high - low) * 1.25 * theme.SMALL_POINTS / height_points
    moved = _within(spread([y for _, y, _, _ in ends], gap), gap, low + gap / 2, high)
    for (x, _, label, colour), y in zip(ends, moved, strict=True):
        axes.annotate(
            label,
            (x, y),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=theme.SMALL_POINTS,
            color=colour,
            va="center",
            annotation_clip=False,
            bbox=BACKING,
            zorder=8,
        )
