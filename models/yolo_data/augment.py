"""Augmentation of images and boxes: mixup, colour, flips, letterbox; and boxes placed in pixels.

Images are uint8 `[height, width, 3]` in OpenCV's channel order; rows are float32 `[n, 5]`: class,
left, top, right, bottom in pixels of their image. Strengths have the official names.

Source: mixup, Zhang et al. 2018, eq. 1; strengths and order of the official YOLOv9 recipe, in
memplan's own words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

Image = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]
Sample = tuple[Image, Rows]
Shape = tuple[int, int]
"""Height and width, pixels."""

FILL = 114  # grey where there is no image; the official recipe's value
_MIXUP_BETA = 32.0


def letterbox(
    image: Image, shape: Shape, *, scale_up: bool
) -> tuple[Image, tuple[float, float, float, float]]:
    """Return the image centred on a grey rectangle, with scale x, scale y, left, top of the map.

    Args:
        image: `[h, w, 3]`.
        shape: height and width of the rectangle, pixels.
        scale_up: enlarge images smaller than the rectangle.
    """
    height, width = image.shape[:2]
    ratio = min(shape[0] / height, shape[1] / width)
    if not scale_up:
        ratio = min(ratio, 1.0)
    new_height, new_width = max(round(height * ratio), 1), max(round(width * ratio), 1)
    image = resize(image, new_height, new_width)
    top, left = (shape[0] - new_height) // 2, (shape[1] - new_width) // 2
    if (new_height, new_width) != shape:
        canvas = np.full((*shape, 3), FILL, np.uint8)
        canvas[top : top + new_height, left : left + new_width] = image
        image = canvas
    return image, (new_width / width, new_height / height, float(left), float(top))


def resize(image: Image, height: int, width: int, *, averages: bool = False) -> Image:
    """Return the image at another size, bilinear; with `averages`, averaged when it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if averages and shrinks else cv2.INTER_LINEAR
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


def normalise_boxes(rows: Rows, shape: Shape) -> Rows:
    """Return pixel corners of an image as normalised class, centre, size; `[n, 5]`."""
    height, width = shape
    labels = np.empty_like(rows)
    labels[:, 0] = rows[:, 0]
    labels[:, 1] = (rows[:, 1] + rows[:, 3]) / (2 * width)
    labels[:, 2] = (rows[:, 2] + rows[:, 4]) / (2 * height)
    labels[:, 3] = (rows[:, 3] - rows[:, 1]) / width
    labels[:, 4] = (rows[:, 4] - rows[:, 2]) / height
    return labels


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
    return flip(image, rows, *draw_flips(strengths, rng))


def draw_flips(strengths: Mapping[str, float], rng: np.random.Generator) -> tuple[bool, bool]:
    """Return whether a sample is turned upside down, and whether it is mirrored."""
    upside_down, mirrored = rng.random(2) < (strengths["flipud"], strengths["fliplr"])
    return bool(upside_down), bool(mirrored)


def flip(image: Image, rows: Rows, upside_down: bool, mirrored: bool) -> Sample:
    """Return the image turned upside down, mirrored, both or as it is, with its boxes."""
    height, width = image.shape[:2]
    if upside_down:
        image = np.asarray(cv2.flip(image, 0), np.uint8)
        rows = rows[:, [0, 1, 4, 3, 2]] * np.array([1, 1, -1, 1, -1], np.float32)
        rows[:, [2, 4]] += height
    if mirrored:
        image = np.asarray(cv2.flip(image, 1), np.uint8)
        rows = rows[:, [0, 3, 2, 1, 4]] * np.array([1, -1, 1, -1, 1], np.float32)
        rows[:, [1, 3]] += width
    return image, rows
