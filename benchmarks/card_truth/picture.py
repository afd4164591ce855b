"""One picture of all tables: a dot a row, and the range it leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.card_truth.page import by_kind
from benchmarks.card_truth.row import TOLERANCE, Row
from memplan.report import theme

_FARTHEST = 0.35  # errors beyond are drawn at the edge, as arrows
_INCHES = (9.0, 6.0)


@theme.themed
def draw(rows: Sequence[Row]) -> Figure:
    """Return signed errors by table, under-estimates left, each with the range left open."""
    figure = Figure(figsize=_INCHES, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(-TOLERANCE, TOLERANCE, color=theme.SHADE, zorder=0)
    axes.axvline(0, color=theme.QUIET_INK, linewidth=0.8, zorder=1)
    kinds = {
        kind: [row for row in of_kind if row.error is not None]
        for kind, of_kind in by_kind(rows).items()
    }
    kinds = {kind: of_kind for kind, of_kind in kinds.items() if of_kind}
    for place, (kind, of_kind) in enumerate(kinds.items()):
        _draw_kind(axes, -place, of_kind)
        axes.annotate(
            f"{kind}\n{_figures(of_kind)}, {len(of_kind)} rows",
            (-_FARTHEST * 1.08, -place), ha="right", va="center", annotation_clip=False,
            fontsize=theme.SMALL_POINTS,
        )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(0.6 - len(kinds), 0.6)
    axes.set_xlim(-_FARTHEST * 1.05, _FARTHEST * 1.05)
    ticks = (-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3)
    axes.set_xticks(ticks, [f"{tick:+.0%}" for tick in ticks])
    axes.set_xlabel("predicted against measured; line: what the prediction leaves open")
    axes.set_title("Published measurements beside predictions")
    axes.spines["left"].set_visible(False)
    return figure


def _figures(rows: Sequence[Row]) -> str:
    return " or ".join(sorted({row.figure for row in rows}))


def _draw_kind(axes: Axes, place: int, rows: Sequence[Row]) -> None:
    heights = place + (np.linspace(-0.32, 0.32, len(rows)) if len(rows) > 1 else np.zeros(1))
    for row, height in zip(rows, heights, strict=True):
        assert row.error is not None
        ends = [row.predicted_bytes, row.low_bytes, row.high_bytes]
        sides = [end / row.measured_bytes - 1 for end in ends if end is not None]
        shown = np.clip([min(sides), max(sides)], -_FARTHEST, _FARTHEST)
        axes.plot(shown, [height, height], color=theme.BLUE, linewidth=0.8, alpha=0.5)
        beyond = abs(row.error) > _FARTHEST
        marker = ("<" if row.error < 0 else ">") if beyond else "o"
        at = float(np.clip(row.error, -_FARTHEST, _FARTHEST))
        axes.scatter([at], [height], marker=marker, s=12, color=theme.BLUE, linewidths=0)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write the picture as PNG."""
    draw(rows).savefig(path)
