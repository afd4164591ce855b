"""COCO's matching of detections with objects, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

Floats = npt.NDArray[np.float64]

RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads precision: its own 101 points."""

_MAX_DETECTIONS = 100  # of a class in an image; COCO's own setting
_EVERY_AREA = [0.0, 1e10]


@dataclass(frozen=True)
class ImageRecord:
    """The objects and detections of one image, in its own pixels."""

    height: int
    width: int
    objects: Floats
    """Rows class, left, top, right, bottom; `[n, 5]`."""
    detections: Floats
    """Rows left, top, right, bottom, score, class; best first, `[k, 6]`."""


@dataclass(frozen=True)
class PicturedImage:
    """A validation image as the model saw it, with its boxes in that image's pixels."""

    image: torch.Tensor
    """uint8 `[3, h, w]`, RGB."""
    objects: Floats
    """Rows left, top, right, bottom, class."""
    detections: Floats
    """Rows left, top, right, bottom, score, class."""


@dataclass(frozen=True)
class Matching:
    """What COCO makes of all images; K classes."""

    precision: Floats
    """Interpolated precision `[10, 101, K]` at IoUs 0.50 to 0.95 and `RECALLS`; zeros for a class
    without objects."""
    scores: tuple[Floats, ...]
    """Each class's detections' scores, any order."""
    correct: tuple[npt.NDArray[np.bool_], ...]
    """Whether each of them matched an object at an IoU of 0.50."""


def match(images: Mapping[int, ImageRecord], num_classes: int) -> Matching:
    """Return COCO's precision and matches; all zero where there is no object or no detection."""
    objects = _annotations(images, is_detection=False)
    detections = _annotations(images, is_detection=True)
    if not objects or not detections:
        scores = _scores_of(images, num_classes)
        wrong = tuple(np.zeros(len(values), np.bool_) for values in scores)
        return Matching(np.zeros((10, len(RECALLS), num_classes)), scores, wrong)
    evaluation = _evaluate(images, objects, detections, num_classes)
    # [IoU, recall, class, area, detections]; -1 where a class has no objects
    precision = np.maximum(evaluation.eval["precision"][..., 0, 0], 0)
    found, correct = [], []
    # One entry for each class and image, class by class, as areas and detections have one setting.
    for entries in np.array_split(np.array(evaluation.evalImgs, dtype=object), num_classes):
        matched = [entry for entry in entries if entry is not None]
        found.append(np.concatenate([np.zeros(0), *(entry["dtScores"] for entry in matched)]))
        hits = [np.asarray(entry["dtMatches"][0] > 0) for entry in matched]
        correct.append(np.concatenate([np.zeros(0, np.bool_), *hits]))
    return Matching(precision, tuple(found), tuple(correct))


def _scores_of(images: Mapping[int, ImageRecord], num_classes: int) -> tuple[Floats, ...]:
    rows = np.concatenate([np.zeros((0, 6)), *(image.detections for image in images.values())])
    return tuple(rows[rows[:, 5] == label, 4] for label in range(num_classes))


def _annotations(images: Mapping[int, ImageRecord], *, is_detection: bool) -> list[dict[str, Any]]:
    """Return COCO annotations; numbers start at 1, for COCO reads 0 as no match."""
    found: list[dict[str, Any]] = []
    for image_id, image in images.items():
        rows = image.detections if is_detection else image.objects
        corners = rows[:, :4] if is_detection else rows[:, 1:]
        labels = rows[:, 5 if is_detection else 0]
        sizes = corners[:, 2:] - corners[:, :2]
        boxes = np.concatenate([corners[:, :2], sizes], axis=1).tolist()
        scores: Sequence[float] = rows[:, 4].tolist() if is_detection else [1.0] * len(rows)
        found += [
            {
                "id": number,
                "image_id": image_id,
                "category_id": int(label),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": score,
            }
            for number, (box, label, score) in enumerate(
                zip(boxes, labels, scores, strict=True), start=len(found) + 1
            )
        ]
    return found


def _evaluate(
    images: Mapping[int, ImageRecord],
    objects: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    num_classes: int,
) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    shapes = [
        {"id": image_id, "height": image.height, "width": image.width}
        for image_id, image in images.items()
    ]
    categories = [{"id": label, "name": str(label)} for label in range(num_classes)]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports progress by print
        sides = []
        for annotations in (objects, detections):
            side = COCO()
            side.dataset = {"images": shapes, "categories": categories, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.params.areaRng = [_EVERY_AREA]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [_MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
