"""Polygons of objects: placed, clipped to a rectangle, mirrored, copied within an image.

Source: clipping, Sutherland and Hodgman 1974, "Reentrant polygon clipping"; copy-paste, Ghiasi et
al. 2021, "Simple copy-paste is a strong data augmentation method", with the mirrored copies within
one image and the overlap bound of the official YOLOv9 recipe, in memplan's own words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Points = npt.NDArray[np.float32]
NO_POINTS: Points = np.zeros((0, 2), np.float32)
"""The polygon of an object that is known by its box alone."""
_MOST_COVERED = 0.30  # of any object's box by a copy's box
_FRACTION_BITS = 4  # of the sixteenths of a pixel that OpenCV fills polygons with


class Copy(NamedTuple):
    """An object that is pasted a second time, mirrored."""

    place: int
    """Its row."""
    polygon: Points
    """Where the copy is, pixels `[k, 2]`."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the copy."""


def place_polygons(
    polygons: Sequence[Points], height: float, width: float, left: float, top: float
) -> list[Points]:
    """Return normalised polygons in pixels of an image placed at a point."""
    scale, offset = np.array([width, height], np.float32), np.array([left, top], np.float32)
    return [points * scale + offset if len(points) else NO_POINTS for points in polygons]


def map_polygons(
    polygons: Sequence[Points], matrix: npt.NDArray[np.float64], height: float, width: float
) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Return which of the polygons have points, and the boxes of what an image shows of them.

    Args:
        polygons: in the pixels that `matrix` maps from; those without points are passed over.
        matrix: homogeneous, `[3, 3]`, to the image's pixels.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        Places among `polygons`, and left, top, right, bottom `[k, 4]`, zeros where nothing shows.
    """
    places = [place for place, points in enumerate(polygons) if len(points)]
    if not places:
        return [], np.zeros((0, 4))
    # All at once: a call a polygon would take longer than everything else about a sample's boxes.
    counts = [len(polygons[place]) for place in places]
    points = np.concatenate([polygons[place] for place in places])
    mapped = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    mapped = mapped[:, :2] / mapped[:, 2:]
    starts = np.cumsum([0, *counts[:-1]])
    low, high = np.minimum.reduceat(mapped, starts), np.maximum.reduceat(mapped, starts)
    limits = np.array([width, height])
    crosses = ~((low >= 0).all(axis=1) & (high <= limits).all(axis=1))
    for place in np.flatnonzero(crosses):
        part = mapped[starts[place] : starts[place] + counts[place]].astype(np.float32)
        low[place], high[place] = bounds(clip_polygon(part, height, width))
    return places, np.concatenate([low, high], axis=1)


def bounds(points: Points) -> tuple[Points, Points]:
    """Return the lowest and the highest x and y, zeros where there is no point."""
    if not len(points):
        return np.zeros(2, np.float32), np.zeros(2, np.float32)
    return points.min(axis=0), points.max(axis=0)


def clip_polygon(points: Points, height: float, width: float) -> Points:
    """Return the part of a polygon within an image, `[k, 2]`, k = 0 where nothing is.

    Exact but for hollow polygons: parts that the border separates stay joined along it, which
    leaves the box around them as it is.
    """
    limits = np.array([width, height], np.float32)
    low, high = bounds(points)
    if (low >= 0).all() and (high <= limits).all():
        return points
    if (low > limits).any() or (high < 0).any():
        return NO_POINTS
    for axis in (0, 1):
        for sign, bound in ((1.0, 0.0), (-1.0, -limits[axis])):
            if not len(points):
                return NO_POINTS
            distance = sign * points[:, axis] - bound
            if (distance >= 0).all():
                continue
            points = _clip_half_plane(points, distance)
    return points.clip(0, limits)


def _clip_half_plane(points: Points, distance: Points) -> Points:
    """Return the polygon's part where the distance, given at its points, is not below 0."""
    following, next_distance = np.roll(points, -1, axis=0), np.roll(distance, -1)
    inside = distance >= 0
    crosses = inside != (next_distance >= 0)
    gap = np.where(crosses, distance - next_distance, 1)
    crossing = points + (distance / gap)[:, None] * (following - points)
    both = np.stack([points, crossing], axis=1)
    return np.asarray(both[np.stack([inside, crosses], axis=1)], np.float32)


def choose_copies(
    rows: npt.NDArray[np.float32],
    polygons: Sequence[Points],
    share: float,
    width: int,
    rng: np.random.Generator,
) -> list[Copy]:
    """Return which objects are pasted again, mirrored about the image's middle.

    Of the n objects with a polygon round(share * n) are drawn; a copy whose box would cover 30 % or
    more of any object's box, of copies too, is not pasted.

    Args:
        rows: class and corners in pixels, `[n, 5]`.
        polygons: of each row, in pixels; without points for a box.
        share: of the objects, 0 to 1.
        width: of the image, pixels.
        rng: draws the objects.
    """
    with_polygon = [place for place, points in enumerate(polygons) if len(points)]
    num_copies = round(share * len(with_polygon))
    if not num_copies:
        return []
    boxes = rows[:, 1:].astype(np.float64)
    copies = []
    for place in rng.choice(with_polygon, num_copies, replace=False).tolist():
        left, top, right, bottom = boxes[place].tolist()
        box = (width - right, top, width - left, bottom)
        if (_covered(boxes, box) >= _MOST_COVERED).any():
            continue
        mirrored = polygons[place] * np.array([-1, 1], np.float32)
        mirrored[:, 0] += width
        copies.append(Copy(place, mirrored, box))
        boxes = np.concatenate([boxes, np.array([box])])
    return copies


def _covered(
    boxes: npt.NDArray[np.float64], box: tuple[float, float, float, float]
) -> npt.NDArray[np.float64]:
    """Return the share of each box that another box covers."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(axis=1)
    return np.asarray(shared / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).clip(1e-9))


def paste_copies(image: npt.NDArray[np.uint8], copies: Sequence[Copy]) -> None:
    """Draw the copies into the image, each from what the image showed before any was drawn."""
    height, width = image.shape[:2]
    patches = []
    for copy in copies:
        left, right = max(int(copy.box[0]), 0), min(int(np.ceil(copy.box[2])), width)
        top, bottom = max(int(copy.box[1]), 0), min(int(np.ceil(copy.box[3])), height)
        if right <= left or bottom <= top:
            continue
        patch = image[top:bottom, width - right : width - left][:, ::-1].copy()
        mask = np.zeros(patch.shape[:2], np.uint8)
        local = copy.polygon - np.array([left, top], np.float32)
        fixed = np.rint(local * (1 << _FRACTION_BITS)).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 1, shift=_FRACTION_BITS)
        patches.append((slice(top, bottom), slice(left, right), patch, mask.astype(bool)))
    for rows, columns, patch, inside in patches:
        image[rows, columns][inside] = patch[inside]
