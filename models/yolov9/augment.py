"""Augmentation of images and boxes: mosaic, affine, mixup, colour, flips, letterbox.

Images are uint8 `[height, width, 3]` in OpenCV's channel order; rows are float32 `[n, 5]`: class,
left, top, right, bottom in pixels of their image. Strengths have the official names.

Source: mosaic, YOLOv4 (Bochkovskiy et al. 2020), section 3.3; mixup, Zhang et al. 2018, eq. 1;
strengths, filters and order of the official YOLOv9 recipe, in memplan's own words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Image = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]
Sample = tuple[Image, Rows]

FILL = 114  # grey where there is no image; the official recipe's value
_SMALLEST_BOX = 2  # pixels
_LARGEST_ASPECT = 100
_LEAST_AREA_KEPT = 0.10  # of a box before the affine map
_MIXUP_BETA = 32.0


def letterbox(
    image: Image, size: int, *, scale_up: bool
) -> tuple[Image, tuple[float, float, float, float]]:
    """Return the image centred on a grey square, with scale x, scale y, left, top of the map.

    Args:
        image: `[h, w, 3]`.
        size: side of the square, pixels.
        scale_up: enlarge images smaller than the square.
    """
    height, width = image.shape[:2]
    ratio = size / max(height, width)
    if not scale_up:
        ratio = min(ratio, 1.0)
    new_height, new_width = max(round(height * ratio), 1), max(round(width * ratio), 1)
    image = resize(image, new_height, new_width)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    if (new_height, new_width) != (size, size):
        canvas = np.full((size, size, 3), FILL, np.uint8)
        canvas[top : top + new_height, left : left + new_width] = image
        image = canvas
    return image, (new_width / width, new_height / height, float(left), float(top))


def resize(image: Image, height: int, width: int) -> Image:
    """Return the image at another size: averaged when shrinking, bilinear when growing."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def place_boxes(
    labels: Rows, height: float, width: float, left: float = 0.0, top: float = 0.0
) -> Rows:
    """Return normalised rows (class, centre, size) as pixel corners of an image placed at a point.

    Args:
        labels: class, x, y, width, height; normalised, `[n, 5]`.
        height: of the placed image, pixels.
        width: of the placed image, pixels.
        left: where the image begins, pixels.
        top: where the image begins, pixels.
    """
    rows = np.empty_like(labels)
    rows[:, 0] = labels[:, 0]
    half_width, half_height = labels[:, 3] / 2, labels[:, 4] / 2
    rows[:, 1] = (labels[:, 1] - half_width) * width + left
    rows[:, 2] = (labels[:, 2] - half_height) * height + top
    rows[:, 3] = (labels[:, 1] + half_width) * width + left
    rows[:, 4] = (labels[:, 2] + half_height) * height + top
    return rows


def normalise_boxes(rows: Rows, size: int) -> Rows:
    """Return pixel corners of a square image as normalised class, centre, size; `[n, 5]`."""
    labels = np.empty_like(rows)
    labels[:, 0] = rows[:, 0]
    labels[:, 1] = (rows[:, 1] + rows[:, 3]) / (2 * size)
    labels[:, 2] = (rows[:, 2] + rows[:, 4]) / (2 * size)
    labels[:, 3] = (rows[:, 3] - rows[:, 1]) / size
    labels[:, 4] = (rows[:, 4] - rows[:, 2]) / size
    return labels


def mosaic(parts: Sequence[tuple[Image, Rows]], size: int, rng: np.random.Generator) -> Sample:
    """Return four images around a random centre on a canvas of twice the size.

    Args:
        parts: four images whose longer side is `size`, with normalised labels.
        size: side of the training image, pixels; the canvas has twice that.
        rng: draws the centre within the middle half of the canvas.
    """
    canvas = np.full((2 * size, 2 * size, 3), FILL, np.uint8)
    centre_x, centre_y = (int(rng.uniform(size / 2, 3 * size / 2)) for _ in range(2))
    rows = []
    for position, (image, labels) in enumerate(parts):
        height, width = image.shape[:2]
        left = centre_x if position % 2 else centre_x - width
        top = centre_y if position // 2 else centre_y - height
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + width, 2 * size), min(top + height, 2 * size)
        canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
        rows.append(place_boxes(labels, height, width, left, top))
    return canvas, _clip(np.concatenate(rows), 2 * size)


def _clip(rows: Rows, size: int) -> Rows:
    """Return the boxes within a square, without those that hardly anything is left of.

    The official recipe clips here without looking, and so trains on slivers at the outer border.
    """
    clipped = rows.copy()
    np.clip(rows[:, 1:], 0, size, out=clipped[:, 1:])
    return clipped[_areas(clipped) > _LEAST_AREA_KEPT * _areas(rows)]


def _areas(rows: Rows) -> Rows:
    return np.asarray((rows[:, 3] - rows[:, 1]) * (rows[:, 4] - rows[:, 2]))


def random_affine(
    image: Image, rows: Rows, size: int, strengths: Mapping[str, float], rng: np.random.Generator
) -> Sample:
    """Return the image's middle, randomly turned, scaled, sheared and moved, and the boxes kept.

    A box is kept when more than 2 px wide and high, under 100 times longer than wide, and with more
    than a tenth of its area left.

    Args:
        image: square or not, `[h, w, 3]`.
        rows: corners in pixels of `image`, `[n, 5]`.
        size: side of the result, pixels.
        strengths: `degrees`, `translate` and `scale` (fractions), `shear` (degrees), `perspective`.
        rng: draws every parameter, in a fixed order.
    """
    matrix, scale = _affine_matrix(image.shape[:2], size, strengths, rng)
    fill = (FILL, FILL, FILL)
    if strengths["perspective"]:
        warped = cv2.warpPerspective(image, matrix, (size, size), borderValue=fill)
    elif image.shape[:2] != (size, size) or not np.array_equal(matrix, np.eye(3)):
        warped = cv2.warpAffine(image, matrix[:2], (size, size), borderValue=fill)
    else:
        warped = image
    return np.asarray(warped, np.uint8), _map_boxes(rows, matrix, scale, size)


def _affine_matrix(
    shape: tuple[int, ...], size: int, strengths: Mapping[str, float], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the 3 x 3 map from image to result pixels, and its scale."""
    perspective, degrees, shear = (strengths[k] for k in ("perspective", "degrees", "shear"))
    to_origin = np.eye(3)
    to_origin[:2, 2] = -shape[1] / 2, -shape[0] / 2
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
    move[:2, 2] = size * rng.uniform(0.5 - strengths["translate"], 0.5 + strengths["translate"], 2)
    return move @ slant @ turn @ tilt @ to_origin, scale


def _map_boxes(rows: Rows, matrix: npt.NDArray[np.float64], scale: float, size: int) -> Rows:
    """Return the boxes around the mapped corners, clipped to the image, without the lost ones."""
    corners = np.ones((len(rows), 4, 3))
    corners[:, :, 0] = rows[:, [1, 3, 1, 3]]
    corners[:, :, 1] = rows[:, [2, 2, 4, 4]]
    mapped = corners @ matrix.T
    points = mapped[..., :2] / mapped[..., 2:]
    low = points.min(axis=1).clip(0, size)
    high = points.max(axis=1).clip(0, size)
    width, height = (high - low).T
    before = _areas(rows) * scale**2
    eps = 1e-16
    aspect = np.maximum(width / (height + eps), height / (width + eps))
    keep = (width > _SMALLEST_BOX) & (height > _SMALLEST_BOX) & (aspect < _LARGEST_ASPECT)
    keep &= width * height / (before + eps) > _LEAST_AREA_KEPT
    kept = np.concatenate([rows[:, :1], low, high], axis=1)[keep]
    return np.asarray(kept, np.float32)


def mix(one: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Return two images blended by a share from Beta(32, 32), with the boxes of both."""
    share = float(rng.beta(_MIXUP_BETA, _MIXUP_BETA))
    image = cv2.addWeighted(one[0], share, other[0], 1 - share, 0.0)
    return np.asarray(image, np.uint8), np.concatenate([one[1], other[1]])


def shift_colours(image: Image, strengths: Mapping[str, float], rng: np.random.Generator) -> Image:
    """Return the image with hue, saturation and value scaled by random factors around 1.

    Args:
        image: `[h, w, 3]`, BGR.
        strengths: `hsv_h`, `hsv_s`, `hsv_v`: the largest relative change of each.
        rng: draws the three factors.
    """
    spans = np.array([strengths["hsv_h"], strengths["hsv_s"], strengths["hsv_v"]])
    factors = 1 + rng.uniform(-1, 1, 3) * spans
    if not spans.any():
        return image
    levels = np.arange(256)[:, None] * factors
    levels[:, 0] %= 180  # OpenCV's hue circle has 180 steps
    table = np.clip(levels, 0, 255).astype(np.uint8).reshape(256, 1, 3)
    shifted = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
    return np.asarray(cv2.cvtColor(shifted, cv2.COLOR_HSV2BGR), np.uint8)


def random_flip(
    image: Image, rows: Rows, strengths: Mapping[str, float], rng: np.random.Generator
) -> Sample:
    """Return the image mirrored with the probabilities `flipud` and `fliplr`."""
    upside_down, mirrored = rng.random(2) < (strengths["flipud"], strengths["fliplr"])
    height, width = image.shape[:2]
    if upside_down:
        image = image[::-1]
        rows = rows[:, [0, 1, 4, 3, 2]] * np.array([1, 1, -1, 1, -1], np.float32)
        rows[:, [2, 4]] += height
    if mirrored:
        image = image[:, ::-1]
        rows = rows[:, [0, 3, 2, 1, 4]] * np.array([1, -1, 1, -1, 1], np.float32)
        rows[:, [1, 3]] += width
    return image, rows
