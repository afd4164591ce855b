"""Layers that keep for backward only the outputs of convolutions.

In plain PyTorch every convolution block keeps three maps: the convolution's input, its output for
batch norm, and a copy of the normalised map from before the activation in place; what is joined to
be the input of a convolution is kept once more. Here a block keeps its convolution's output, and
backward makes the rest from it again, once: the block's result for all convolutions that read it,
and from it, where only one does, the normalised map for the activation's derivative.

Loss and running statistics are those of the plain step to the last bit, because the same kernels
compute them; gradients differ in how the maps made again were rounded.

Source: the idea is that of Bulò et al., "In-Place Activated BatchNorm" (2018), for an activation
that cannot be inverted: the map before the normalisation is kept instead of the one after.

Limits: differentiable once; a graph is walked backward once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from .rebuild import (
    Branch,
    Memo,
    Recipe,
    activate,
    activated,
    enlarged,
    normalised,
    recipe_of,
    with_recipe,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Operators have public names in the dispatcher, whatever their first letter.
_aten = torch.ops.aten


def is_supported(norms: Sequence[nn.Module], act: nn.Module) -> bool:
    """Return whether these layers can be one lean function.

    Batch norms over several devices, without weights or without a fixed momentum cannot, and of the
    activations only SiLU and ReLU can.
    """
    plain = all(
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        for norm in norms
    )
    return plain and type(act) in {nn.SiLU, nn.ReLU}


def normalised_activation(
    maps: Sequence[Tensor], norms: Sequence[nn.BatchNorm2d], act: nn.Module
) -> Tensor:
    """Return `act(sum(norm(map)))` as training computes it, moving the running statistics.

    Args:
        maps: outputs of convolutions, `[B, C, H, W]`, one a norm.
        norms: batch norms for which `is_supported` holds.
        act: SiLU or ReLU.
    """
    parameters: list[Tensor] = []
    for norm in norms:
        # Recomputation takes the count away while it runs again.
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        parameters += [norm.weight, norm.bias]
    silu = type(act) is nn.SiLU
    memo = Memo()
    out, *statistics = _NormalisedActivation.apply(  # type: ignore[no-untyped-call]
        norms, silu, memo, *maps, *parameters
    )
    branches = tuple(
        Branch(x.detach(), norm.weight.detach(), norm.bias.detach(), mean, reciprocal)
        for x, norm, mean, reciprocal in zip(
            maps, norms, statistics[::2], statistics[1::2], strict=True
        )
    )
    return with_recipe(out, activated(branches, silu=silu, memo=memo))


class _NormalisedActivation(torch.autograd.Function):
    """The function behind `normalised_activation`; it also returns means and deviations."""

    @staticmethod
    def forward(
        ctx: Any, norms: Sequence[nn.BatchNorm2d], silu: bool, memo: Memo, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return activation and statistics; given maps, then weight and bias of each norm."""
        maps, parameters = tensors[: len(norms)], tensors[len(norms) :]
        total, saved, statistics, ctx.backends = None, [], [], []
        for norm, x, weight, bias in zip(
            norms, maps, parameters[::2], parameters[1::2], strict=True
        ):
            assert norm.momentum is not None  # `is_supported`
            # Of PyTorch's batch norms, the one that the plain layer takes on this device.
            out, mean, reciprocal, reserve, backend = _aten._batch_norm_impl_index(  # noqa: SLF001 - public, see above
                x,
                weight,
                bias,
                norm.running_mean,
                norm.running_var,
                True,
                norm.momentum,
                norm.eps,
                torch.backends.cudnn.enabled,
            )
            total = out if total is None else total.add_(out)
            del out
            saved += [x, weight, bias, mean, reciprocal, reserve]
            statistics += [mean, reciprocal]
            ctx.backends.append((backend, norm.eps))
        assert total is not None
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(*statistics)
        ctx.set_materialize_grads(False)
        ctx.silu, ctx.memo = silu, memo
        return activate(total, silu=silu), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Any, ...]:
        """Return the gradients of the maps, then of weight and bias of each norm."""
        saved = ctx.saved_tensors
        count = len(ctx.backends)
        branches = [Branch(*saved[6 * index : 6 * index + 5]) for index in range(count)]
        total = ctx.memo.take_total()
        if total is None:
            total = normalised(branches)
        gradient = _through_activation(gradient, total, silu=ctx.silu)
        del total
        of_maps: list[Tensor | None] = []
        of_parameters: list[Tensor | None] = []
        for index, (backend, eps) in enumerate(ctx.backends):
            branch, reserve = branches[index], saved[6 * index + 5]
            first = 3 + count + 2 * index
            wanted = [ctx.needs_input_grad[i] for i in (3 + index, first, first + 1)]
            x_gradient, *rest = _aten._batch_norm_impl_index_backward(  # noqa: SLF001
                backend, branch.x, gradient, branch.weight, None, None,
                branch.mean, branch.reciprocal, True, eps, wanted, reserve,
            )  # fmt: skip
            of_maps.append(x_gradient)
            of_parameters += rest
        return (None, None, None, *of_maps, *of_parameters)


def _through_activation(gradient: Tensor, total: Tensor, *, silu: bool) -> Tensor:
    """Return the gradient of what was activated."""
    result: Tensor = (
        _aten.silu_backward(gradient, total)
        if silu
        else _aten.threshold_backward(gradient, total, 0)
    )
    return result


class Convolution(nn.Conv2d):
    """A convolution that makes its input again in backward where the input has a recipe."""

    @staticmethod
    def can_replace(layer: nn.Module) -> bool:
        """Return whether a layer may become one by changing its class."""
        return type(layer) is nn.Conv2d and layer.padding_mode == "zeros"

    def forward(self, x: Tensor) -> Tensor:
        """Return what `nn.Conv2d` returns."""
        recipe, dtype = recipe_of(x), x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        if recipe is None or not torch.is_grad_enabled() or x.dtype != dtype:
            return super().forward(x)
        # Cast here, where autograd sees it, as autocast would.
        bias = None if self.bias is None else self.bias.to(dtype)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        out: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
            recipe, settings, x, self.weight.to(dtype), bias, *recipe.kept
        )
        return out


class _Convolution(torch.autograd.Function):
    """A convolution that keeps what its input is made from instead of the input."""

    @staticmethod
    def forward(
        ctx: Any,
        recipe: Recipe,
        settings: tuple[Any, ...],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *kept: Tensor,
    ) -> Tensor:
        """Return the convolution of `x`, which its recipe makes again from `kept`."""
        # Only the way of making: what it is made from is autograd's to keep and let go.
        ctx.make, ctx.settings = recipe.make, settings
        if recipe.memo is not None and any(ctx.needs_input_grad):
            recipe.memo.use()
        ctx.bias_sizes = None if bias is None else [len(bias)]
        ctx.save_for_backward(weight, *kept)
        return functional.conv2d(x, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Return the gradients of input, weight and bias."""
        weight, *kept = ctx.saved_tensors
        x = ctx.make(iter(kept))
        stride, padding, dilation, groups = ctx.settings
        gradients = _aten.convolution_backward(
            gradient, x, weight, ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups,
            list(ctx.needs_input_grad[2:5]),
        )  # fmt: skip
        return (None, None, *gradients, *([None] * len(kept)))


class Upsample(nn.Upsample):
    """Enlargement by nearest neighbour of a map that may have a recipe."""

    @staticmethod
    def can_replace(layer: nn.Module) -> bool:
        """Return whether a layer may become one by changing its class."""
        return (
            type(layer) is nn.Upsample
            and layer.mode == "nearest"
            and isinstance(layer.scale_factor, float)
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is PyTorch's
        """Return what `nn.Upsample` returns."""
        assert isinstance(self.scale_factor, float)
        return enlarged(input, super().forward(input), self.scale_factor)


class Blur(torch.autograd.Function):
    """The 2x2 mean at every pixel; nothing is kept, since the gradient asks only for the shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return a map one pixel smaller along each side."""
        ctx.like = (x.shape, x.stride(), x.dtype, x.device)
        return functional.avg_pool2d(x, 2, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the map."""
        shape, stride, dtype, device = ctx.like
        like = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        result: Tensor = _aten.avg_pool2d_backward(
            gradient, like, [2, 2], [1, 1], [0, 0], False, True, None
        )
        return result
