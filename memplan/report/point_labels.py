"""Labels of points that stand free: on no point, line, axis or other label, or not at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from memplan.report import theme

_Points = npt.NDArray[np.float64]

# Between a label and what it stands beside or keeps clear of, points.
_CLEAR = 1.5
# A point's label stands right of it where it can, then left, below, above, and in the corners.
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, 1), (1, -1), (-1, 1), (-1, -1))
# How far a label may stand from its point, points: farther it could be taken for another's.
_STEPS = (0.0, 3.0, 6.0)


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    *,
    marker_points: Sequence[float],
    first: Collection[int] = (),
    clear_of: Sequence[Artist] = (),
) -> list[Annotation | None]:
    """Write a label beside each point, as many as have room.

    Args:
        axes: the axes, their place on the page and their limits set already.
        points: x and y, data.
        labels: one a point; an empty one is not written.
        marker_points: half the width of each point's marker, points.
        first: points that choose their places first and whose labels are bold; the others follow
            in order, those at the ends of the row before those between them.
        clear_of: texts and upright lines that no label may lie on.

    Returns:
        What was written for each point; None where nothing had room.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    pixel = figure.dpi / 72
    centres = axes.transData.transform(np.asarray(points, float).reshape(-1, 2))
    markers = [
        _box(centre, 2 * half * pixel, 2 * half * pixel)
        for centre, half in zip(centres, marker_points, strict=True)
    ]
    inside = axes.get_window_extent().padded(-_CLEAR * pixel)
    taken = [artist.get_window_extent() for artist in clear_of]
    written: list[Annotation | None] = [None] * len(points)
    for i in _order(len(points), first):
        if not labels[i]:
            continue
        label = _annotation(axes, labels[i], points[i], is_bold=i in first)
        size = label.get_window_extent()
        place = _free_place(
            centres, i, (size.width, size.height), marker_points[i], pixel,
            taken=[*taken, *markers], inside=inside,
        )  # fmt: skip
        if place is None:
            label.remove()
            continue
        x, y = (place - centres[i]) / pixel
        label.set_position((float(x), float(y)))
        taken.append(label.get_window_extent())
        written[i] = label
    return written


def _order(count: int, first: Collection[int]) -> list[int]:
    ends = [0, count - 1] if count else []
    return list(dict.fromkeys([*sorted(first), *ends, *range(count)]))


def _annotation(axes: Axes, text: str, point: tuple[float, float], *, is_bold: bool) -> Annotation:
    return axes.annotate(
        text,
        point,
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=theme.SMALL_POINTS,
        fontweight="bold" if is_bold else "normal",
        zorder=8,
    )


def _free_place(
    centres: _Points,
    i: int,
    size: tuple[float, float],
    half: float,
    pixel: float,
    *,
    taken: Sequence[Bbox],
    inside: Bbox,
) -> _Points | None:
    """Return where the label's middle goes, pixels; None where every place is taken."""
    width, height = size
    for step, (right, up) in product(_STEPS, _SIDES):
        away = (half + 2 * _CLEAR + step) * pixel
        place: _Points = centres[i] + (right * (away + width / 2), up * (away + height / 2))
        if not right:  # above or below it may slide along, away from the axes' edges
            reach = width / 2 + 1.01 * _CLEAR * pixel
            place[0] = np.clip(place[0], inside.x0 + reach, inside.x1 - reach)
        box = _box(place, width, height).padded(_CLEAR * pixel)
        is_free = not any(_overlap(box, other) for other in taken)
        is_inside = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0
        if is_free and is_inside and box.y1 <= inside.y1 and _is_nearest(centres, i, box):
            return place
    return None


def _is_nearest(centres: _Points, i: int, box: Bbox) -> bool:
    """Return whether no other point is nearer to the label than its own."""
    nearest = np.clip(centres, box.min, box.max)
    distance: _Points = np.linalg.norm(centres - nearest, axis=1)
    return float(distance[i]) <= float(distance.min()) + 1e-6


def _box(middle: _Points, width: float, height: float) -> Bbox:
    x, y = (float(value) for value in middle)
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _overlap(one: Bbox, other: Bbox) -> bool:
    is_beside = one.x1 <= other.x0 or other.x1 <= one.x0
    return not (is_beside or one.y1 <= other.y0 or other.y1 <= one.y0)
