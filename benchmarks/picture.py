"""A picture of errors: one dot a measured run, one row a tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.report import theme

_FARTHEST = 0.4  # errors beyond are drawn at the edge, as arrows
_TOLERANCE = 0.05
_INCHES = (8.6, 3.4)


@theme.themed
def draw_errors(path: Path, title: str, errors: Mapping[str, Sequence[float]]) -> None:
    """Write a PNG of signed relative errors, under-estimates left, the first tool on top.

    Args:
        path: of the picture.
        title: what was measured, one line.
        errors: of each tool, as fractions, at least one.
    """
    figure = Figure(figsize=_INCHES, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(-_TOLERANCE, _TOLERANCE, color=theme.SHADE, zorder=0)
    axes.axvline(0, color=theme.QUIET_INK, linewidth=0.8, zorder=1)
    generator = np.random.default_rng(0)  # spreads dots that would cover each other
    for place, (tool, values) in enumerate(errors.items()):
        _draw_tool(axes, -place, np.asarray(values), generator, is_ours=place == 0)
        size = np.abs(values)
        axes.annotate(
            f"{tool}\nmedian {np.median(size):.1%}, 90th {np.percentile(size, 90):.1%}",
            (-_FARTHEST * 1.08, -place), ha="right", va="center", annotation_clip=False,
            fontsize=theme.SMALL_POINTS + 0.5, fontweight="bold" if place == 0 else "normal",
        )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(0.6 - len(errors), 0.6)
    axes.set_xlim(-_FARTHEST * 1.05, _FARTHEST * 1.05)
    ticks = np.array([-0.4, -0.2, -0.05, 0.05, 0.2, 0.4])
    axes.set_xticks(ticks, [f"{tick:+.0%}" for tick in ticks])
    axes.set_xlabel("predicted against measured; left of the band would run out of memory")
    axes.set_title(title)
    axes.spines["left"].set_visible(False)
    figure.savefig(path)


def _draw_tool(
    axes: Axes,
    place: int,
    values: np.ndarray[Any, Any],
    generator: np.random.Generator,
    *,
    is_ours: bool,
) -> None:
    heights = place + generator.uniform(-0.22, 0.22, len(values))
    colour = theme.BLUE if is_ours else theme.QUIET_INK
    for beyond, marker in ((values < -_FARTHEST, "<"), (values > _FARTHEST, ">")):
        edge = np.sign(values[beyond]) * _FARTHEST
        axes.scatter(edge, heights[beyond], marker=marker, s=22, color=colour)
    near = np.abs(values) <= _FARTHEST
    axes.scatter(values[near], heights[near], s=18, color=colour, alpha=0.75, linewidths=0)
