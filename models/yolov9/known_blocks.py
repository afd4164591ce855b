"""The blocks that model descriptions may name beside heads, by what their rows hold."""

from __future__ import annotations

import inspect

from torch import nn

from . import blocks, more_blocks

# Blocks that take input channels, and as their row's first argument output channels, scaled by the
# width multiple. Source: the official models/yolo.py, parse_model.
SCALED: dict[str, type[nn.Module]] = {
    "Conv": blocks.Conv,
    "AConv": blocks.AConv,
    "ADown": blocks.ADown,
    "Bottleneck": blocks.Bottleneck,
    "BottleneckCSP": more_blocks.BottleneckCSP,
    "ConvTranspose": more_blocks.ConvTranspose,
    "DWConv": more_blocks.DWConv,
    "DWConvTranspose2d": more_blocks.DWConvTranspose2d,
    "ELAN1": blocks.ELAN1,
    "RepNCSPELAN4": blocks.RepNCSPELAN4,
    "SPP": more_blocks.SPP,
    "SPPCSPC": blocks.SPPCSPC,
    "SPPELAN": blocks.SPPELAN,
    "SPPF": more_blocks.SPPF,
    "nn.ConvTranspose2d": nn.ConvTranspose2d,
}
TAKES_REPEATS = {"BottleneckCSP", "SPPCSPC"}
# Blocks that take what stands in their row, as there all others.
PLAIN: dict[str, type[nn.Module]] = {
    "ASPP": more_blocks.ASPP,
    "BottleneckBase": more_blocks.BottleneckBase,
    "CBFuse": blocks.CBFuse,
    "CSP": blocks.CSP,
    "CSPBase": more_blocks.CSPBase,
    "Concat": blocks.Concat,
    "Contract": more_blocks.Contract,
    "Expand": more_blocks.Expand,
    "ImplicitA": more_blocks.ImplicitA,
    "ImplicitM": more_blocks.ImplicitM,
    "MP": blocks.MP,
    "MixConv2d": more_blocks.MixConv2d,
    "Proto": more_blocks.Proto,
    "RBottleneckBase": more_blocks.RBottleneckBase,
    "ReOrg": more_blocks.ReOrg,
    "RepConvN": blocks.RepConvN,
    "RepNBottleneck": blocks.RepNBottleneck,
    "RepNCSP": blocks.RepNCSP,
    "RepNRBottleneckBase": more_blocks.RepNRBottleneckBase,
    "RepNRes": more_blocks.RepNRes,
    "Res": more_blocks.Res,
    "SP": blocks.SP,
    "Shortcut": more_blocks.Shortcut,
    "Silence": blocks.Silence,
    "UConv": more_blocks.UConv,
}
# Of torch.nn: layers of maps, by the modules that define them.
_LAYERS_OF_TORCH = frozenset(
    f"torch.nn.modules.{name}"
    for name in (
        "activation", "batchnorm", "channelshuffle", "conv", "dropout", "fold", "instancenorm",
        "linear", "normalization", "padding", "pixelshuffle", "pooling", "upsampling",
    )
)  # fmt: skip


def layer_of_torch(name: str) -> type[nn.Module] | None:
    """Return the class of such as `nn.ZeroPad2d`; None where it is no layer of maps."""
    kind = getattr(nn, name.removeprefix("nn."), None) if name.startswith("nn.") else None
    if not inspect.isclass(kind) or kind.__module__ not in _LAYERS_OF_TORCH:
        return None
    return kind if issubclass(kind, nn.Module) else None
