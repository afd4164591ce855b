"""What a network with masks computes: its loss, and its predictions with their prototypes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .mask_loss import SegmentationLoss
from .network import decoded, main_inputs
from .segment_heads import Segments

if TYPE_CHECKING:
    from memplan.workload import Batch

    from .losses import DetectionLoss
    from .network import DetectionModel
    from .segment_heads import Masks


def loss_of(criterion: DetectionLoss, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of what the network gave in training, and its four parts."""
    assert isinstance(criterion, SegmentationLoss)
    return criterion(outputs, batch["targets"], batch["masks"])


def predict(network: DetectionModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[B, 4 + nc + K, A]`, float32, and prototypes `[B, K, h, w]`.

    The first has box, probabilities and coefficients of each anchor of the main branch; layers that
    only the auxiliary branch needs are not run.
    """
    return _joined(network, *_main_branch(network, images))


def evaluate(
    network: DetectionModel, criterion: DetectionLoss, batch: Batch
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return what `predict` does, and the main branch's loss, four parts."""
    maps, masks = _main_branch(network, batch["images"])
    found = _joined(network, maps, masks)
    _, parts = loss_of(replace(criterion, branches=1), (maps, *masks), batch)
    return found, parts


def _main_branch(network: DetectionModel, images: Tensor) -> tuple[list[Tensor], Masks]:
    head = network.head
    assert isinstance(head, Segments)
    inputs = main_inputs(network, images)
    return head.raw(inputs, head.branches - 1), head.masks(inputs, head.branches - 1)


def _joined(network: DetectionModel, maps: list[Tensor], masks: Masks) -> tuple[Tensor, Tensor]:
    boxes = decoded(network, maps)
    return torch.cat((boxes, masks.coefficients.float()), 1), masks.prototypes
