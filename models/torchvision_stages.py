"""Stages of a detector's backbone, frozen as torchvision freezes those of pretrained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.errors import UsageError

if TYPE_CHECKING:
    import torch

_RESNET_STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")


def train_last_stages(model: torch.nn.Module, name: str, count: int) -> None:
    """Freeze a detector as torchvision freezes a pretrained one.

    Args:
        model: with a feature pyramid.
        name: as torchvision spells it; those of version 2 train their norms.
        count: last stages of the backbone that are trained.

    Raises:
        UsageError: the model has no pyramid, or not as many stages.

    Source: torchvision/models/detection, backbone_utils.py and the builders beside it.
    """
    body: torch.nn.Module | None = getattr(model.backbone, "body", None)
    if body is None:
        raise UsageError(
            f"--set trainable_backbone_layers={count}: {name} has no feature pyramid, whose stages "
            "could be counted. Leave it out."
        )
    stages = _stages(body)
    if type(count) is not int or not 0 <= count <= len(stages):
        raise UsageError(
            f"--set trainable_backbone_layers={count}: {name} has {len(stages)} stages. Give 0 to "
            f"{len(stages)}."
        )
    for stage in stages[: len(stages) - count]:
        for layer in stage:
            layer.requires_grad_(requires_grad=False)
    if not name.endswith("_v2"):
        _freeze_norms(body)


def _stages(body: torch.nn.Module) -> list[list[torch.nn.Module]]:
    """Return the layers of each stage of a ResNet or a MobileNet, in order."""
    layers = dict(body.named_children())
    if "layer1" in layers:
        first = [layers["conv1"], layers["bn1"]]
        return [first, *([layers[name]] for name in _RESNET_STAGES[1:])]
    blocks = list(layers.values())
    # A strided block begins a stage, and so does the last.
    starts = [0] + [i for i, one in enumerate(blocks) if getattr(one, "_is_cn", False)]
    starts = sorted({*starts, len(blocks) - 1})
    return [blocks[a:b] for a, b in zip(starts, [*starts[1:], len(blocks)], strict=True)]


def _freeze_norms(body: torch.nn.Module) -> None:
    """Put norms of fixed statistics and weights in place of batch norms."""
    import torch
    from torchvision.ops import FrozenBatchNorm2d

    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, FrozenBatchNorm2d(child.num_features, child.eps))
