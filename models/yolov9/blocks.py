"""Building blocks of YOLOv9 and GELAN; attribute names are those of official state_dict keys.

A block's `reduction` is how many times smaller its output map is than its input along one side;
None where that depends on the map's size. Arguments are in the official order. `more_blocks` has
those that no shipped configuration names.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import lean, rebuild

Sides = int | Sequence[int]
"""Along both sides of a map: one number, or one for each."""

# Official training sets both on every BatchNorm2d after building.
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03


def pair(value: Sides) -> tuple[int, int]:
    """Return a number for each side."""
    both = (value, value) if isinstance(value, int) else tuple(value)
    return cast("tuple[int, int]", both)


def same_padding(kernel: Sides, dilation: int = 1) -> tuple[int, int]:
    """Return the padding that keeps a map's size at stride 1."""
    first, second = pair(kernel)
    return (dilation * (first - 1) + 1) // 2, (dilation * (second - 1) + 1) // 2


def activation_of(act: bool | nn.Module) -> nn.Module:
    """Return a block's own activation: SiLU for True, nothing for False, else a copy of `act`."""
    if isinstance(act, nn.Module):
        return copy.deepcopy(act)
    return nn.SiLU(inplace=True) if act else nn.Identity()


class Conv(nn.Module):
    """Convolution without bias, batch norm, activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: sides of the kernel.
        stride: stride.
        padding: padding; None keeps the size at stride 1.
        groups: groups of the convolution.
        dilation: pixels from one tap of the kernel to the next.
        act: True ends in the network's activation, False in nothing, a module in a copy of it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sides = 1,
        stride: int = 1,
        padding: Sides | None = None,
        groups: int = 1,
        dilation: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        same = same_padding(kernel, dilation)
        padded = same if padding is None else pair(padding)
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            pair(kernel),
            stride,
            padded,
            groups=groups,
            dilation=dilation,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM)
        self.act = activation_of(act)
        self.reduction = float(stride) if padded == same else None
        self.lean = False

    def can_be_lean(self) -> bool:
        """Return whether `lean` may be set: to keep less for backward, all else being equal."""
        return lean.is_supported([self.bn], self.act)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H / stride, W / stride]`."""
        if self.lean and self.training and torch.is_grad_enabled():
            return lean.normalised_activation([self.conv(x)], [self.bn], self.act)
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class RepConvN(nn.Module):
    """Sum of a 3x3 and a 1x1 convolution, then one activation; mergeable into one 3x3."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        dilation: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        if (kernel, padding, dilation) != (3, 1, 1):
            raise ValueError("the kernel of RepConvN is 3, its padding 1, its dilation 1")
        self.conv1 = Conv(in_channels, out_channels, 3, stride, 1, groups, act=False)
        self.conv2 = Conv(in_channels, out_channels, 1, stride, 0, groups, act=False)
        self.act = activation_of(act)
        self.reduction = float(stride)
        self.lean = False

    def can_be_lean(self) -> bool:
        """Return whether `lean` may be set: to keep less for backward, all else being equal."""
        return lean.is_supported([self.conv1.bn, self.conv2.bn], self.act)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        if self.lean and self.training and torch.is_grad_enabled():
            maps = [self.conv1.conv(x), self.conv2.conv(x)]
            return lean.normalised_activation(maps, [self.conv1.bn, self.conv2.bn], self.act)
        out: Tensor = self.act(self.conv1(x) + self.conv2(x))
        return out


class Bottleneck(nn.Module):
    """Two convolutions and, where the channels allow it, a residual connection.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        shortcut: whether the input is added.
        groups: of the second convolution.
        kernels: of both; None takes the class's.
        expansion: channels between the two, as a share of the output's.
    """

    reduction = 1.0
    first: type[Conv | RepConvN] = Conv
    kernels: tuple[int, int] = (3, 3)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shortcut: bool = True,
        groups: int = 1,
        kernels: Sequence[int] | None = None,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        before, after = kernels or self.kernels
        self.cv1 = self.first(in_channels, hidden, before, 1)
        self.cv2 = Conv(hidden, out_channels, after, 1, groups=groups)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        out: Tensor = self.cv2(self.cv1(x))
        return rebuild.add(x, out) if self.add else out


class RepNBottleneck(Bottleneck):
    """A bottleneck whose first convolution is a RepConvN."""

    first = RepConvN


class CSP(nn.Module):
    """Cross-stage partial block: half of the channels pass through `num_blocks` bottlenecks.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        num_blocks: bottlenecks in a row.
        shortcut: whether each adds its input.
        groups: of each one's second convolution.
        expansion: channels of a path, as a share of the output's.
    """

    reduction = 1.0
    block: type[Bottleneck] = Bottleneck

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = nn.Sequential(
            *(self.block(hidden, hidden, shortcut, groups, None, 1.0) for _ in range(num_blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        out: Tensor = self.cv3(rebuild.join((self.m(self.cv1(x)), self.cv2(x))))
        return out


class RepNCSP(CSP):
    """The cross-stage partial block of GELAN."""

    block = RepNBottleneck


class RepNCSPELAN4(nn.Module):
    """Layer aggregation over two RepNCSP stages, the main block of GELAN."""

    reduction = 1.0

    def __init__(
        self, in_channels: int, out_channels: int, split: int, hidden: int, num_blocks: int = 1
    ) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, split)
        self.cv2 = nn.Sequential(RepNCSP(split // 2, hidden, num_blocks), Conv(hidden, hidden, 3))
        self.cv3 = nn.Sequential(RepNCSP(hidden, hidden, num_blocks), Conv(hidden, hidden, 3))
        self.cv4 = Conv(split + 2 * hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        parts = rebuild.halves(self.cv1(x))
        parts.append(self.cv2(parts[-1]))
        parts.append(self.cv3(parts[-1]))
        out: Tensor = self.cv4(rebuild.join(parts))
        return out


class ELAN1(nn.Module):
    """Layer aggregation over two plain 3x3 convolutions."""

    reduction = 1.0

    def __init__(self, in_channels: int, out_channels: int, split: int, hidden: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, split)
        self.cv2 = Conv(split // 2, hidden, 3)
        self.cv3 = Conv(hidden, hidden, 3)
        self.cv4 = Conv(split + 2 * hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        parts = rebuild.halves(self.cv1(x))
        parts.append(self.cv2(parts[-1]))
        parts.append(self.cv3(parts[-1]))
        out: Tensor = self.cv4(rebuild.join(parts))
        return out


def _blur(x: Tensor) -> Tensor:
    """Return the 2x2 mean at every pixel, one pixel smaller along each side."""
    if rebuild.recipe_of(x) is not None:
        blurred: Tensor = lean.Blur.apply(x)  # type: ignore[no-untyped-call]
        return blurred
    return functional.avg_pool2d(x, 2, 1)


class AConv(nn.Module):
    """Down-sampling by a 2x2 mean and a 3x3 convolution of stride 2."""

    reduction = 2.0

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, out_channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H / 2, W / 2]`."""
        out: Tensor = self.cv1(_blur(x))
        return out


class ADown(nn.Module):
    """Down-sampling, half of the channels by convolution and half by max pooling."""

    reduction = 2.0

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = Conv(in_channels // 2, half, 3, 2, 1)
        self.cv2 = Conv(in_channels // 2, half)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H / 2, W / 2]`."""
        convolved, pooled = _blur(x).chunk(2, 1)
        pooled = functional.max_pool2d(pooled, 3, 2, 1)
        return rebuild.join((self.cv1(convolved), self.cv2(pooled)))


class SP(nn.Module):
    """Max pooling that keeps the size at stride 1."""

    def __init__(self, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(kernel, stride, kernel // 2)
        self.reduction = float(stride) if kernel % 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map."""
        out: Tensor = self.m(x)
        return out


class MP(nn.Module):
    """Max pooling without overlap."""

    def __init__(self, kernel: int = 2) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(kernel, kernel)
        self.reduction = float(kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, C, H / kernel, W / kernel]`."""
        out: Tensor = self.m(x)
        return out


class SPPELAN(nn.Module):
    """Spatial pyramid pooling: a 1x1 convolution and three chained 5x5 max poolings, joined."""

    reduction = 1.0

    def __init__(self, in_channels: int, out_channels: int, hidden: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = SP(5)
        self.cv3 = SP(5)
        self.cv4 = SP(5)
        self.cv5 = Conv(4 * hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        parts = [self.cv1(x)]
        for pool in (self.cv2, self.cv3, self.cv4):
            parts.append(pool(parts[-1]))
        out: Tensor = self.cv5(rebuild.join(parts))
        return out


class SPPCSPC(nn.Module):
    """Spatial pyramid pooling inside a cross-stage partial block, as in YOLOv7.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        num_blocks: no effect, nor have `shortcut` and `groups`; the official block takes them.
        shortcut: see there.
        groups: see there.
        expansion: half the channels inside, as a share of the output's.
        kernels: of the poolings.
    """

    reduction = 1.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int = 1,
        shortcut: bool = False,
        groups: int = 1,
        expansion: float = 0.5,
        kernels: Sequence[int] = (5, 9, 13),
    ) -> None:
        super().__init__()
        del num_blocks, shortcut, groups
        hidden = int(2 * out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(hidden, hidden, 3)
        self.cv4 = Conv(hidden, hidden)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in kernels)
        self.cv5 = Conv((1 + len(kernels)) * hidden, hidden)
        self.cv6 = Conv(hidden, hidden, 3)
        self.cv7 = Conv(2 * hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        deep = self.cv4(self.cv3(self.cv1(x)))
        deep = self.cv6(self.cv5(rebuild.join([deep, *(pool(deep) for pool in self.m)])))
        out: Tensor = self.cv7(rebuild.join((deep, self.cv2(x))))
        return out


class Silence(nn.Module):
    """The input, unchanged; lets later layers refer to the image."""

    reduction = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x


class Concat(nn.Module):
    """The inputs joined along one dimension."""

    reduction = 1.0

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, xs: list[Tensor]) -> Tensor:
        """Return the joined map."""
        return rebuild.join(xs, self.d)


class CBLinear(nn.Module):
    """One 1x1 convolution split into maps of the given widths, for CBFuse to pick from."""

    def __init__(
        self,
        in_channels: int,
        out_channels: Sequence[int],
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.c2s = list(out_channels)
        self.conv = nn.Conv2d(in_channels, sum(self.c2s), kernel, stride, padding, groups=groups)
        self.reduction = float(stride) if padding == kernel // 2 else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return one map per width, each `[B, width, H, W]`."""
        return torch.split(self.conv(x), self.c2s, dim=1)


class CBFuse(nn.Module):
    """Sum of the last input and one map of each CBLinear, resized to it by nearest neighbour.

    Args:
        picks: which map of each CBLinear input to take.
    """

    reduction = 1.0

    def __init__(self, picks: Sequence[int]) -> None:
        super().__init__()
        self.idx = list(picks)

    def forward(self, xs: Sequence[tuple[Tensor, ...] | Tensor]) -> Tensor:
        """Return a map of the last input's shape."""
        last = xs[-1]
        maps = [
            functional.interpolate(x[pick], size=last.shape[2:], mode="nearest")  # type: ignore[union-attr]
            for x, pick in zip(xs[:-1], self.idx, strict=True)
        ]
        # Stacked and summed as the official code does: the order of additions is part of parity.
        return torch.stack([*maps, last]).sum(dim=0)  # type: ignore[list-item]
