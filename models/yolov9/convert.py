"""A trained network made smaller with equal outputs: no auxiliary branch, convolutions merged.

Both steps give new networks and leave the given one as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .blocks import Conv, RepConvN
from .network import DetectionModel, main_layers

if TYPE_CHECKING:
    pass

_ONE_BRANCH = {
    "DualDDetect": "DDetect",
    "TripleDDetect": "DDetect",
    "DualDSegment": "DSegment",
    "DualDetect": "Detect",
    "TripleDetect": "Detect",
}


class FusedConv(nn.Module):
    """A convolution with bias, then the activation: what is left of a convolution and its norm."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H / stride, W / stride]`."""
        out: Tensor = self.act(self.conv(x))
        return out


@dataclass(frozen=True)
class Conversion:
    """A network without auxiliary branches, and where its layers come from."""

    net: DetectionModel
    layers: tuple[int, ...]
    """For each layer of `net`, the layer it was; empty where nothing had to be dropped."""


def drop_auxiliary(net: DetectionModel) -> Conversion:
    """Return the network of the main branch alone; its outputs are bit for bit the main branch's.

    Layers that only an auxiliary branch needs are left out, and the head keeps its last branch. So
    yolov9-t, s, m, c and e become gelan-t, s, m, c and e, with their state_dict keys. A network
    with one branch is copied.

    Source: the index maps of the official notebook tools/reparameterization.ipynb, which follow
    from leaving out what the main branch does not read.
    """
    head = net.head
    if head.branches == 1:
        return Conversion(copy.deepcopy(net).eval(), ())
    kept = _without_passed_through(net, main_layers(net))
    description = _pruned_description(net, kept)
    with torch.device("meta"):  # the values come from `net`
        small = DetectionModel(description, net.nc, f"{net.name}-converted", net.own_blocks)
    state, entries = net.state_dict(), head.entries_of(head.branches - 1)
    filled = {name: state[_source_name(name, kept, entries)].clone() for name in small.state_dict()}
    small.load_state_dict(filled, assign=True)
    small.names = dict(net.names)
    return Conversion(small.eval(), tuple(kept))


def _without_passed_through(net: DetectionModel, needed: set[int]) -> list[int]:
    """Return the needed layers in order, without a first `Silence` that only the next one reads."""
    kept = sorted(needed)
    readers = [index for index in kept if 0 in net.layer_sources(index)]
    if type(net.model[0]).__name__ == "Silence" and readers == [1]:
        kept.remove(0)
    return kept


def _pruned_description(net: DetectionModel, kept: list[int]) -> dict[str, Any]:
    """Return the description with the kept rows only, sources renumbered."""
    rows = [*net.yaml["backbone"], *net.yaml["head"]]
    place = {layer: number for number, layer in enumerate(kept)}
    head = net.head
    pruned = []
    for number, layer in enumerate(kept):
        _, repeats, name, arguments = rows[layer]
        sources = net.layer_sources(layer)
        if layer == kept[-1]:
            sources = [sources[place] for place in head.inputs_of(head.branches - 1)]
            name = _ONE_BRANCH[name]
        # A source that was dropped gives what it read: the image, which is before the first row.
        new = [-1 if place.get(s, -1) == number - 1 else place[s] for s in sources]
        several = isinstance(rows[layer][0], list)
        pruned.append([new if several else new[0], repeats, name, arguments])
    split = sum(layer < len(net.yaml["backbone"]) for layer in kept)
    return {**net.yaml, "backbone": pruned[:split], "head": pruned[split:]}


def _source_name(name: str, kept: list[int], entries: dict[str, str]) -> str:
    """Return the entry of the dual or triple network that an entry of the small one comes from."""
    model, layer, rest = name.split(".", 2)
    if int(layer) == len(kept) - 1:
        part, _, tail = rest.partition(".")
        rest = f"{entries[part]}.{tail}"
    return f"{model}.{kept[int(layer)]}.{rest}"


def fuse(net: DetectionModel) -> DetectionModel:
    """Return a network in evaluation mode whose batch norms are merged into the convolutions.

    A convolution and its norm become one convolution with bias; a `RepConvN` (3x3 and 1x1, each
    with a norm) becomes one 3x3. Outputs differ by rounding: sums are made in float64 and stored in
    the weights' own precision.

    Source: Ding et al., "RepVGG" (2021), equation 3.
    """
    fused = copy.deepcopy(net).eval()
    for parent in list(fused.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv):
                setattr(parent, name, FusedConv(_merged([child]), child.act))
            elif isinstance(child, RepConvN):
                merged = _merged([child.conv1, child.conv2])
                setattr(parent, name, FusedConv(merged, child.act))
    for parameter in fused.parameters():
        parameter.requires_grad = False
    return fused


def _merged(parts: list[Conv]) -> nn.Conv2d:
    """Return one convolution with the summed result of several, which share stride and groups."""
    first = parts[0].conv
    weight = torch.zeros_like(first.weight, dtype=torch.float64)
    bias = torch.zeros(first.out_channels, dtype=torch.float64, device=weight.device)
    for part in parts:
        one_weight, one_bias = _folded(part)
        border = (weight.shape[-1] - one_weight.shape[-1]) // 2
        weight += nn.functional.pad(one_weight, [border] * 4)
        bias += one_bias
    merged = nn.Conv2d(
        first.in_channels,
        first.out_channels,
        (first.kernel_size[0], first.kernel_size[1]),
        (first.stride[0], first.stride[1]),
        (int(first.padding[0]), int(first.padding[1])),
        groups=first.groups,
        dilation=(first.dilation[0], first.dilation[1]),
        device="meta",
    )
    dtype = first.weight.dtype
    merged.weight = nn.Parameter(weight.to(dtype))
    merged.bias = nn.Parameter(bias.to(dtype))
    return merged


@torch.no_grad()
def _folded(part: Conv) -> tuple[Tensor, Tensor]:
    """Return weight and bias, float64, of a convolution with its norm in evaluation."""
    norm = part.bn
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = part.conv.weight.double() * scale[:, None, None, None]
    return weight, norm.bias.double() - norm.running_mean.double() * scale
