"""Building blocks of YOLOv9 and GELAN; attribute names are those of official state_dict keys.

Every block has `reduction`: how many times smaller its output map is than its input along one side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import lean, rebuild

if TYPE_CHECKING:
    from collections.abc import Sequence

# Official training sets both on every BatchNorm2d after building.
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.03


class Conv(nn.Module):
    """Convolution without bias, batch norm, activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the square kernel.
        stride: stride.
        padding: padding; None keeps the size at stride 1.
        groups: groups of the convolution.
        act: True ends in the network's activation, False in nothing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        *,
        act: bool = True,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = kernel // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, BATCH_NORM_EPS, BATCH_NORM_MOMENTUM)
        self.act: nn.Module = nn.SiLU(inplace=True) if act else nn.Identity()
        self.reduction = float(stride)
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

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, 3, act=False)
        self.conv2 = Conv(in_channels, out_channels, 1, act=False)
        self.act: nn.Module = nn.SiLU(inplace=True)
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


class RepNBottleneck(nn.Module):
    """RepConvN and a 3x3 convolution with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = RepConvN(channels, channels)
        self.cv2 = Conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        out: Tensor = rebuild.add(x, self.cv2(self.cv1(x)))
        return out


class RepNCSP(nn.Module):
    """Cross-stage partial block: half of the channels pass through `num_blocks` bottlenecks."""

    reduction = 1.0

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int = 1) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = nn.Sequential(*(RepNBottleneck(hidden) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        out: Tensor = self.cv3(rebuild.join((self.m(self.cv1(x)), self.cv2(x))))
        return out


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
        self.reduction = float(stride)

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
    """Spatial pyramid pooling inside a cross-stage partial block, as in YOLOv7."""

    reduction = 1.0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernels: Sequence[int] = (5, 9, 13),
    ) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, out_channels)
        self.cv2 = Conv(in_channels, out_channels)
        self.cv3 = Conv(out_channels, out_channels, 3)
        self.cv4 = Conv(out_channels, out_channels)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in kernels)
        self.cv5 = Conv((1 + len(kernels)) * out_channels, out_channels)
        self.cv6 = Conv(out_channels, out_channels, 3)
        self.cv7 = Conv(2 * out_channels, out_channels)

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

    reduction = 1.0

    def __init__(self, in_channels: int, out_channels: Sequence[int]) -> None:
        super().__init__()
        self.c2s = list(out_channels)
        self.conv = nn.Conv2d(in_channels, sum(self.c2s), 1)

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
