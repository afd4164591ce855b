"""What the layers of a description give: channels and strides of their maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import blocks
from .heads import Detect


@dataclass(frozen=True, kw_only=True)
class Output:
    """What later rows need to know of a layer: channels (several for CBLinear) and stride."""

    channels: int | list[int]
    stride: float


def stated(module: nn.Module, inputs: list[Output], channels: int | None) -> Output | None:
    """Return what a layer gives by what is known of it; None where one must look.

    Looking takes as long as building, so the blocks of the shipped networks say it.

    Args:
        module: the layer.
        inputs: what it reads.
        channels: that the row asks of a block with scaled channels; None of others.
    """
    first = inputs[0]
    if isinstance(module, Detect):
        return Output(channels=module.no, stride=module.strides[0])
    stack = list(module) if type(module) is nn.Sequential else [module]
    stages = [_reduction(one) for one in stack]
    if None in stages:
        return None
    stride = first.stride * math.prod(one for one in stages if one is not None)
    found: int | list[int] | None = channels
    match stack[-1]:
        case blocks.CBLinear() as last:
            found = last.c2s
        case blocks.CBFuse():
            return inputs[-1]
        case blocks.Concat(d=1):
            found = sum(single(one) for one in inputs)
        case blocks.SP() | blocks.MP() | blocks.Silence() | nn.Upsample():
            found = first.channels
    return None if found is None else Output(channels=found, stride=stride)


def _reduction(layer: nn.Module) -> float | None:
    """Return how many times smaller a layer's map is along one side; None where it is not known."""
    if isinstance(layer, nn.Upsample):
        factor = layer.scale_factor
        return 1 / factor if isinstance(factor, int | float) else None
    value = getattr(layer, "reduction", None)
    return value if isinstance(value, float) else None


_MEASURED_SIDE = 256
"""Pixels of the image whose maps are looked at. Source: as the official network finds strides."""


@torch.no_grad()
def measured(module: nn.Module, inputs: list[Output], *, several: bool) -> Output:
    """Return what a layer gives, found with maps that take no memory.

    Raises:
        ValueError: it gives no map.
    """
    if isinstance(module, Detect):
        return Output(channels=module.no, stride=module.strides[0])
    maps = [_example(one) for one in inputs]
    given = module.eval()(maps if several else maps[0])
    parts = list(given) if isinstance(given, tuple | list) else [given]
    if not parts or not all(isinstance(one, torch.Tensor) and one.ndim == 4 for one in parts):
        raise ValueError("it gives no map of batch, channels, height and width")
    channels = [one.shape[1] for one in parts]
    return Output(
        channels=channels if isinstance(given, tuple | list) else channels[0],
        stride=_MEASURED_SIDE / max(parts[0].shape[2], 1),
    )


def _example(output: Output) -> Any:
    """Return a map, or as many as CBLinear gives, of a layer's size."""
    side = max(round(_MEASURED_SIDE / output.stride), 1)
    if isinstance(output.channels, int):
        return torch.zeros(1, output.channels, side, side)
    return tuple(torch.zeros(1, channels, side, side) for channels in output.channels)


def single(output: Output) -> int:
    """Return the channels of a layer that gives one map."""
    if not isinstance(output.channels, int):
        raise ValueError("only CBFuse can read a CBLinear")  # noqa: TRY004 - the value is wrong
    return output.channels
