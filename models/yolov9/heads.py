"""Detection heads: raw maps in training, decoded boxes and scores in evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from .blocks import Conv
from .boxes import centre_boxes_from_distances, make_anchors

if TYPE_CHECKING:
    from collections.abc import Sequence

REG_MAX = 16  # bins of one side's distance
_IMAGE_SIDE = 640  # the image size for which class biases are set
Maps = list[Tensor]


class DFL(nn.Module):
    """The mean of a distribution over `bins` distances; its weights are fixed.

    Source: Li et al., "Generalized Focal Loss" (2020).
    """

    def __init__(self, bins: int = REG_MAX) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(requires_grad=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Return distances `[B, 4, A]` in cells from logits `[B, 4 * bins, A]`."""
        batch, _, anchors = x.shape
        logits = x.view(batch, 4, self.bins, anchors).transpose(2, 1)
        out: Tensor = self.conv(logits.softmax(1)).view(batch, 4, anchors)
        return out


class Detect(nn.Module):
    """One branch of anchor-free outputs at several levels.

    In training mode the result is the raw maps, each `[B, 64 + nc, h, w]`, box logits first; in
    evaluation it is (decoded, maps), decoded being `[B, 4 + nc, A]`: centre x, centre y, width and
    height in pixels, then class probabilities. Nothing is cached between calls: anchors follow the
    maps, so another image size, dtype or device needs no preparation.

    Args:
        nc: number of classes.
        channels: channels of the inputs; with several branches, those of the first branch first.
        strides: pixels a cell of each level.
    """

    branches: ClassVar[int] = 1
    grouped: ClassVar[bool] = False

    def __init__(self, nc: int, channels: Sequence[int], strides: Sequence[float]) -> None:
        super().__init__()
        self.nc = nc
        self.nl = len(channels) // self.branches
        self.no = nc + 4 * REG_MAX
        self.reg_max = REG_MAX
        self.strides = tuple(float(s) for s in strides)
        for branch in range(self.branches):
            inputs = channels[branch * self.nl : (branch + 1) * self.nl]
            box, scores = _branch(nc, inputs, groups=4 if self.grouped else 1)
            self.add_module(f"cv{2 * branch + 2}", box)
            self.add_module(f"cv{2 * branch + 3}", scores)
        # Official modules hold the integrals after all convolutions, named dfl, dfl2, dfl3.
        for branch in range(self.branches):
            self.add_module("dfl" if branch == 0 else f"dfl{branch + 1}", DFL())
        self.bias_init()

    def bias_init(self) -> None:
        """Set the output biases: boxes to 1, classes to five objects an image of 640 pixels."""
        for branch in range(self.branches):
            box = self.get_submodule(f"cv{2 * branch + 2}")
            scores = self.get_submodule(f"cv{2 * branch + 3}")
            for a, b, stride in zip(box.children(), scores.children(), self.strides, strict=True):
                nn.init.constant_(_bias(a), 1.0)
                nn.init.constant_(_bias(b), math.log(5 / self.nc / (_IMAGE_SIDE / stride) ** 2))

    def inputs_of(self, branch: int) -> list[int]:
        """Return the places among the head's inputs that a branch reads."""
        return list(range(branch * self.nl, (branch + 1) * self.nl))

    def entries_of(self, branch: int) -> dict[str, str]:
        """Return the modules of a branch by their names in a head of that branch alone."""
        dfl = "dfl" if branch == 0 else f"dfl{branch + 1}"
        return {"cv2": f"cv{2 * branch + 2}", "cv3": f"cv{2 * branch + 3}", "dfl": dfl}

    def raw(self, xs: Sequence[Tensor], branch: int) -> Maps:
        """Return the raw maps of one branch from all inputs of the head."""
        boxes = self.get_submodule(f"cv{2 * branch + 2}").children()
        scores = self.get_submodule(f"cv{2 * branch + 3}").children()
        inputs = xs[branch * self.nl : (branch + 1) * self.nl]
        return [
            torch.cat((box(x), score(x)), 1)
            for x, box, score in zip(inputs, boxes, scores, strict=True)
        ]

    def decode(self, maps: Maps, branch: int) -> Tensor:
        """Return `[B, 4 + nc, A]`: boxes in pixels as centre and size, then probabilities."""
        joined = torch.cat([m.flatten(2) for m in maps], 2)
        box, scores = torch.split(joined, [4 * REG_MAX, self.nc], 1)
        points, strides = (t.transpose(0, 1) for t in make_anchors(maps, self.strides))
        integral = self.get_submodule("dfl" if branch == 0 else f"dfl{branch + 1}")
        boxes = centre_boxes_from_distances(integral(box), points.unsqueeze(0), 1) * strides
        return torch.cat((boxes, scores.sigmoid()), 1)

    def forward(self, xs: list[Tensor]) -> Maps | tuple[Tensor, Maps]:
        """Return raw maps in training, (decoded, maps) in evaluation."""
        maps = self.raw(xs, 0)
        return maps if self.training else (self.decode(maps, 0), maps)


class DDetect(Detect):
    """The head of GELAN: as `Detect`, with the box branch in four groups."""

    grouped = True


class DualDDetect(DDetect):
    """An auxiliary branch and the main one, in this order in every result.

    In evaluation the result is ([aux decoded, main decoded], [aux maps, main maps]).
    """

    branches = 2

    def forward(  # type: ignore[override]
        self, xs: list[Tensor]
    ) -> list[Maps] | tuple[list[Tensor], list[Maps]]:
        """Return the raw maps of both branches, in evaluation after their decoded forms."""
        maps = [self.raw(xs, branch) for branch in range(self.branches)]
        if self.training:
            return maps
        return [self.decode(m, branch) for branch, m in enumerate(maps)], maps


class TripleDDetect(DDetect):
    """Two auxiliary branches and the main one; evaluation computes the main branch alone."""

    branches = 3

    def forward(  # type: ignore[override]
        self, xs: list[Tensor]
    ) -> list[Maps] | tuple[Tensor, Maps]:
        """Return the raw maps of all branches, or the main one's (decoded, maps)."""
        if self.training:
            return [self.raw(xs, branch) for branch in range(self.branches)]
        main = self.raw(xs, self.branches - 1)
        return self.decode(main, self.branches - 1), main


class DualDetect(DualDDetect):
    """As `DualDDetect`, the box branches not in groups."""

    grouped = False


class TripleDetect(TripleDDetect):
    """As `TripleDDetect`, the box branches not in groups."""

    grouped = False


HEADS: dict[str, type[Detect]] = {
    head.__name__: head
    for head in (Detect, DDetect, DualDetect, DualDDetect, TripleDetect, TripleDDetect)
}


def _branch(nc: int, channels: Sequence[int], groups: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Return the box and class convolutions of one branch; widths follow its first input."""
    box_width = max(channels[0] // 4, 4 * REG_MAX, 16)
    box_width = math.ceil(box_width / 4) * 4 if groups > 1 else box_width
    class_width = max(channels[0], min(2 * nc, 128))
    box = nn.ModuleList(
        nn.Sequential(
            Conv(c, box_width, 3),
            Conv(box_width, box_width, 3, groups=groups),
            nn.Conv2d(box_width, 4 * REG_MAX, 1, groups=groups),
        )
        for c in channels
    )
    scores = nn.ModuleList(
        nn.Sequential(
            Conv(c, class_width, 3),
            Conv(class_width, class_width, 3),
            nn.Conv2d(class_width, nc, 1),
        )
        for c in channels
    )
    return box, scores


def _bias(stack: nn.Module) -> Tensor:
    """Return the bias of the last convolution of one level's stack."""
    last = list(stack.children())[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    return last.bias
