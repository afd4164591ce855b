"""The exponential moving average (EMA) of a model's weights, kept on the training device."""

from __future__ import annotations

import copy
import math

import torch


class ModelAverage:
    """An fp32 copy of the model that follows it, weighted towards the recent past.

    Every parameter and floating buffer is averaged, batch-norm statistics included; integers keep
    the value of the copy.

    Args:
        model: the model to follow; copied on its own device.
        decay: weight of the old average once warmed up, in 0-1.
        ramp: updates over which the decay grows from 0, > 0.

    Source: decay and ramp as in the official YOLOv9 recipe: 0.9999 * (1 - exp(-updates / 2000)).
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.9999, ramp: float = 2000) -> None:
        self.model = _copy(model).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        self._followed = model

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the followed model's present weights, in place."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp))
        # Asked for each time: a validation in half precision replaces the average's tensors.
        torch._foreach_lerp_(_floating(self.model), _floating(self._followed), weight)


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    """Return a deep copy whose tensors are clones.

    `copy.deepcopy` alone copies fake tensors through memory they do not have (PyTorch 2.11 writes
    out of bounds), so the clones are made first and handed to it.
    """
    clones: dict[int, object] = {}
    for parameter in model.parameters():
        clone = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        clones[id(parameter)] = clone
    plain = (value for module in model.modules() for value in vars(module).values())
    tensors = [*model.buffers(), *(value for value in plain if isinstance(value, torch.Tensor))]
    clones |= {id(tensor): tensor.detach().clone() for tensor in tensors}
    return copy.deepcopy(model, clones)


def _floating(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the parameters and floating buffers, in the module's order."""
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor for tensor in tensors if tensor.dtype.is_floating_point]
