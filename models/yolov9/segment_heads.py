"""Heads that also give each box a mask: a mixture of prototypes that all boxes of an image share.

Source: Bolya et al., "YOLACT" (2019), section 3; widths and names of entries are those of the
official Segment, DSegment and DualDSegment, so that their checkpoints load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .blocks import Conv
from .heads import DDetect, Detect, DualDDetect, Maps

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUM_MASKS = 32
_WIDTH = 256


class Masks(NamedTuple):
    """What the masks of one branch are made of; K prototypes."""

    coefficients: Tensor
    """The mixture of each anchor, `[B, K, A]`."""
    prototypes: Tensor
    """`[B, K, h, w]`, a quarter of the image's size; a mask's logits are their weighted sum."""


class Prototypes(nn.Module):
    """Prototypes at twice the size of the finest level."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__()
        self.cv1 = Conv(channels, width, 3)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.cv2 = Conv(width, width, 3)
        self.cv3 = Conv(width, count)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, count, 2h, 2w]`."""
        out: Tensor = self.cv3(self.cv2(self.upsample(self.cv1(x))))
        return out


class Segments(Detect):
    """A detection head whose boxes have masks.

    In training mode the result is (maps, coefficients, prototypes), each a list over branches where
    there are several; in evaluation it is (decoded, (maps, coefficients, prototypes)) of the main
    branch, decoded being `[B, 4 + nc + K, A]`: box, class probabilities, mixture.

    Args:
        nc: number of classes.
        channels: of the inputs: the levels of all branches, then what prototypes are made from.
        strides: pixels a cell of each level.
        num_masks: K, prototypes.
        width: channels inside `Prototypes`.
    """

    own_inputs = 1
    """Inputs after the levels, one a branch; 0 where prototypes are made from the finest level."""

    def __init__(
        self,
        nc: int,
        channels: Sequence[int],
        strides: Sequence[float],
        num_masks: int = _NUM_MASKS,
        width: int = _WIDTH,
    ) -> None:
        levels = channels[: len(channels) - self.own_inputs * self.branches]
        super().__init__(nc, levels, strides)
        self.nm = num_masks
        for branch in range(self.branches):
            own = channels[len(levels) + branch] if self.own_inputs else None
            prototypes = (
                Prototypes(channels[0], width, num_masks) if own is None else Conv(own, num_masks)
            )
            self.add_module(self._prototypes_name(branch), prototypes)
        for branch in range(self.branches):
            inputs = levels[branch * self.nl : (branch + 1) * self.nl]
            mixture = max(inputs[0] // 4, num_masks)
            self.add_module(
                self._coefficients_name(branch),
                nn.ModuleList(
                    nn.Sequential(
                        Conv(c, mixture, 3),
                        Conv(mixture, mixture, 3),
                        nn.Conv2d(mixture, num_masks, 1),
                    )
                    for c in inputs
                ),
            )

    def _prototypes_name(self, branch: int) -> str:
        return "proto" if branch == 0 else f"proto{branch + 1}"

    def _coefficients_name(self, branch: int) -> str:
        return f"cv{2 * self.branches + 2 + branch}"

    def inputs_of(self, branch: int) -> list[int]:
        """Return the places of a branch's inputs: its levels, then that of its prototypes."""
        own = [self.branches * self.nl + branch] * self.own_inputs
        return [*super().inputs_of(branch), *own]

    def entries_of(self, branch: int) -> dict[str, str]:
        """Return the modules of a branch by their names in a head of that branch alone."""
        return {
            **super().entries_of(branch),
            "cv4": self._coefficients_name(branch),
            "proto": self._prototypes_name(branch),
        }

    def masks(self, xs: Sequence[Tensor], branch: int) -> Masks:
        """Return what the masks of one branch are made of, from all inputs of the head."""
        *levels, last = (xs[place] for place in self.inputs_of(branch))
        levels = levels if self.own_inputs else [*levels, last]
        prototypes = self.get_submodule(self._prototypes_name(branch))(
            last if self.own_inputs else levels[0]
        )
        stacks = self.get_submodule(self._coefficients_name(branch)).children()
        coefficients = [stack(x).flatten(2) for x, stack in zip(levels, stacks, strict=True)]
        return Masks(torch.cat(coefficients, 2), prototypes)

    def forward(self, xs: list[Tensor]) -> Any:
        """Return maps, coefficients and prototypes, in evaluation after the decoded main branch."""
        branches = range(self.branches) if self.training else [self.branches - 1]
        masks = [self.masks(xs, branch) for branch in branches]
        maps: list[Maps] = [self.raw(xs, branch) for branch in branches]
        if self.training and self.branches > 1:
            coefficients, prototypes = zip(*masks, strict=True)
            return maps, list(coefficients), list(prototypes)
        parts = (maps[0], *masks[0])
        if self.training:
            return parts
        decoded = self.decode(maps[0], self.branches - 1)
        return torch.cat((decoded, masks[0].coefficients), 1), parts


class Segment(Segments):
    """The head of gelan-c-seg: prototypes from the finest level, boxes ungrouped."""

    own_inputs = 0


class DSegment(Segments, DDetect):
    """The head of gelan-c-dseg: prototypes from an input of their own, boxes in four groups."""


class DualDSegment(Segments, DualDDetect):
    """An auxiliary branch and the main one, each with its own prototypes."""


HEADS: dict[str, type[Detect]] = {head.__name__: head for head in (Segment, DSegment, DualDSegment)}
