"""Which class is taken for which: the confusion matrix of detections and objects."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from .coco import Floats, ImageRecord

CONFIDENCE = 0.25
"""The least score of a detection that counts; the official tool's."""
IOU = 0.45
"""The least overlap of a pair; the official tool's."""
BACKGROUND = "background"

Matrix = npt.NDArray[np.int64]


def confusion_matrix(images: Iterable[ImageRecord], num_classes: int) -> Matrix:
    """Return counts `[K + 1, K + 1]`: rows are what was predicted, columns what was there.

    Boxes are paired one to one, most overlap first, whatever their classes. The last row counts
    objects that nothing was paired with, the last column detections of background. Unlike the
    official matrix, detections in an image without any pair count too.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image in images:
        found = image.detections[image.detections[:, 4] >= CONFIDENCE]
        predicted, true = found[:, 5].astype(int), image.objects[:, 0].astype(int)
        pairs = _pairs(image.objects[:, 1:], found[:, :4])
        for row, column in pairs:
            matrix[predicted[column], true[row]] += 1
        missed = np.delete(true, [row for row, _ in pairs])
        wrong = np.delete(predicted, [column for _, column in pairs])
        matrix[num_classes] += np.bincount(missed, minlength=num_classes + 1)
        matrix[:, num_classes] += np.bincount(wrong, minlength=num_classes + 1)
    return matrix


def _pairs(objects: Floats, detections: Floats) -> list[tuple[int, int]]:
    """Return pairs of an object and a detection, each used once, most overlap first."""
    overlaps = _overlaps(objects, detections)
    rows, columns = np.nonzero(overlaps >= IOU)
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    pairs: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = set(), set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used[0] and column not in used[1]:
            pairs.append((row, column))
            used[0].add(row)
            used[1].add(column)
    return pairs


def _overlaps(one: Floats, other: Floats) -> Floats:
    """Return the IoU of every box of one with every box of the other, `[n, k]`."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.asarray(common / np.maximum(union, 1e-9), np.float64)


def write_matrix(path: Path, matrix: Matrix, class_names: Sequence[str]) -> None:
    """Write the counts as a table; the first cell states the confidence and the overlap."""
    names = [*class_names, BACKGROUND]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        corner = f"predicted (confidence >= {CONFIDENCE:g}, IoU >= {IOU:g})"
        writer.writerow([corner, *(f"true {name}" for name in names)])
        for name, counts in zip(names, matrix.tolist(), strict=True):
            writer.writerow([name, *counts])
