"""Mosaics: four images around a random centre on a canvas of twice the sample's size.

Where things are is settled first, from sizes and labels; pixels are read afterwards, and only of
images that the sample's view shows.

Source: YOLOv4 (Bochkovskiy et al. 2020), section 3.3; the canvas and the centre's range of the
official YOLOv9 recipe, in memplan's own words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .augment import FILL, Image, Rows, Shape, place_boxes
from .polygons import NO_POINTS, Copy, Points, bounds, clip_polygon, place_polygons
from .view import LEAST_BOX_KEPT, LEAST_POLYGON_KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scan import LabelledImage
    from .view import Rectangle

NUM_IMAGES = 4


def draw_places(shapes: Sequence[Shape], size: int, rng: np.random.Generator) -> list[Rectangle]:
    """Return where on the canvas four images are: each touches the centre with a corner.

    Args:
        shapes: height and width of each image, the longer side `size`.
        size: side of the sample, pixels; the canvas has twice that.
        rng: draws the centre within the middle half of the canvas.
    """
    centre_x, centre_y = (int(rng.uniform(size / 2, 3 * size / 2)) for _ in range(2))
    places = []
    for position, (height, width) in enumerate(shapes):
        left = centre_x if position % 2 else centre_x - width
        top = centre_y if position // 2 else centre_y - height
        places.append((left, top, left + width, top + height))
    return places


def gather_objects(
    images: Sequence[LabelledImage], places: Sequence[Rectangle], size: int
) -> tuple[Rows, list[Points]]:
    """Return corners in canvas pixels `[n, 5]`, and polygons, one a row, or none at all.

    Objects are clipped to the canvas; those that hardly anything is left of go. (The official
    recipe clips without looking, and so trains on slivers at the outer border.)

    Args:
        images: with their labels.
        places: of each image on the canvas.
        size: side of the sample, pixels; the canvas has twice that.
    """
    rows, polygons = [], []
    has_polygons = any(image.polygons for image in images)
    for image, (left, top, right, bottom) in zip(images, places, strict=True):
        height, width = bottom - top, right - left
        rows.append(place_boxes(image.labels, height, width, left, top))
        if has_polygons:
            known = image.polygons or (NO_POINTS,) * len(image.labels)
            polygons += place_polygons(known, height, width, left, top)
    return _clip(np.concatenate(rows), polygons, 2 * size)


def _clip(rows: Rows, polygons: list[Points], side: int) -> tuple[Rows, list[Points]]:
    clipped = rows.copy()
    np.clip(rows[:, 1:], 0, side, out=clipped[:, 1:])
    least = np.full(len(rows), LEAST_BOX_KEPT)
    for place, points in enumerate(polygons):
        if len(points):
            polygons[place] = clip_polygon(points, side, side)
            clipped[place, 1:] = np.concatenate(bounds(polygons[place]))
            least[place] = LEAST_POLYGON_KEPT
    keep = _areas(clipped) > least * _areas(rows)
    return clipped[keep], [polygons[place] for place in np.flatnonzero(keep)] if polygons else []


def _areas(rows: Rows) -> Rows:
    return np.asarray((rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2]))


def add_copies(
    rows: Rows, polygons: list[Points], copies: Sequence[Copy]
) -> tuple[Rows, list[Points]]:
    """Return rows and polygons with those of pasted copies after them."""
    if not copies:
        return rows, polygons
    pasted = [[rows[copy.place, 0], *copy.box] for copy in copies]
    return (
        np.concatenate([rows, np.array(pasted, np.float32)]),
        [*polygons, *(copy.polygon for copy in copies)],
    )


def compose(images: Sequence[Image | None], places: Sequence[Rectangle], size: int) -> Image:
    """Return the canvas, `[2 size, 2 size, 3]`, grey where no image is.

    Args:
        images: the pixels of each, None for one that is not looked at.
        places: of each image.
        size: side of the sample, pixels.
    """
    side = 2 * size
    canvas = np.full((side, side, 3), FILL, np.uint8)
    for image, (left, top, right, bottom) in zip(images, places, strict=True):
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, side), min(bottom, side)
        if image is not None:
            canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
    return canvas
