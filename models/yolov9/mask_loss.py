"""The loss of masks: cross-entropy of each foreground anchor's mask within its box.

The mask of an anchor is as large as the prototypes, and a crowded image has a thousand anchors in
the foreground. So gradients are computed with the loss, a few anchors at a time, and neither masks
nor their cross-entropies are kept for backward. Shapes depend only on the batch, the padded number
of boxes and the prototypes; nothing waits for the device.

Source: Bolya et al., "YOLACT" (2019), section 3; values equal those of the official segment
loss_tal and loss_tal_dual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .losses import DetectionLoss, as_padded, foreground_first
from .segment_heads import Masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .assigner import Assignment

MASK_GAIN = 2.5  # Source: official utils/segment/loss_tal.py
_PARTS = 10  # of the foreground, worked on one after another; the assigner's candidates a box


@dataclass(frozen=True, kw_only=True)
class SegmentationLoss(DetectionLoss):
    """Callable (outputs, targets, masks) -> (total, parts [4]) over one or more branches."""

    def __call__(  # type: ignore[override]
        self, outputs: Sequence[Any], targets: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch.

        Args:
            outputs: maps, coefficients and prototypes, as the head returns them in training.
            targets: as `DetectionLoss` takes them.
            masks: which box each pixel belongs to, 1 for an image's first row, 0 for none: integers
                `[B, h, w]` of any size; the nearest is taken for each of the prototypes' pixels.

        Returns:
            The total, scaled by the batch size, differentiable; and its parts `[4]` (box, mask,
            cls, dfl) with gains but without the batch size, detached.
        """
        maps, coefficients, prototypes = outputs
        if self.branches == 1:
            maps, coefficients, prototypes = [maps], [coefficients], [prototypes]
        batch = maps[0][0].shape[0]
        padded = as_padded(targets, batch, maps[0][0].device)
        parts = torch.zeros(4, device=padded.device)
        for index, branch in enumerate(zip(maps, coefficients, prototypes, strict=True)):
            factor = 1.0 if index == self.branches - 1 else self.gains.auxiliary
            parts = parts + self._with_masks(branch, padded, masks) * factor
        return parts.sum() * batch, parts.detach()

    def _normaliser(self, score: Tensor) -> Tensor:
        """Return the sum of scores, 1 where there is none.

        The official loss of masks divides by the sum as it is, where that of boxes divides by 1 at
        least; without a single object it so gives no number.
        """
        total = score.sum()
        return torch.where(total > 0, total, 1.0)

    def _with_masks(
        self, branch: tuple[list[Tensor], Tensor, Tensor], padded: Tensor, masks: Tensor
    ) -> Tensor:
        """Return (box, mask, cls, dfl) of one branch, with gains."""
        maps, coefficients, prototypes = branch
        (box, cls, dfl), matched = self._matched(list(maps), padded)
        mask = torch.zeros_like(box)
        if matched is not None:
            height, width = (size * self.strides[0] for size in maps[0].shape[2:])
            mask = mask_loss(Masks(coefficients, prototypes), *matched, masks, (height, width))
        return torch.stack((box, mask * (MASK_GAIN / len(padded)), cls, dfl))


def mask_loss(
    given: Masks, assignment: Assignment, boxes: Tensor, masks: Tensor, image: tuple[float, float]
) -> Tensor:
    """Return the mean over an image's foreground, summed over images, float32.

    Args:
        given: coefficients `[B, K, A]` and prototypes `[B, K, h, w]`.
        assignment: of the anchors.
        boxes: corners in pixels, `[B, M, 4]`.
        masks: which box each pixel belongs to, `[B, any, any]`.
        image: height and width, pixels.
    """
    height, width = given.prototypes.shape[2:]
    if masks.shape[1:] != (height, width):
        masks = functional.interpolate(masks[:, None].float(), (height, width))[:, 0]
    at = foreground_first(assignment, boxes.shape[1])
    weight = assignment.foreground.gather(1, at).to(boxes.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    index = assignment.box_index.gather(1, at)
    corners = boxes.gather(1, index.unsqueeze(2).expand(-1, -1, 4))
    left, right = corners[..., 0] / image[1], corners[..., 2] / image[1]
    top, bottom = corners[..., 1] / image[0], corners[..., 3] / image[0]
    area = (right - left) * (bottom - top)
    weight = torch.where(weight > 0, weight / (area * (height * width)), 0.0)
    corners = torch.stack((left * width, top * height, right * width, bottom * height), -1)
    rows = torch.arange(len(at), device=at.device).unsqueeze(1)
    mixtures = given.coefficients.transpose(1, 2)[rows, at]
    total: Tensor = _CroppedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        mixtures, given.prototypes, masks, index + 1, corners, weight
    )
    return total


class _CroppedCrossEntropy(torch.autograd.Function):
    """The weighted sum of cross-entropies of masks within their boxes, with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        mixtures: Tensor,
        prototypes: Tensor,
        masks: Tensor,
        wanted: Tensor,
        corners: Tensor,
        weight: Tensor,
    ) -> Tensor:
        """Return the sum.

        Args:
            ctx: autograd's.
            mixtures: `[B, n, K]`.
            prototypes: `[B, K, h, w]`.
            masks: which box each pixel belongs to, `[B, h, w]`.
            wanted: the number of each mixture's box in `masks`, `[B, n]`.
            corners: where the loss counts, in the prototypes' pixels, `[B, n, 4]`.
            weight: of each mask's sum, `[B, n]`.
        """
        precise = torch.promote_types(mixtures.dtype, torch.float32)
        ctx.dtypes = mixtures.dtype, prototypes.dtype
        differentiates = any(ctx.needs_input_grad)
        with torch.autocast(mixtures.device.type, enabled=False):
            own = mixtures.to(precise)
            shared = prototypes.to(precise).flatten(2)
            of_shared = torch.zeros_like(shared) if differentiates else None
            of_own, total = [], weight.new_zeros(())
            pieces = (torch.tensor_split(x, _PARTS, 1) for x in (own, wanted, corners, weight))
            for mixture, number, box, share in zip(*pieces, strict=True):
                target = masks.unsqueeze(1) == number[..., None, None]
                inside = _inside(box, masks.shape[1], masks.shape[2])
                logits = torch.bmm(mixture, shared)
                target = target.flatten(2).to(precise)
                loss, slope = _cross_entropy(logits, target, differentiates)
                loss.mul_(inside)
                total = total + (loss.sum(2) * share).sum()
                if of_shared is None or slope is None:
                    continue
                slope.mul_(inside).mul_(share.unsqueeze(2))
                of_own.append(torch.bmm(slope, shared.transpose(1, 2)))
                of_shared.baddbmm_(mixture.transpose(1, 2), slope)
                del slope
            if of_shared is not None:
                ctx.save_for_backward(torch.cat(of_own, 1), of_shared.view_as(prototypes))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of mixtures and prototypes."""
        of_own, of_shared = ctx.saved_tensors
        first, second = ctx.dtypes
        return (of_own * gradient).to(first), (of_shared * gradient).to(second), *[None] * 4


def _inside(corners: Tensor, height: int, width: int) -> Tensor:
    """Return whether each pixel's corner nearest to the origin is in a box, `[B, n, h * w]`."""
    left, top, right, bottom = corners.unsqueeze(3).unbind(2)
    across = torch.arange(width, device=corners.device, dtype=corners.dtype)
    down = torch.arange(height, device=corners.device, dtype=corners.dtype)
    columns = (across >= left) & (across < right)
    rows = (down >= top) & (down < bottom)
    return (rows.unsqueeze(3) & columns.unsqueeze(2)).flatten(2)


def _cross_entropy(
    logits: Tensor, target: Tensor, differentiates: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the cross-entropy of logits, written over them, and its slope if it is wanted."""
    slope = logits.sigmoid().sub_(target) if differentiates else None
    # max(x, 0) - x z + log(1 + exp(-|x|)) is log(1 + exp(x)) - x z, and softplus has that range.
    loss = functional.softplus(logits)
    return loss.sub_(logits.mul_(target)), slope
