"""LION, the optimizer of signs: one state tensor, half of Adam's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Moves every weight by the learning rate, in the direction its gradients mostly point.

    A group's tensors are worked on together (PyTorch's foreach operators), so that a step is a few
    kernels; for its time it holds one temporary of the size of the largest group.

    Source: Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2; weight
    decay is decoupled. The package lion-pytorch 0.2 is not used: it is cautious by default, which
    is another algorithm, and works tensor by tensor with six temporaries each.

    Args:
        parameters: parameters, or groups as PyTorch takes them.
        lr: the size of every weight's step, > 0; a third to a tenth of Adam's is usual.
        betas: the momentum's share in the direction, and its decay, 0 to 1.
        weight_decay: share of a weight, times lr, that is taken off it in a step, >= 0.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= beta <= 1 for beta in betas):
            raise ValueError(f"lr {lr}, betas {betas} or weight_decay {weight_decay} is no such.")
        groups: Any = parameters
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the gradients there are; return what the closure did."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        gradients = [weight.grad for weight in weights]
        averages = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["exp_avg"] = torch.zeros_like(weight)
            averages.append(state["exp_avg"])
        first, second = group["betas"]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        steps = torch._foreach_lerp(averages, gradients, 1 - first)
        torch._foreach_sign_(steps)
        torch._foreach_add_(weights, steps, alpha=-group["lr"])
        del steps
        torch._foreach_lerp_(averages, gradients, 1 - second)
