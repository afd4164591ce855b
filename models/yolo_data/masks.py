"""Masks of a sample: which object each of its pixels belongs to, at a fraction of its size.

Source: the numbering, the smaller object in front of the larger one, and pixels that are filled at
full size and then interpolated, as in the official segmentation recipe, in memplan's own words.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from memplan.errors import BadInputError

from .polygons import NO_POINTS, Points, bounds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .augment import Shape
    from .scan import LabelledImage

Mask = npt.NDArray[np.int16]


def outlined(
    images: Sequence[LabelledImage], path: Path, split: str
) -> tuple[list[LabelledImage], list[str]]:
    """Return images whose every object has a polygon, that of its box where it has no other.

    Also returns what to warn of, a line each.

    Args:
        images: of a split.
        path: of the data set's description, for messages.
        split: such as `train`.

    Raises:
        BadInputError: no object has a polygon.
    """
    num_objects = sum(len(image.labels) for image in images)
    num_boxes = num_objects - sum(len(p) > 0 for image in images for p in image.polygons)
    if num_boxes == num_objects:
        raise BadInputError(
            f"None of the {num_objects} objects in {split!r} of {path} has a polygon, which masks "
            "are learnt from: a row is a class and three or more points. Train a detector, such as "
            "--cfg gelan-c, or give polygons."
        )
    warning = (
        f"{num_boxes} of the {num_objects} objects in {split!r} of {path} have a box and no "
        "polygon: their masks are their boxes."
    )
    return [_outlined(image) for image in images], [warning] if num_boxes else []


def _outlined(image: LabelledImage) -> LabelledImage:
    known = image.polygons or (NO_POINTS,) * len(image.labels)
    polygons = [
        points if len(points) else _corners(row)
        for points, row in zip(known, image.labels, strict=True)
    ]
    return replace(image, polygons=tuple(polygons))


def _corners(row: npt.NDArray[np.float32]) -> Points:
    _, x, y, width, height = row.tolist()
    left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return np.array(corners, np.float32)


def rasterise(polygons: Sequence[Points], shape: Shape, ratio: int) -> Mask:
    """Return which polygon each pixel belongs to: 1 for the first, 0 for none.

    Where polygons overlap, the pixel is that of the smaller one.

    Args:
        polygons: in pixels of the sample, `[k, 2]` each; may reach beyond it.
        shape: height and width of the sample, multiples of `ratio`, pixels.
        ratio: pixels of the sample a pixel of the result, >= 1.

    Returns:
        int16 `[height / ratio, width / ratio]`.
    """
    pieces = [_filled(points, shape, ratio) for points in polygons]
    mask = np.zeros((shape[0] // ratio, shape[1] // ratio), np.int16)
    areas = np.array([piece.sum() for piece, _, _ in pieces])
    for place in np.argsort(-areas, kind="stable").tolist():
        piece, top, left = pieces[place]
        part = mask[top : top + piece.shape[0], left : left + piece.shape[1]]
        part[piece > 0] = place + 1
    return mask


def _filled(points: Points, shape: Shape, ratio: int) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Return a polygon's pixels in a rectangle around it, and that rectangle's top and left."""
    whole = points.astype(np.int32)
    limits = np.array([shape[1], shape[0]])
    low, high = (side.clip(0, limits) for side in bounds(whole.astype(np.float32)))
    left, top = (low // ratio).astype(int).tolist()
    right, bottom = np.minimum(high // ratio + 1, limits // ratio).astype(int).tolist()
    if right <= left or bottom <= top:
        return np.zeros((0, 0), np.uint8), 0, 0
    canvas = np.zeros(((bottom - top) * ratio, (right - left) * ratio), np.uint8)
    cv2.fillPoly(canvas, [whole - np.array([left, top], np.int32) * ratio], 1)
    small = cv2.resize(canvas, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    return np.asarray(small, np.uint8), top, left
