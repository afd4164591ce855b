"""The other blocks that an official description may name; those of the shipped ones are `blocks`.

Attribute names are those of official state_dict keys, and arguments are in the official order.

Source: names, arguments and structure of the classes in the official models/common.py and
models/experimental.py, to which benchmarks/official_blocks.py compares these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import rebuild
from .blocks import CSP, Bottleneck, Conv, RepConvN, activation_of


class DWConv(Conv):
    """Convolution in as many groups as input and output channels allow, batch norm, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        dilation: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        groups = math.gcd(in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel, stride, None, groups, dilation, act)


class ConvTranspose(nn.Module):
    """Transposed convolution, batch norm, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 2,
        stride: int = 2,
        padding: int = 0,
        norm: bool = True,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(
            in_channels, out_channels, kernel, stride, padding, bias=not norm
        )
        self.bn = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.act = activation_of(act)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged map."""
        out: Tensor = self.act(self.bn(self.conv_transpose(x)))
        return out


class DWConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution in as many groups as input and output channels allow."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
    ) -> None:
        groups = math.gcd(in_channels, out_channels)
        super().__init__(
            in_channels, out_channels, kernel, stride, padding, output_padding, groups=groups
        )


class BottleneckBase(Bottleneck):
    """A bottleneck of a 1x1 and a 3x3 convolution."""

    kernels = (1, 3)


class RBottleneckBase(Bottleneck):
    """A bottleneck of a 3x3 and a 1x1 convolution."""

    kernels = (3, 1)


class RepNRBottleneckBase(Bottleneck):
    """A bottleneck of a RepConvN and a 1x1 convolution."""

    first = RepConvN
    kernels = (3, 1)


class CSPBase(CSP):
    """A cross-stage partial block of 1x1 and 3x3 bottlenecks."""

    block = BottleneckBase


class Res(nn.Module):
    """The bottleneck of ResNet: 1x1, 3x3, 1x1, and where the channels allow it the input added."""

    middle: type[Conv | RepConvN] = Conv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = self.middle(hidden, hidden, 3, 1, groups=groups)
        self.cv3 = Conv(hidden, out_channels)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        out: Tensor = self.cv3(self.cv2(self.cv1(x)))
        return rebuild.add(x, out) if self.add else out


class RepNRes(Res):
    """The bottleneck of ResNet with a RepConvN in its middle."""

    middle = RepConvN


class BottleneckCSP(nn.Module):
    """Cross-stage partial block whose two paths share one batch norm."""

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
        self.cv2 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, out_channels)
        self.bn = nn.BatchNorm2d(2 * hidden)
        self.act = nn.SiLU()
        self.m = nn.Sequential(
            *(Bottleneck(hidden, hidden, shortcut, groups, None, 1.0) for _ in range(num_blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        paths = rebuild.join((self.cv3(self.m(self.cv1(x))), self.cv2(x)))
        out: Tensor = self.cv4(self.act(self.bn(paths)))
        return out


class SPP(nn.Module):
    """Spatial pyramid pooling: a map and its poolings with several windows, joined."""

    def __init__(
        self, in_channels: int, out_channels: int, kernels: Sequence[int] = (5, 9, 13)
    ) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(hidden * (len(kernels) + 1), out_channels)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        x = self.cv1(x)
        out: Tensor = self.cv2(rebuild.join([x, *(pool(x) for pool in self.m)]))
        return out


class SPPF(nn.Module):
    """Spatial pyramid pooling by one window three times in a row."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(4 * hidden, out_channels)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H, W]`."""
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.m(parts[-1]))
        out: Tensor = self.cv2(rebuild.join(parts))
        return out


class ASPP(nn.Module):
    """A 1x1, two dilated 3x3 convolutions and one of the map's mean, each after ReLU, joined.

    Gives four times `out_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        shapes = ((1, 1, 0), (3, 3, 3), (3, 6, 6), (1, 1, 0))  # kernel, dilation, padding
        self.aspp = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, kernel, 1, padding, dilation)
            for kernel, dilation, padding in shapes
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        for conv in self.aspp:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            fan_out = conv.kernel_size[0] * conv.kernel_size[1] * out_channels
            nn.init.normal_(conv.weight, 0, math.sqrt(2 / fan_out))
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, 4 out_channels, H, W]`."""
        *local, last = self.aspp
        maps = [functional.relu_(conv(x)) for conv in local]
        mean = functional.relu_(last(self.gap(x)))
        return torch.cat([*maps, mean.expand_as(maps[-1])], 1)


class ReOrg(nn.Module):
    """Every second pixel of both sides in channels of its own, columns after rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, 4 C, H / 2, W / 2]`."""
        return torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)


class Contract(nn.Module):
    """Squares of `gain` by `gain` pixels in channels."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, C gain^2, H / gain, W / gain]`."""
        batch, channels, height, width = x.shape
        gain = self.gain
        x = x.view(batch, channels, height // gain, gain, width // gain, gain)
        return x.permute(0, 3, 5, 1, 2, 4).contiguous().flatten(1, 3)


class Expand(nn.Module):
    """Channels in squares of `gain` by `gain` pixels."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, C / gain^2, H gain, W gain]`."""
        batch, channels, height, width = x.shape
        gain = self.gain
        x = x.view(batch, gain, gain, channels // gain**2, height, width)
        return x.permute(0, 3, 4, 1, 5, 2).contiguous().flatten(4, 5).flatten(2, 3)


class Shortcut(nn.Module):
    """The sum of its first two inputs; `dimension` has no effect, there and here."""

    def __init__(self, dimension: int = 0) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        """Return the sum."""
        return rebuild.add(xs[0], xs[1])


class ImplicitA(nn.Module):
    """A learned number a channel, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.normal_(self.implicit, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        return self.implicit + x


class ImplicitM(nn.Module):
    """A learned factor a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.normal_(self.implicit, mean=1.0, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        return self.implicit * x


class MixConv2d(nn.Module):
    """Convolutions with several kernels over all channels, joined; batch norm, SiLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernels: one for each convolution.
        stride: of all.
        equal_channels: whether they give equally many channels, else have equally many weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: Sequence[int] = (1, 3),
        stride: int = 1,
        equal_channels: bool = True,
    ) -> None:
        super().__init__()
        widths = _even(out_channels, len(kernels))
        if not equal_channels:
            shares = [1 / kernel**2 for kernel in kernels]
            widths = [round(out_channels * share / sum(shares)) for share in shares]
        self.m = nn.ModuleList(
            nn.Conv2d(
                in_channels,
                width,
                kernel,
                stride,
                kernel // 2,
                groups=math.gcd(in_channels, width),
                bias=False,
            )
            for kernel, width in zip(kernels, widths, strict=True)
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, H / stride, W / stride]`."""
        out: Tensor = self.act(self.bn(torch.cat([conv(x) for conv in self.m], 1)))
        return out


def _even(total: int, parts: int) -> list[int]:
    """Return `total` in nearly equal parts, as a line from 0 to `parts` is cut at whole numbers."""
    step = (parts - 1e-6) / max(total - 1, 1)
    places = [int(index * step) for index in range(total)]
    return [places.count(part) for part in range(parts)]


class UConv(nn.Module):
    """Two convolutions, enlarged twice by linear interpolation."""

    def __init__(self, in_channels: int, hidden: int = 256, out_channels: int = 256) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden, 3)
        self.cv2 = nn.Conv2d(hidden, out_channels, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, 2 H, 2 W]`."""
        out: Tensor = self.up(self.cv2(self.cv1(x)))
        return out


class Proto(nn.Module):
    """Prototypes of masks: a map enlarged twice between convolutions."""

    def __init__(self, in_channels: int, hidden: int = 256, out_channels: int = 32) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, hidden, 3)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.cv2 = Conv(hidden, hidden, 3)
        self.cv3 = Conv(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, out_channels, 2 H, 2 W]`."""
        out: Tensor = self.cv3(self.cv2(self.upsample(self.cv1(x))))
        return out
