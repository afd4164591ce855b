"""Labels of points: on nothing that is drawn, nearest to their own point, or left out."""

import math
import random
from itertools import combinations

import pytest
from matplotlib.transforms import Bbox

from memplan.report.frame import axes_at, new_page
from memplan.report.point_labels import label_points

MARKER = 5.0


def _axes(width=3.0, height=3.0):
    axes = axes_at(new_page("Title"), 1.0, 1.6, width, height)
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    return axes


def _marker(axes, point):
    half = MARKER * axes.get_figure(root=True).dpi / 72
    x, y = axes.transData.transform(point)
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _overlap(one, other):
    shared = Bbox.intersection(one, other)
    return shared is not None and shared.width > 0 and shared.height > 0


def _distance(box, point):
    x, y = point
    return math.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))


def _crowds():
    """Yield points as plans have them: on a steep curve, in a heap, on each other, at the edges."""
    chance = random.Random("crowds")
    yield "curve", [(0.5 + i**3 / 900, 10 * i / (i + 3)) for i in range(20)]
    yield "heap", [(chance.gauss(2, 0.3), chance.gauss(8, 0.4)) for _ in range(60)]
    yield "twins", [(4.0, 4.0)] * 5
    yield "edges", [(x, y) for x in (0, 10) for y in (0, 5, 10)]
    yield "spread", [(chance.uniform(0, 10), chance.uniform(0, 10)) for _ in range(40)]


CROWDS = dict(_crowds())


@pytest.mark.parametrize("kind", CROWDS)
def test_labels_lie_on_nothing(kind):
    """Extents of all that is drawn: labels, markers, the axes' edges, a line and its words."""
    axes, points = _axes(), CROWDS[kind]
    line = axes.axvline(7.0)
    words = axes.annotate("budget 11.2 GiB", (7.0, 0), rotation=90, ha="right")
    texts = [f"{i} x 64" for i in range(len(points))]
    labels = label_points(
        axes,
        points,
        texts,
        marker_points=[MARKER] * len(points),
        first=(2,),
        clear_of=[line, words],
    )  # fmt: skip
    written = [label for label in labels if label is not None]
    boxes = [label.get_window_extent() for label in written]
    inside = axes.get_window_extent()
    drawn = [_marker(axes, point) for point in points]
    drawn += [line.get_window_extent(), words.get_window_extent()]

    assert len(written) == sum(text.get_text() in texts for text in axes.texts)
    assert not [pair for pair in combinations(boxes, 2) if _overlap(*pair)]
    assert not [box for box in boxes for other in drawn if _overlap(box, other)]
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
    assert all(inside.y0 <= box.y0 and box.y1 <= inside.y1 for box in boxes)
    centres = axes.transData.transform(points)
    for label, centre in zip(labels, centres, strict=True):
        if label is not None:
            box = label.get_window_extent()
            nearest = min(_distance(box, other) for other in centres)
            # Extents of text are whole pixels.
            assert _distance(box, centre) <= nearest + 1


def test_a_label_without_room_is_left_out_and_the_first_have_theirs():
    """Of a hundred points in one place a few are labelled, the one that goes first in bold."""
    points = [(5.0, 5.0)] * 100
    labels = label_points(
        _axes(), points, ["label"] * 100, marker_points=[MARKER] * 100, first=(99,)
    )

    assert labels[99] is not None
    assert "bold" == labels[99].get_fontweight()
    assert 1 < sum(label is not None for label in labels) < 30


def test_a_wide_label_slides_away_from_the_edge():
    """Left of a point near the right edge stands another: its label goes below and to the left."""
    axes, points = _axes(), [(7.5, 9.0), (9.5, 9.0)]
    label = label_points(
        axes, points, ["", "256 x 1 chosen"], marker_points=[MARKER] * 2, first=(1,)
    )[1]

    assert label is not None
    assert label.get_window_extent().x1 <= axes.get_window_extent().x1


def test_points_with_room_all_have_their_labels():
    """None is left out for no reason, and an empty label is none."""
    points = [(1.0 + 2 * i, 5.0) for i in range(5)]
    labels = label_points(_axes(), points, ["a", "b", "", "d", "e"], marker_points=[MARKER] * 5)

    assert [True, True, False, True, True] == [label is not None for label in labels]
