"""Precision, recall and F1 against confidence, and precision against recall, class by class."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .coco import RECALLS, Floats, Matching

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONFIDENCES = np.linspace(0, 1, 1000)
"""Where the curves against confidence are read, as the official tool does."""

_SMOOTHED_OVER = 101  # confidences around each; the official tool's tenth of the range


@dataclass(frozen=True)
class Curves:
    """The curves of K classes, at an IoU of 0.50; classes without objects have zeros."""

    precision: Floats
    """`[K, 1000]`, at `CONFIDENCES`; 1 where no detection is left."""
    recall: Floats
    """`[K, 1000]`."""
    f1: Floats
    """`[K, 1000]`."""
    last_confidence: Floats
    """The highest score of each class's detections, `[K]`; 0 where it has none."""
    precision_at_recall: Floats
    """COCO's interpolated precision `[K, 101]` at `RECALLS`; its mean is the class's mAP50."""
    has_objects: npt.NDArray[np.bool_]
    """`[K]`; means are over these classes."""

    @property
    def best(self) -> int:
        """The place in `CONFIDENCES` where the classes' mean F1, smoothed, is highest.

        Source: the official evaluation, which reports precision and recall there: a moving mean
        over a tenth of the confidences, the ends repeated.
        """
        if not self.has_objects.any():
            return 0
        mean = self.f1[self.has_objects].mean(axis=0)
        padded = np.pad(mean, _SMOOTHED_OVER // 2, mode="edge")
        window = np.full(_SMOOTHED_OVER, 1 / _SMOOTHED_OVER)
        return int(np.convolve(padded, window, mode="valid").argmax())


def curves_of(matching: Matching, num_objects: npt.NDArray[np.int64]) -> Curves:
    """Return the curves of a matching, linear between the scores of detections.

    Args:
        matching: of all images.
        num_objects: by class, `[K]`.
    """
    shape = (len(num_objects), len(CONFIDENCES))
    precision, recall, last = np.zeros(shape), np.zeros(shape), np.zeros(len(num_objects))
    for label, (scores, correct) in enumerate(zip(matching.scores, matching.correct, strict=True)):
        if not num_objects[label] or not len(scores):
            continue
        order = np.argsort(-scores, kind="stable")
        hits = correct[order].cumsum()
        rising = scores[order][::-1]
        at_score = (hits / np.arange(1, len(order) + 1))[::-1]
        precision[label] = np.interp(CONFIDENCES, rising, at_score, right=1)
        found = (hits / num_objects[label])[::-1]
        recall[label] = np.interp(CONFIDENCES, rising, found, right=0)
        last[label] = scores.max()
    return Curves(
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / np.maximum(precision + recall, 1e-16),
        last_confidence=last,
        precision_at_recall=matching.precision[0].T,
        has_objects=num_objects > 0,
    )


@dataclass(frozen=True)
class Family:
    """One quantity of all classes against a common x, ready to be written or drawn."""

    name: str
    """The file's name without its ending."""
    title: str
    x_label: str
    y_label: str
    x: Floats
    rows: Floats
    """`[classes, x]`, of the classes that have objects; nan where not defined."""
    mean: Floats
    """Over the classes, `[x]`; nan where it is defined for none."""
    class_names: tuple[str, ...]
    """Of the rows."""


def families(curves: Curves, class_names: Sequence[str]) -> list[Family]:
    """Return the four curves: precision-recall, F1, precision and recall against confidence.

    Precision is not defined, and left out, above a class's highest score; its mean is over the
    classes that still have detections. F1 and recall are 0 there.
    """
    shown = np.flatnonzero(curves.has_objects)
    names = tuple(class_names[int(label)] for label in shown)
    beyond = CONFIDENCES[None] > curves.last_confidence[shown, None]
    precision = np.where(beyond, np.nan, curves.precision[shown])
    against = ("Confidence", CONFIDENCES)
    given = [
        ("precision_recall", "Precision against recall", "Recall", "Precision", RECALLS,
         curves.precision_at_recall[shown]),
        ("f1", "F1 against confidence", against[0], "F1", against[1], curves.f1[shown]),
        ("precision", "Precision against confidence", against[0], "Precision", against[1],
         precision),
        ("recall", "Recall against confidence", against[0], "Recall", against[1],
         curves.recall[shown]),
    ]  # fmt: skip
    return [Family(*facts, _mean(facts[-1]), names) for facts in given]


def _mean(rows: Floats) -> Floats:
    """Return the mean over rows where they are numbers, nan where none is."""
    known = ~np.isnan(rows)
    count = known.sum(axis=0)
    total = np.where(known, rows, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def write_family(path: Path, family: Family) -> None:
    """Write a curve as a table: x, the mean as `all`, and a column a class; empty is undefined."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([family.x_label.lower(), "all", *family.class_names])
        for x, mean, column in zip(family.x, family.mean, family.rows.T, strict=True):
            writer.writerow([f"{x:.3f}", *("" if np.isnan(v) else f"{v:.6f}"
                                           for v in (mean, *column))])  # fmt: skip
