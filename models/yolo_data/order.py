"""The order of an epoch's images: shuffled, by aspect ratio, or drawn by class weights.

Source: rectangles and image weights of the official YOLOv9 recipe, in memplan's own words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .augment import Shape
    from .scan import LabelledImage

Order = npt.NDArray[np.int64]
# Streams of random numbers that share a seed; a last entry of 0 would equal a missing one.
ORDER_STREAM, SAMPLE_STREAM, QUAD_STREAM = 1, 2, 3


def random_stream(seed: int, *numbers: int) -> np.random.Generator:
    """Return the generator that a seed and a few numbers fix, alike in every process."""
    return np.random.default_rng([seed & 0xFFFF_FFFF_FFFF_FFFF, *numbers])


def shuffled(num_images: int, seed: int, epoch: int) -> Order:
    """Return every image once, in an order that seed and epoch fix."""
    return random_stream(seed, epoch, ORDER_STREAM).permutation(num_images)


def by_aspect(images: Sequence[LabelledImage]) -> Order:
    """Return every image once, widest first; images of one aspect ratio in the split's order."""
    ratios = np.array([image.height / image.width for image in images])
    return np.argsort(ratios, kind="stable").astype(np.int64)


def weighted(weights: npt.NDArray[np.float64], seed: int, epoch: int) -> Order:
    """Return as many images as there are, drawn with replacement by weights that sum to 1."""
    rng = random_stream(seed, epoch, ORDER_STREAM)
    return rng.choice(len(weights), len(weights), p=weights)


def image_weights(
    images: Sequence[LabelledImage], class_scores: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return each image's share of an epoch, `[images]`, sum 1.

    A class weighs one over its number of objects, times (1 - mAP)^2; an image the sum over its
    objects. Images without objects are so never drawn, as in the official recipe. Where nothing
    weighs anything, because all classes are perfect, images are alike.

    Args:
        images: of the training split.
        class_scores: mAP@0.5:0.95 of each class at the last evaluation, 0 to 1, zeros before it.
    """
    num_classes = len(class_scores)
    counts = np.array(
        [np.bincount(image.labels[:, 0].astype(int), minlength=num_classes) for image in images]
    )
    class_weights = (1 - class_scores) ** 2 / counts.sum(axis=0).clip(1)
    weights = counts @ class_weights
    if weights.sum() <= 0:
        return np.full(len(images), 1 / len(images))
    return np.asarray(weights / weights.sum())


def common_shape(
    images: Sequence[LabelledImage], size: int, stride: int, padding: float = 0.0
) -> Shape:
    """Return height and width, multiples of the stride, that a batch's images all fit in.

    The longer side is that of the square samples, so no rectangle is larger than the square. A
    batch with both wide and tall images is square.

    Args:
        images: of the batch.
        size: the longer side of the images, pixels.
        stride: of the network, pixels.
        padding: strides added to both sides before rounding up; 0.5 in the official validation.
    """
    ratios = [image.height / image.width for image in images]
    lowest, highest = min(ratios), max(ratios)
    height, width = 1.0, 1.0
    if highest < 1:
        height = highest
    elif lowest > 1:
        width = 1 / lowest
    return _rounded(height * size, stride, padding), _rounded(width * size, stride, padding)


def _rounded(side: float, stride: int, padding: float) -> int:
    # As the official code reckons it, so that a rectangle is never of another size than there.
    return max(math.ceil(side / stride + padding), 1) * stride
