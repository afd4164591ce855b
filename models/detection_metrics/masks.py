"""Masks of detections: put together from prototypes, compared, and as polygons.

Source: Bolya et al., "YOLACT" (2019), section 3.3; cropped to the box at the prototypes' size, as
the official code does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT_ONCE = 100  # detections whose masks are made together
_EPS = 1e-7  # Source: official utils/segment/general.py, mask_iou


def mask_logits(mixtures: Tensor, prototypes: Tensor) -> Tensor:
    """Return where masks are likelier than not, above 0: float32 `[k, h, w]`.

    Args:
        mixtures: coefficients of each detection, `[k, K]`.
        prototypes: of their image, `[K, h, w]`.
    """
    flat = prototypes.float().flatten(1)
    return (mixtures.float() @ flat).view(len(mixtures), *prototypes.shape[1:])


def cropped(masks: Tensor, boxes: Tensor) -> Tensor:
    """Return masks without what is outside their boxes.

    Args:
        masks: bool `[k, h, w]`.
        boxes: left, top, right, bottom in pixels of the masks, `[k, 4]`.
    """
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    across = torch.arange(masks.shape[2], device=masks.device)
    down = torch.arange(masks.shape[1], device=masks.device)[:, None]
    return masks & (across >= left) & (across < right) & (down >= top) & (down < bottom)


def overlaps(found: Tensor, prototypes: Tensor, truth: Tensor, num_objects: int) -> Tensor:
    """Return the IoU of each detection's mask with each object's, float32 `[k, n]`.

    Args:
        found: left, top, right, bottom as fractions of the image, then score, class and
            coefficients, `[k, 6 + K]`.
        prototypes: `[K, h, w]`.
        truth: which object each pixel belongs to, 1 for the first, 0 for none: `[h, w]`.
        num_objects: n.
    """
    height, width = prototypes.shape[1:]
    if truth.shape != (height, width):
        truth = functional.interpolate(truth[None, None].float(), (height, width))[0, 0]
    numbers = torch.arange(1, num_objects + 1, device=truth.device)[:, None]
    objects = (truth.flatten() == numbers).float()
    size = found.new_tensor([width, height, width, height])
    parts = []
    for some in torch.split(found, _AT_ONCE):
        masks = cropped(mask_logits(some[:, 6:], prototypes) > 0, some[:, :4] * size)
        flat = masks.flatten(1).float()
        common = flat @ objects.T
        union = flat.sum(1)[:, None] + objects.sum(1) - common
        parts.append(common / (union + _EPS))
    return torch.cat(parts) if parts else found.new_zeros(0, num_objects)


def full_size(
    mixtures: Tensor,
    prototypes: Tensor,
    boxes: Tensor,
    visible: tuple[float, float, float, float],
    shape: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """Return masks in an image's own pixels, bool `[k, height, width]`.

    Logits are enlarged and then cropped, so that edges are as fine as the image.

    Args:
        mixtures: coefficients, `[k, K]`.
        prototypes: `[K, h, w]`, of the letterboxed image.
        boxes: left, top, right, bottom in the image's own pixels, `[k, 4]`.
        visible: the part of the prototypes that shows the image, without the padding: left, top,
            right, bottom as fractions.
        shape: height and width of the image, pixels.
    """
    height, width = prototypes.shape[1:]
    left, right = round(visible[0] * width), max(round(visible[2] * width), 1)
    top, bottom = round(visible[1] * height), max(round(visible[3] * height), 1)
    masks = []
    for mixture, box in zip(mixtures, boxes, strict=True):  # one at a time: images may be large
        logits = mask_logits(mixture[None], prototypes[:, top:bottom, left:right])
        large = functional.interpolate(logits[None], shape, mode="bilinear", align_corners=False)
        masks.append(cropped(large[0] > 0, box[None])[0].cpu().numpy())
    return np.stack(masks) if masks else np.zeros((0, *shape), np.bool_)


def outlines(masks: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int32]]:
    """Return the outer border of the largest part of each mask, pixels `[k, 2]`; k may be 0."""
    found = []
    for mask in masks:
        contours: Sequence[npt.NDArray[np.int32]] = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )[0]
        largest = max(contours, key=cv2.contourArea, default=np.zeros((0, 1, 2), np.int32))
        found.append(np.asarray(largest, np.int32).reshape(-1, 2))
    return found
