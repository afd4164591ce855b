"""Views: which part of an image a training sample shows, and how turned, scaled and moved.

A view is drawn before any pixel is read, so that what it does not show need not be decoded.

Source: strengths, their ranges, the order of the maps and which boxes stay, from the official
YOLOv9 recipe, in memplan's own words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from .augment import FILL, Image, Rows, Shape
from .polygons import Points, map_polygons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Matrix = npt.NDArray[np.float64]
Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom, pixels."""

_SMALLEST_BOX = 2  # pixels
_LARGEST_ASPECT = 100
LEAST_BOX_KEPT = 0.10
"""Least share of a box's area that must stay for the box to stay."""
LEAST_POLYGON_KEPT = 0.01
"""The same where a polygon says what of the object is left."""


@dataclass(frozen=True)
class View:
    """A map from an image to a sample."""

    matrix: Matrix
    """From image to sample pixels, homogeneous, `[3, 3]`."""
    scale: float
    """The zoom that was drawn; the area of boxes grows with its square."""
    shape: Shape
    """Height and width of the sample, pixels."""
    source: Rectangle
    """The part of the image that can be seen; may be empty."""
    placed: Rectangle | None
    """Where that part lands when upright, so that it only needs another size; else None."""


def draw_view(
    image_shape: Shape, shape: Shape, strengths: Mapping[str, float], rng: np.random.Generator
) -> View:
    """Return a random view of an image's middle.

    Without degrees, shear and perspective the view is upright: the visible part of the image begins
    and ends at whole pixels, and so does where it lands, so that another size is all that it needs.
    Its map differs from the one drawn by less than a pixel of the sample, boxes and pixels alike.

    Args:
        image_shape: height and width of the image, pixels.
        shape: height and width of the sample, pixels.
        strengths: `degrees`, `translate` and `scale` (fractions), `shear` (degrees), `perspective`.
        rng: draws every parameter, in a fixed order.
    """
    matrix, scale = _draw_matrix(image_shape, shape, strengths, rng)
    source = _visible(matrix, image_shape, shape)
    if any(strengths[name] for name in ("degrees", "shear", "perspective")):
        return View(matrix, scale, shape, source, None)
    left, top, right, bottom = source
    corners = np.array([[left, top, 1], [right, bottom, 1]]) @ matrix.T
    (to_left, to_top), (to_right, to_bottom) = np.rint(corners[:, :2]).astype(int).tolist()
    if min(right - left, bottom - top, to_right - to_left, to_bottom - to_top) < 1:
        return View(matrix, scale, shape, (0, 0, 0, 0), None)
    upright = np.eye(3)
    upright[0, 0] = (to_right - to_left) / (right - left)
    upright[1, 1] = (to_bottom - to_top) / (bottom - top)
    upright[:2, 2] = to_left - upright[0, 0] * left, to_top - upright[1, 1] * top
    return View(upright, scale, shape, source, (to_left, to_top, to_right, to_bottom))


def _draw_matrix(
    image_shape: Shape, shape: Shape, strengths: Mapping[str, float], rng: np.random.Generator
) -> tuple[Matrix, float]:
    perspective, degrees, shear = (strengths[k] for k in ("perspective", "degrees", "shear"))
    to_origin = np.eye(3)
    to_origin[:2, 2] = -image_shape[1] / 2, -image_shape[0] / 2
    tilt = np.eye(3)
    tilt[2, :2] = rng.uniform(-perspective, perspective, 2)
    angle = math.radians(rng.uniform(-degrees, degrees))
    scale = float(rng.uniform(1 - strengths["scale"], 1 + strengths["scale"]))
    turn = np.eye(3)
    turn[:2, :2] = scale * np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    slant = np.eye(3)
    slant[0, 1], slant[1, 0] = np.tan(np.radians(rng.uniform(-shear, shear, 2)))
    move = np.eye(3)
    shift = rng.uniform(0.5 - strengths["translate"], 0.5 + strengths["translate"], 2)
    move[:2, 2] = shift * (shape[1], shape[0])
    return move @ slant @ turn @ tilt @ to_origin, scale


def _visible(matrix: Matrix, image_shape: Shape, shape: Shape) -> Rectangle:
    """Return the smallest rectangle of whole image pixels that holds all a sample shows."""
    height, width = shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]])
    mapped = corners @ np.linalg.inv(matrix).T
    if (mapped[:, 2] <= 0).any():  # tilted beyond the horizon
        return 0, 0, image_shape[1], image_shape[0]
    points = mapped[:, :2] / mapped[:, 2:]
    limits = (image_shape[1], image_shape[0])
    low = np.floor(points.min(axis=0) + 1e-6).clip(0, limits).astype(int).tolist()
    high = np.ceil(points.max(axis=0) - 1e-6).clip(0, limits).astype(int).tolist()
    return low[0], low[1], high[0], high[1]


def render(image: Image, view: View) -> Image:
    """Return the sample's pixels, grey where there is no image; perhaps `image` itself.

    Args:
        image: `[h, w, 3]`; read only within `view.source` and two pixels around it.
        view: drawn for an image of this shape.
    """
    height, width = view.shape
    if view.placed is None:
        # The warp reads two pixels around, which then are as they should be, not the fill.
        left, top, right, bottom = _widened(view.source, image.shape)
        if right <= left or bottom <= top:
            return np.full((height, width, 3), FILL, np.uint8)
        to_part = np.eye(3)
        to_part[:2, 2] = left, top
        part, matrix = image[top:bottom, left:right], view.matrix @ to_part
        fill = (FILL, FILL, FILL)
        if (matrix[2] == (0, 0, 1)).all():
            return _as_image(cv2.warpAffine(part, matrix[:2], (width, height), borderValue=fill))
        return _as_image(cv2.warpPerspective(part, matrix, (width, height), borderValue=fill))
    left, top, right, bottom = view.source
    part = image[top:bottom, left:right]
    to_left, to_top, to_right, to_bottom = view.placed
    size = (to_right - to_left, to_bottom - to_top)
    if size != (right - left, bottom - top):
        part = _as_image(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR))
    if view.placed == (0, 0, width, height):
        return part
    sample = np.full((height, width, 3), FILL, np.uint8)
    x0, y0, x1, y1 = max(to_left, 0), max(to_top, 0), min(to_right, width), min(to_bottom, height)
    sample[y0:y1, x0:x1] = part[y0 - to_top : y1 - to_top, x0 - to_left : x1 - to_left]
    return sample


def _as_image(pixels: npt.ArrayLike) -> Image:
    return np.asarray(pixels, np.uint8)


def _widened(rectangle: Rectangle, shape: tuple[int, ...]) -> Rectangle:
    left, top, right, bottom = rectangle
    return max(left - 2, 0), max(top - 2, 0), min(right + 2, shape[1]), min(bottom + 2, shape[0])


def sees(view: View, rectangle: Rectangle) -> bool:
    """Return whether a view can show anything of a rectangle of its image."""
    shown = view.source if view.placed else _widened(view.source, (1 << 30, 1 << 30))
    apart = shown[2] <= rectangle[0] or rectangle[2] <= shown[0]
    return not (apart or shown[3] <= rectangle[1] or rectangle[3] <= shown[1])


def map_objects(rows: Rows, polygons: Sequence[Points], view: View) -> Rows:
    """Return the boxes of a view's sample, `[m, 5]`, without those that hardly anything is left of.

    A box is kept when more than 2 px wide and high, under 100 times longer than wide, and with more
    than a tenth of its area left, a hundredth where its polygon is known. A polygon's box is that
    of what the sample shows of the polygon, not that of its turned box.

    Args:
        rows: corners in pixels of the image, `[n, 5]`.
        polygons: of each row, `[k, 2]` in pixels of the image, k = 0 for a box; or none at all.
        view: drawn for that image.
    """
    mapped, keep = _mapped(rows, polygons, view)
    return mapped[keep]


def map_shapes(rows: Rows, polygons: Sequence[Points], view: View) -> tuple[Rows, list[Points]]:
    """Return what `map_objects` does and the polygon of each row, in pixels of the sample.

    Polygons reach beyond the sample where their objects do. Every row must have one.
    """
    mapped, keep = _mapped(rows, polygons, view)
    shapes = []
    for place in np.flatnonzero(keep).tolist():
        points = np.column_stack([polygons[place], np.ones(len(polygons[place]))]) @ view.matrix.T
        shapes.append((points[:, :2] / points[:, 2:]).astype(np.float32))
    return mapped[keep], shapes


def _mapped(
    rows: Rows, polygons: Sequence[Points], view: View
) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Return the boxes of all rows in the sample, and which of them stay."""
    height, width = view.shape
    corners = np.ones((len(rows), 4, 3))
    corners[:, :, 0] = rows[:, [1, 3, 1, 3]]
    corners[:, :, 1] = rows[:, [2, 2, 4, 4]]
    mapped = corners @ view.matrix.T
    points = mapped[..., :2] / mapped[..., 2:]
    low = points.min(axis=1).clip(0, (width, height))
    high = points.max(axis=1).clip(0, (width, height))
    least = np.full(len(rows), LEAST_BOX_KEPT)
    if polygons:
        places, boxes = map_polygons(polygons, view.matrix, height, width)
        low[places], high[places], least[places] = boxes[:, :2], boxes[:, 2:], LEAST_POLYGON_KEPT
    sides = high - low
    before = (rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2]) * view.scale**2
    eps = 1e-16
    aspect = np.maximum(sides[:, 0] / (sides[:, 1] + eps), sides[:, 1] / (sides[:, 0] + eps))
    keep = (sides > _SMALLEST_BOX).all(axis=1) & (aspect < _LARGEST_ASPECT)
    keep &= sides.prod(axis=1) / (before + eps) > least
    return np.concatenate([rows[:, :1], low, high], axis=1).astype(np.float32), keep
