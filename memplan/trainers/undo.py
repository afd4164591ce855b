"""What a forward and backward pass changes, put back where the pass has to be run again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from memplan.training.guard import BufferSnapshot
from memplan.training.random_states import capture_random_states, restore_random_states

# What a module keeps beside parameters and buffers that a pass may count or gather in, such as the
# states of a torchmetrics metric.
_PLAIN = (int, float, list, torch.Tensor)


class PassStart:
    """Buffers, plain attributes of modules and random states, as they were before a pass.

    Gradients are no part of it: see `GatheredGradients`.

    Args:
        model: whose modules are looked through.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = BufferSnapshot(model)
        self._attributes = [
            (vars(module), name, value, _copied(value))
            for module in model.modules()
            if not type(module).__module__.startswith("torch.nn.")  # what these keep is constant
            for name, value in vars(module).items()
            if type(value) in _PLAIN and name != "training"
        ]
        self._random = capture_random_states()

    @torch.no_grad()
    def restore(self) -> None:
        """Put it back; may be called again."""
        self._buffers.restore()
        for attributes, name, value, copied in self._attributes:
            # The same object with the old content: others may hold it too.
            if isinstance(value, torch.Tensor):
                value.copy_(copied)
            elif isinstance(value, list):
                value[:] = copied
            attributes[name] = value
        restore_random_states(self._random)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)


class GatheredGradients:
    """Gathers the gradients of a backward pass apart from those that were there before it.

    Undoing then takes no copy of them. The sums are the same, bit for bit: PyTorch too adds what a
    whole backward pass brings to a parameter at once.

    Args:
        parameters: those that the pass reaches; their `grad` is None until `add` or `drop`.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._were: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self.include(parameters)

    def include(self, parameters: Iterable[torch.Tensor]) -> None:
        """Gather those of more parameters, which the pass has not come to yet."""
        for parameter in parameters:
            self._were.append((parameter, parameter.grad))
            parameter.grad = None

    def clear(self) -> None:
        """Forget what was gathered, to gather again."""
        for parameter, _ in self._were:
            parameter.grad = None

    @torch.no_grad()
    def add(self) -> None:
        """Add what was gathered to what was there."""
        for parameter, was in self._were:
            if was is None:
                continue
            if parameter.grad is not None:
                was.add_(parameter.grad)
            parameter.grad = was

    def drop(self) -> None:
        """Leave the gradients that were there before."""
        for parameter, was in self._were:
            parameter.grad = was


def leaves(loss: torch.Tensor) -> Iterator[torch.Tensor]:
    """Return the tensors that the backward pass of a loss leaves gradients in."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
