"""Task-aligned assignment of ground-truth boxes to anchors, in fixed shapes and little memory.

Source: Feng et al., "TOOD: Task-aligned One-stage Object Detection" (2021); values equal those of
the official YOLOv9 assigner. No step depends on the data for its shape or asks the device for a
value, so the assigner can be traced on fake tensors and never waits for a GPU.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import complete_iou_matrix

_INSIDE_EPS = 1e-9  # Source: official utils/tal/assigner.py: a centre on the border is outside.
_METRIC_EPS = 1e-9


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What each anchor is to predict."""

    box_index: Tensor
    """`[B, A]` int64: index of the assigned box in its image; 0 for background."""
    score: Tensor
    """`[B, A]` float32: target score of the box's class; 0 for background."""
    foreground: Tensor
    """`[B, A]` bool: whether a box is assigned."""


@dataclass(frozen=True, kw_only=True)
class TaskAlignedAssigner:
    """Chooses for every box the anchors whose prediction is best in class and place.

    The metric of a pair is score^alpha * CIoU^beta; the `topk` best anchors inside a box become its
    candidates, and an anchor wanted by several boxes goes to the one it overlaps most.
    """

    topk: int = 10
    """Candidates a box."""
    alpha: float = 0.5
    """Exponent of the predicted class probability."""
    beta: float = 6.0
    """Exponent of the overlap."""
    parts: int = 1
    """Parts of the batch, as even as can be, that are worked on one after another: temporaries
    are those of one part. The result does not depend on it."""

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, boxes: Tensor, anchors: Tensor, labels: Tensor, targets: Tensor
    ) -> Assignment:
        """Return the assignment of every anchor of a batch.

        Args:
            logits: class logits `[B, nc, A]`, any float dtype.
            boxes: predicted corner boxes `[B, A, 4]`, pixels, float32.
            anchors: anchor centres `[A, 2]`, pixels.
            labels: classes `[B, M]` int64, -1 where a row is padding; M >= 1.
            targets: corner boxes `[B, M, 4]`, pixels, float32.
        """
        batch, count = len(labels), min(self.parts, len(labels))
        bounds = [batch * part // count for part in range(count + 1)]
        parts = [
            self._assign(logits[a:b], boxes[a:b], anchors, labels[a:b], targets[a:b])
            for a, b in itertools.pairwise(bounds)
        ]
        if len(parts) == 1:
            return parts[0]
        return Assignment(
            box_index=torch.cat([p.box_index for p in parts]),
            score=torch.cat([p.score for p in parts]),
            foreground=torch.cat([p.foreground for p in parts]),
        )

    def _assign(
        self, logits: Tensor, boxes: Tensor, anchors: Tensor, labels: Tensor, targets: Tensor
    ) -> Assignment:
        """Return the assignment of a few images; comments count bytes a pair of box and anchor."""
        valid = (labels >= 0) & (targets.sum(-1) > 0)
        overlap = complete_iou_matrix(targets, boxes).clamp_(min=0)  # 16 inside, 4 stay
        metric = self._metric(logits, labels, overlap)  # 12 inside, 8 stay
        mask = self._candidates(metric, anchors, targets, valid)  # 14 inside, 12 stay
        mask = _resolve_conflicts(mask, overlap)  # 15 inside, 12 stay
        foreground = mask.amax(1) > 0
        box_index = mask.argmax(1)
        best_metric = metric.mul_(mask).amax(2)
        best_overlap = overlap.mul_(mask).amax(2)
        at = box_index.unsqueeze(1)
        score = metric.gather(1, at).squeeze(1) * best_overlap.gather(1, box_index)
        score = score / (best_metric.gather(1, box_index) + _METRIC_EPS)
        return Assignment(box_index=box_index, score=score, foreground=foreground)

    def _metric(self, logits: Tensor, labels: Tensor, overlap: Tensor) -> Tensor:
        """Return score^alpha * overlap^beta, `[B, M, A]`."""
        at = labels.clamp(min=0).unsqueeze(2).expand_as(overlap)
        # The probability is rounded to the logits' own dtype before the power, as under autocast.
        score = logits.gather(1, at).sigmoid_().to(overlap.dtype).pow_(self.alpha)
        return score.mul_(overlap.pow(self.beta))

    def _candidates(
        self, metric: Tensor, anchors: Tensor, targets: Tensor, valid: Tensor
    ) -> Tensor:
        """Return 1 where an anchor is a candidate of a box, else 0: `[B, M, A]` int32."""
        x, y = anchors.to(targets.dtype).unbind(-1)
        x1, y1, x2, y2 = targets.unsqueeze(2).unbind(-1)
        inside = (x - x1) > _INSIDE_EPS
        for high, low in ((y, y1), (x2, x), (y2, y)):
            inside &= (high - low) > _INSIDE_EPS
        masked = metric * inside
        best = masked.topk(min(self.topk, masked.shape[2]), dim=2).indices
        del masked
        chosen = inside.gather(2, best) & valid.unsqueeze(2)
        del inside
        mask = torch.zeros_like(metric, dtype=torch.int32)
        return mask.scatter_(2, best, chosen.int())


def _resolve_conflicts(mask: Tensor, overlap: Tensor) -> Tensor:
    """Return the mask with every anchor in at most one box: the one it overlaps most."""
    # int32 summed as int32: another result type would first copy the whole mask to that type.
    contested = mask.sum(1, keepdim=True, dtype=torch.int32) > 1
    owner = overlap.argmax(1, keepdim=True)
    indices = torch.arange(mask.shape[1], device=mask.device).view(1, -1, 1)
    keep = (owner == indices) | ~contested
    won = (owner == indices) & contested
    return mask.mul_(keep).masked_fill_(won, 1)
