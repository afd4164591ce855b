"""Non-maximum suppression of a batch of raw predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchvision.ops import nms

if TYPE_CHECKING:
    from collections.abc import Sequence


def non_max_suppression(
    predictions: torch.Tensor,
    *,
    confidence: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    max_candidates: int = 30000,
    classes: Sequence[int] = (),
    agnostic: bool = False,
    multi_label: bool = True,
    num_extra: int = 0,
) -> list[torch.Tensor]:
    """Return the detections of each image, best first: float32 `[k, 6]`, k <= `max_detections`.

    There is no time limit: no image goes without its
    detections because others took long.

    Args:
        predictions: `[B, 4 + num_classes + num_extra, A]`: centre x, centre y, width, height in
            pixels, then scores from 0 to 1, then what detections keep, such as coefficients.
        confidence: the least score of a detection.
        iou: two boxes of a class that overlap more are one detection.
        max_detections: kept in an image.
        max_candidates: considered in an image, the best.
        classes: that count; none means all.
        agnostic: boxes of different classes that overlap are one detection too, of the best class.
        multi_label: a box may be detected as several classes, as evaluation wants; else it is of
            the class it is surest of, as in pictures.
        num_extra: rows that are no scores.

    Returns:
        Rows left, top, right, bottom in pixels, score, class, then the `num_extra` kept.
    """
    found = []
    for image in predictions.detach().float():
        boxes = image[: len(image) - num_extra]
        rows, anchors = _suppress(
            _chosen(boxes, classes, multi_label=multi_label),
            confidence,
            iou,
            max_detections,
            max_candidates,
            agnostic,
        )
        extra = image[len(boxes) :, anchors].T
        found.append(torch.cat([rows, extra], dim=1) if num_extra else rows)
    return found


def _chosen(prediction: torch.Tensor, classes: Sequence[int], *, multi_label: bool) -> torch.Tensor:
    """Return the predictions with scores of 0 for classes that do not count."""
    if multi_label and not classes:
        return prediction
    scores = prediction[4:]
    kept = torch.ones_like(scores, dtype=torch.bool)
    if classes:
        kept[[label for label in range(len(scores)) if label not in set(classes)]] = False
    if not multi_label:
        # Before classes are left out: what is surely another class is not found as one of these.
        best = scores.argmax(0, keepdim=True)
        kept &= torch.zeros_like(kept).scatter_(0, best, value=True)
    return torch.cat([prediction[:4], scores * kept])


def _suppress(
    prediction: torch.Tensor,
    confidence: float,
    iou: float,
    most: int,
    max_candidates: int,
    agnostic: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows that are kept and the anchors that they are of."""
    scores = prediction[4:]
    classes, anchors = torch.nonzero(scores > confidence, as_tuple=True)
    kept_scores, order = scores[classes, anchors].sort(descending=True, stable=True)
    order, kept_scores = order[:max_candidates], kept_scores[:max_candidates]
    labels = classes[order].to(prediction.dtype)
    centre, half = prediction[:2, anchors[order]].T, prediction[2:4, anchors[order]].T / 2
    boxes = torch.cat([centre - half, centre + half], dim=1)
    if not len(boxes):
        return prediction.new_zeros(0, 6), order
    # Classes are moved apart, so that one call suppresses within each alone; by no more than is
    # needed, for far from 0 float32 has too few digits left for small boxes.
    span = 0 if agnostic else boxes.max() - boxes.min() + 1
    kept = nms(boxes + labels[:, None] * span, kept_scores, iou)[:most]
    rows = torch.cat([boxes, kept_scores[:, None], labels[:, None]], dim=1)[kept]
    return rows, anchors[order[kept]]
