"""Boxes and anchors: grid centres, distances to corners, complete IoU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

IOU_EPS = 1e-7  # Source: official utils/metrics.py, bbox_iou.


def make_anchors(
    maps: Sequence[Tensor], strides: Sequence[float], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return the centre of every cell of `maps` and the stride of its level.

    Args:
        maps: one `[B, C, h, w]` tensor a level; only shape, dtype and device are read.
        strides: pixels a cell, one a level.
        dtype: of the results; None takes each map's.

    Returns:
        Centres `[A, 2]` as (x, y) in cells of their level, and strides `[A, 1]` in pixels; rows go
        level by level, each in row-major order.
    """
    points, steps = [], []
    for level, stride in zip(maps, strides, strict=True):
        height, width = level.shape[-2:]
        xs = torch.arange(width, dtype=dtype or level.dtype, device=level.device) + 0.5
        ys = torch.arange(height, dtype=dtype or level.dtype, device=level.device) + 0.5
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), -1).view(-1, 2))
        steps.append(level.new_full((height * width, 1), float(stride), dtype=dtype))
    return torch.cat(points), torch.cat(steps)


def boxes_from_distances(distances: Tensor, anchors: Tensor, dim: int = -1) -> Tensor:
    """Return corner boxes (x1, y1, x2, y2) from distances left, top, right, bottom of a point.

    Args:
        distances: four distances along `dim`.
        anchors: x and y along `dim`, broadcastable to the rest.
        dim: the dimension of the coordinates.
    """
    left_top, right_bottom = distances.chunk(2, dim)
    return torch.cat((anchors - left_top, anchors + right_bottom), dim)


def centre_boxes_from_distances(distances: Tensor, anchors: Tensor, dim: int = -1) -> Tensor:
    """Return boxes as (centre x, centre y, width, height) from distances of a point."""
    left_top, right_bottom = distances.chunk(2, dim)
    top_left, bottom_right = anchors - left_top, anchors + right_bottom
    return torch.cat(((top_left + bottom_right) / 2, bottom_right - top_left), dim)


def distances_from_boxes(anchors: Tensor, boxes: Tensor, largest: float) -> Tensor:
    """Return left, top, right, bottom distances `[..., 4]` of points to box sides, in [0, largest].

    Args:
        anchors: points, `[..., 2]`.
        boxes: corner boxes, `[..., 4]`.
        largest: the upper clamp, cells.
    """
    top_left, bottom_right = boxes.chunk(2, -1)
    return torch.cat((anchors - top_left, bottom_right - anchors), -1).clamp(0, largest)


def complete_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Return CIoU of corner boxes pair by pair, `[...]`, differentiable in both.

    Source: Zheng et al., "Enhancing Geometric Factors" (2020). As in the official code, the epsilon
    is added to heights only and no gradient flows through the weight of the aspect term.
    """
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    w1, h1 = x2 - x1, y2 - y1 + IOU_EPS
    w2, h2 = u2 - u1, v2 - v1 + IOU_EPS
    overlap_w = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    overlap_h = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    intersection = overlap_w * overlap_h
    iou = intersection / (w1 * h1 + w2 * h2 - intersection + IOU_EPS)
    enclosing_w = torch.maximum(x2, u2) - torch.minimum(x1, u1)
    enclosing_h = torch.maximum(y2, v2) - torch.minimum(y1, v1)
    diagonal = enclosing_w**2 + enclosing_h**2 + IOU_EPS
    distance = ((u1 + u2 - x1 - x2) ** 2 + (v1 + v2 - y1 - y2) ** 2) / 4
    aspect = (4 / math.pi**2) * (torch.atan(w2 / h2) - torch.atan(w1 / h1)) ** 2
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + IOU_EPS))
    return iou - (distance / diagonal + aspect * weight)


def complete_iou_matrix(rows: Tensor, columns: Tensor) -> Tensor:
    """Return CIoU of every row box with every column box, with at most 16 bytes a pair alive.

    The formula is that of `complete_iou`; steps work in place because the matrix is the largest
    tensor of the assigner.

    Args:
        rows: corner boxes `[B, M, 4]`, float32, no gradient.
        columns: corner boxes `[B, A, 4]`, float32, no gradient.

    Returns:
        `[B, M, A]`, float32, in (-1.5, 1].
    """
    x1, y1, x2, y2 = rows.unsqueeze(2).unbind(-1)
    u1, v1, u2, v2 = columns.unsqueeze(1).unbind(-1)
    w1, h1 = x2 - x1, y2 - y1 + IOU_EPS
    w2, h2 = u2 - u1, v2 - v1 + IOU_EPS
    iou = _extent(torch.minimum(x2, u2), torch.maximum(x1, u1)).clamp_(min=0)
    iou.mul_(_extent(torch.minimum(y2, v2), torch.maximum(y1, v1)).clamp_(min=0))
    iou.div_((w1 * h1 + w2 * h2).sub_(iou).add_(IOU_EPS))
    diagonal = _extent(torch.maximum(x2, u2), torch.minimum(x1, u1)).square_()
    diagonal.add_(_extent(torch.maximum(y2, v2), torch.minimum(y1, v1)).square_()).add_(IOU_EPS)
    penalty = ((u1 + u2) - x1).sub_(x2).square_()
    penalty.add_(((v1 + v2) - y1).sub_(y2).square_()).div_(4).div_(diagonal)
    del diagonal
    aspect = (torch.atan(w2 / h2) - torch.atan(w1 / h1)).square_().mul_(4 / math.pi**2)
    weight = (aspect - iou).add_(1 + IOU_EPS)
    torch.div(aspect, weight, out=weight)
    return iou.sub_(penalty.add_(aspect.mul_(weight)))


def _extent(high: Tensor, low: Tensor) -> Tensor:
    """Return `high - low`, written over `high`."""
    return high.sub_(low)
