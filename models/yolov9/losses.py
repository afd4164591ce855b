"""The training loss: classification, complete IoU and distribution focal loss, a branch at a time.

Shapes depend only on the batch, the padded number of boxes, the anchors and the classes; nothing
waits for the device. Source: values equal those of the official loss_tal, loss_tal_dual and
loss_tal_triple at their constants.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from memplan.errors import UsageError

from .assigner import Assignment, TaskAlignedAssigner
from .boxes import boxes_from_distances, complete_iou, distances_from_boxes, make_anchors
from .heads import REG_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

_FOCAL_ALPHA = 0.25  # Source: Lin et al., "Focal Loss" (2017), section 5.1.
_LARGEST_DISTANCE = REG_MAX - 1 - 0.01  # keeps the upper of the two bins inside the range
Targets = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class LossGains:
    """Weights of the loss's terms; the defaults are the official constants."""

    box: float = 7.5
    """Gain of the box loss."""
    cls: float = 0.5
    """Gain of the classification loss."""
    dfl: float = 1.5
    """Gain of the distribution focal loss."""
    auxiliary: float = 0.25
    """Factor on all three terms of a branch that is not the main (last) one."""
    cls_pw: float = 1.0
    """Weight of the positive term of the classification loss."""
    fl_gamma: float = 0.0
    """Focusing exponent of the classification loss; 0 means plain cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class DetectionLoss:
    """Callable (outputs, targets) -> (total, parts) over one or more branches of raw maps."""

    nc: int
    """Number of classes."""
    strides: tuple[float, ...] = (8.0, 16.0, 32.0)
    """Pixels a cell of each level."""
    branches: int = 1
    """Branches in the outputs, the main one last."""
    gains: LossGains = field(default_factory=LossGains)
    """Weights of the terms."""
    assigner_parts: int = 1
    """Parts of the batch that the assigner works on one after another."""

    def __call__(self, outputs: Sequence[object], targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch.

        Args:
            outputs: raw maps as the head returns them in training: `[B, 64 + nc, h, w]` a level; a
                list of such lists for a head with several branches.
            targets: padded boxes `[B, M, 5]` (class, centre x, centre y, width, height, normalised;
                class -1 is padding), as `pad_targets` makes them; or a pair of such a tensor and a
                mask `[B, M]`; or rows `[n, 6]`, which are padded here and so wait for the device.

        Returns:
            The total, scaled by the batch size, differentiable; and its parts `[3]` (box, cls, dfl)
            with gains but without the batch size, detached.
        """
        branches = [outputs] if self.branches == 1 else list(outputs)
        maps: list[list[Tensor]] = [list(b) for b in branches]  # type: ignore[call-overload]
        batch = maps[0][0].shape[0]
        padded = as_padded(targets, batch, maps[0][0].device)
        parts = torch.zeros(3, device=maps[0][0].device)
        for index, branch in enumerate(maps):
            factor = 1.0 if index == len(maps) - 1 else self.gains.auxiliary
            parts = parts + self._branch(branch, padded) * factor
        return parts.sum() * batch, parts.detach()

    def _branch(self, maps: list[Tensor], padded: Tensor) -> Tensor:
        return self._matched(maps, padded)[0]

    def _matched(
        self, maps: list[Tensor], padded: Tensor
    ) -> tuple[Tensor, tuple[Assignment, Tensor] | None]:
        """Return (box, cls, dfl) of one branch, with gains, and what its anchors are to find.

        That is the assignment and the boxes in pixels `[B, M, 4]`; None where there is no box.
        """
        # Joined apart, because backward needs the logits long after the distributions are gone.
        levels = [torch.split(m.flatten(2), [4 * REG_MAX, self.nc], 1) for m in maps]
        distributions, logits = (torch.cat(part, 2) for part in zip(*levels, strict=True))
        # Half precision comes in, float32 is inside, with or without autocast: cells beyond 128
        # need more bits than bfloat16 has, and the sum over all anchors more range than float16.
        precise = torch.promote_types(logits.dtype, torch.float32)
        anchors, strides = make_anchors(maps, self.strides, precise)
        height, width = (size * self.strides[0] for size in maps[0].shape[2:])
        labels, boxes = _pixel_boxes(padded, height, width)
        zero = torch.zeros((), device=logits.device)
        if labels.shape[1] == 0:
            cls = self._classification(logits, torch.zeros_like(logits, dtype=precise))
            return torch.stack((zero, cls * self.gains.cls, zero)), None
        with torch.no_grad():
            predicted = _decode(distributions, anchors) * strides
        assignment = self._assigner()(
            logits.detach(), predicted.to(boxes.dtype), anchors * strides, labels, boxes
        )
        del predicted
        normaliser = self._normaliser(assignment.score)
        cls = self._classification(logits, _target_scores(logits, labels, assignment))
        cls = cls / normaliser
        box, dfl = _localisation(distributions, anchors, strides, boxes, assignment)
        gains = self.gains
        parts = (box / normaliser * gains.box, cls * gains.cls, dfl / normaliser * gains.dfl)
        return torch.stack(parts), (assignment, boxes)

    def _normaliser(self, score: Tensor) -> Tensor:
        """Return what sums over anchors are divided by, from the target scores."""
        return score.sum().clamp(min=1)

    def _assigner(self) -> TaskAlignedAssigner:
        return TaskAlignedAssigner(parts=self.assigner_parts)

    def _classification(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Return the cross-entropy of all anchors and classes against soft scores, summed."""
        logits = logits.to(scores.dtype)
        weight = None
        if self.gains.cls_pw != 1:
            weight = logits.new_full((), self.gains.cls_pw)
        loss = functional.binary_cross_entropy_with_logits(
            logits, scores, pos_weight=weight, reduction="none"
        )
        if self.gains.fl_gamma > 0:
            probability = logits.sigmoid()
            hit = scores * probability + (1 - scores) * (1 - probability)
            balance = scores * _FOCAL_ALPHA + (1 - scores) * (1 - _FOCAL_ALPHA)
            loss = loss * balance * (1 - hit) ** self.gains.fl_gamma
        return loss.sum()


def pad_targets(rows: Tensor, batch_size: int) -> Tensor:
    """Return target rows as one tensor `[B, M, 5]`, M being the most boxes of one image.

    Meant for the collate function, on the CPU: it looks at the values to find M.

    Args:
        rows: `[n, 6]`: image index, class, centre x, centre y, width, height, normalised.
        batch_size: B, images in the batch.

    Returns:
        (class, centre x, centre y, width, height) in the order of the rows; class -1, sizes 0 where
        an image has fewer than M boxes. M is 0 when there is no row.

    Raises:
        UsageError: `rows` has another shape, or names an image outside the batch.
    """
    if rows.dim() != 2 or rows.shape[1] != 6:
        raise UsageError(f"targets have shape {list(rows.shape)}; rows must be [n, 6].")
    image = rows[:, 0].long()
    if len(rows) and not 0 <= int(image.min()) <= int(image.max()) < batch_size:
        raise UsageError(
            f"targets name image {int(image.max())} (or a negative one) in a batch of {batch_size}."
        )
    counts = torch.bincount(image, minlength=batch_size)
    padded = rows.new_zeros(batch_size, int(counts.max()) if batch_size else 0, 5)
    padded[..., 0] = -1
    order = image.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(rows), device=rows.device) - starts[image[order]]
    padded[image[order], place] = rows[order, 1:]
    return padded


def as_padded(targets: Targets, batch: int, device: torch.device) -> Tensor:
    """Return any accepted form of targets as `[B, M, 5]` on the device."""
    if isinstance(targets, tuple):
        padded, mask = targets
        label = padded[..., :1].masked_fill(~mask.bool().view(*padded.shape[:2], 1), -1)
        targets = torch.cat((label, padded[..., 1:]), -1)
    elif targets.dim() == 2:
        targets = pad_targets(targets.detach().cpu(), batch)
    if targets.dim() != 3 or targets.shape[0] != batch or targets.shape[2] != 5:
        raise UsageError(
            f"targets have shape {list(targets.shape)}; they must be [{batch}, M, 5] or [n, 6]."
        )
    return targets.to(device=device, dtype=torch.float32, non_blocking=True)


def _pixel_boxes(padded: Tensor, height: float, width: float) -> tuple[Tensor, Tensor]:
    """Return classes `[B, M]` int64 and corner boxes `[B, M, 4]` in pixels."""
    label, x, y, w, h = padded.unbind(-1)
    x, y, w, h = x * width, y * height, w * width, h * height
    boxes = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), -1)
    return label.long(), boxes


def _decode(distributions: Tensor, anchors: Tensor) -> Tensor:
    """Return corner boxes `[B, K, 4]` in cells from bin logits `[B, 64, K]`, float32 or wider.

    Args:
        distributions: logits of the bins of the four sides, side-major.
        anchors: centres `[K, 2]` or `[B, K, 2]`, cells.
    """
    batch, _, num = distributions.shape
    bins = distributions.view(batch, 4, REG_MAX, num).softmax(2, dtype=anchors.dtype)
    integral = torch.arange(REG_MAX, dtype=bins.dtype, device=bins.device).view(-1, 1)
    # Not a matrix product: autocast would round its factors to half precision.
    distances = (bins * integral).sum(2).transpose(1, 2)
    return boxes_from_distances(distances, anchors)


def _target_scores(logits: Tensor, labels: Tensor, assignment: Assignment) -> Tensor:
    """Return soft targets `[B, nc, A]`, float32: the score at the class, else 0."""
    label = labels.clamp(min=0).gather(1, assignment.box_index).unsqueeze(1)
    scores = assignment.score.unsqueeze(1)
    return torch.zeros_like(logits, dtype=scores.dtype).scatter_(1, label, scores)


def _localisation(
    distributions: Tensor, anchors: Tensor, strides: Tensor, boxes: Tensor, assignment: Assignment
) -> tuple[Tensor, Tensor]:
    """Return the box loss and the distribution focal loss, summed with score weights.

    At most topk x M anchors of an image are foreground, so that many are gathered, foreground
    first; the weight of the others is 0. The count is fixed, so no step depends on the data.
    """
    at = foreground_first(assignment, boxes.shape[1])
    weight = assignment.score.gather(1, at)
    index = assignment.box_index.gather(1, at).unsqueeze(2).expand(-1, -1, 4)
    points, steps = anchors[at], strides[at]
    target = boxes.gather(1, index) / steps
    # Indexing, unlike gather, keeps only the indices for backward and is deterministic on a GPU.
    image = torch.arange(at.shape[0], device=at.device).unsqueeze(1)
    logits = distributions.transpose(1, 2)[image, at].transpose(1, 2)
    iou = complete_iou(_decode(logits, points), target)
    box = ((1.0 - iou) * weight).sum()
    distances = distances_from_boxes(points, target, _LARGEST_DISTANCE)
    dfl = (_two_bin_cross_entropy(logits, distances) * weight).sum()
    return box, dfl


def foreground_first(assignment: Assignment, num_boxes: int) -> Tensor:
    """Return the places of topk x `num_boxes` anchors of each image, all foreground among them."""
    count = min(TaskAlignedAssigner.topk * num_boxes, assignment.foreground.shape[1])
    return assignment.foreground.to(torch.float32).topk(count, dim=1, sorted=False).indices


def _two_bin_cross_entropy(logits: Tensor, distances: Tensor) -> Tensor:
    """Return `[B, K]`: cross-entropy against the two bins beside each distance, mean of 4 sides.

    Args:
        logits: `[B, 64, K]`, side-major.
        distances: `[B, K, 4]`, in [0, 14.99].
    """
    batch, _, num = logits.shape
    log_bins = logits.view(batch, 4, REG_MAX, num).log_softmax(2, dtype=distances.dtype)
    bins = torch.arange(REG_MAX, dtype=distances.dtype, device=distances.device).view(-1, 1)
    share = (1 - (bins - distances.transpose(1, 2).unsqueeze(2)).abs()).clamp(min=0)
    return -(log_bins * share).sum(2).mean(1)
