"""How a map is made again in backward from what is kept anyway.

A map that a lean block returns carries its recipe: the convolution's output and the statistics it
was normalised with. Joining, splitting, adding and enlarging such maps gives maps with recipes of
their own, so a convolution over any of them need not keep its input.

Backward makes each map once: whoever first wants it again leaves it for those that come after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Make = Callable[[Iterator[Tensor]], Tensor]


@dataclass(eq=False)
class Memo:
    """A map that was made again, until the last of those that want it has had it."""

    parts: tuple[Memo, ...] = ()
    """Of the maps it is made from."""
    num_uses: int = 0
    """How often it will still be wanted."""
    value: Tensor | None = None
    total: Tensor | None = None
    """What it is the activation of, left for the activation's own gradient."""

    def use(self) -> None:
        """Count one more that will want the map; what it is made from is wanted once."""
        self.num_uses += 1
        if self.num_uses == 1:
            for part in self.parts:
                part.use()

    def given(self, value: Tensor) -> Tensor:
        """Return the map, kept as long as anyone else will want it."""
        self.num_uses -= 1
        self.value = value if self.num_uses > 0 else None
        return value

    def take_total(self) -> Tensor | None:
        """Return what was left of the normalised map, and keep it no longer."""
        total, self.total = self.total, None
        return total


@dataclass(frozen=True)
class Recipe:
    """What a map is made from, and how; the two apart, so that autograd alone holds the former."""

    make: Make
    """Returns the map, given `kept` in its order; holds no tensor itself."""
    kept: tuple[Tensor, ...]
    """What must be kept for it."""
    branches: tuple[Branch, ...] = ()
    """What the map is the activation of; empty where it is not one of normalised maps."""
    silu: bool = True
    """Which activation that is: SiLU, else ReLU."""
    memo: Memo | None = None
    """Of the map; None where it is kept as it is."""


class Branch(NamedTuple):
    """A map before normalisation, `[B, C, H, W]`, and what it is normalised with, each `[C]`."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    reciprocal: Tensor
    """Reciprocal of the standard deviation, epsilon in it."""

    def narrow(self, start: int, length: int) -> Branch:
        """Return the branch of some channels, views of this one's."""
        return Branch(*(t.narrow(min(1, t.dim() - 1), start, length) for t in self))


def normalised(branches: Sequence[Branch]) -> Tensor:
    """Return the sum of the normalised maps, in new memory."""
    total = None
    for branch in branches:
        # Evaluation's kernel, with this batch's statistics and epsilon already in them.
        variance = branch.reciprocal.pow(-2)
        out = torch.native_batch_norm(
            branch.x, branch.weight, branch.bias, branch.mean, variance, False, 0.0, 0.0
        )[0]
        total = out if total is None else total.add_(out)
        del out
    assert total is not None
    return total


def activate(total: Tensor, *, silu: bool) -> Tensor:
    """Return SiLU, else ReLU, written over its input."""
    return functional.silu(total, inplace=True) if silu else total.relu_()


def activated(branches: Sequence[Branch], *, silu: bool, memo: Memo | None = None) -> Recipe:
    """Return the recipe of the activation of a sum of normalised maps.

    Args:
        branches: the maps.
        silu: whether the activation is SiLU, else ReLU.
        memo: of which the activation will take the sum; None where it is of more than these maps.
    """
    kept = tuple(tensor for branch in branches for tensor in branch)
    leaves_total = memo is not None
    memo = memo or Memo()
    make = partial(_make_activated, len(branches), silu, memo if leaves_total else None)
    return Recipe(partial(_made, memo, len(kept), make), kept, tuple(branches), silu, memo)


def _made(memo: Memo, num_kept: int, make: Make, kept: Iterator[Tensor]) -> Tensor:
    if memo.value is None:
        return memo.given(make(kept))
    for _ in range(num_kept):
        next(kept)
    return memo.given(memo.value)


def _make_activated(count: int, silu: bool, memo: Memo | None, kept: Iterator[Tensor]) -> Tensor:
    branches = [Branch(*(next(kept) for _ in Branch._fields)) for _ in range(count)]
    total = normalised(branches)
    # The gradient of the activation comes right after the only one that wants the map; after one
    # of several it would keep the sum for long.
    if memo is None or memo.num_uses > 1:
        return activate(total, silu=silu)
    memo.total = total
    return functional.silu(total) if silu else functional.relu(total)


def _composed(make: Make, recipes: Sequence[Recipe]) -> Recipe:
    """Return the recipe of a map that is made from others."""
    kept = tuple(tensor for recipe in recipes for tensor in recipe.kept)
    memo = Memo(tuple(recipe.memo for recipe in recipes if recipe.memo is not None))
    return Recipe(partial(_made, memo, len(kept), make), kept, memo=memo)


def _make_joined(parts: Sequence[Make], kept: Iterator[Tensor]) -> Tensor:
    return torch.cat([make(kept) for make in parts], 1)


def _make_sum(first: Make, second: Make, kept: Iterator[Tensor]) -> Tensor:
    # In this order: `kept` is read as it was written.
    x = first(kept)
    return x + second(kept)


def _make_enlarged(small: Make, factor: float, kept: Iterator[Tensor]) -> Tensor:
    return functional.interpolate(small(kept), scale_factor=factor)


def recipe_of(x: Tensor) -> Recipe | None:
    """Return how the map is made again; None where it can only be kept."""
    return getattr(x, "recipe", None)


def with_recipe(x: Tensor, recipe: Recipe) -> Tensor:
    """Return `x`, which from now on knows its recipe."""
    x.recipe = recipe  # type: ignore[attr-defined]
    return x


def take_recipe(x: Tensor) -> Recipe | None:
    """Take from `x` how it is made again, and return it."""
    recipe = recipe_of(x)
    if recipe is not None:
        del x.recipe  # type: ignore[attr-defined]
    return recipe


def _recipe_or_map(x: Tensor) -> Recipe:
    return recipe_of(x) or Recipe(next, (x.detach(),))


def join(xs: Sequence[Tensor], dimension: int = 1) -> Tensor:
    """Return maps joined along a dimension, the channels by default."""
    out = torch.cat(list(xs), dimension)
    if dimension != 1 or all(recipe_of(x) is None for x in xs):
        return out
    recipes = [_recipe_or_map(x) for x in xs]
    make = partial(_make_joined, tuple(recipe.make for recipe in recipes))
    return with_recipe(out, _composed(make, recipes))


def halves(x: Tensor) -> list[Tensor]:
    """Return the first and the second half of the channels, views of the map."""
    parts = list(x.chunk(2, 1))
    recipe = recipe_of(x)
    if recipe is not None and recipe.branches:
        for part, start in zip(parts, (0, parts[0].shape[1]), strict=True):
            branches = [branch.narrow(start, part.shape[1]) for branch in recipe.branches]
            with_recipe(part, activated(branches, silu=recipe.silu))
    return parts


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of two maps of one shape."""
    if recipe_of(x) is None and recipe_of(y) is None:
        return x + y
    first, second = _recipe_or_map(x), _recipe_or_map(y)
    make = partial(_make_sum, first.make, second.make)
    return with_recipe(x + y, _composed(make, (first, second)))


def enlarged(x: Tensor, out: Tensor, factor: float) -> Tensor:
    """Return `out`, which is `x` enlarged by nearest neighbour, with a recipe if `x` has one."""
    recipe = recipe_of(x)
    if recipe is None:
        return out
    return with_recipe(out, _composed(partial(_make_enlarged, recipe.make, factor), (recipe,)))
