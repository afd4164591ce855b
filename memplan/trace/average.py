"""The exponential moving average (EMA) of a model's weights, kept on the training device."""

from __future__ import annotations

import copy
import math
import warnings

import torch


class ModelAverage:
    """An fp32 copy of the model that follows it, weighted towards the recent past.

    Every floating entry of the state dict is averaged, batch-norm statistics included; integer
    entries keep the value of the copy.

    Args:
        model: the model to follow; copied on its own device.
        decay: weight of the old average once warmed up, in 0-1.
        ramp: updates over which the decay grows from 0, > 0.

    Source: decay and ramp as in the official YOLOv9 recipe: 0.9999 * (1 - exp(-updates / 2000)).
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.9999, ramp: float = 2000) -> None:
        with warnings.catch_warnings():
            # A fake tensor has no address; copying one asks for it and warns.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        self._pairs: tuple[list[torch.Tensor], list[torch.Tensor]] | None = None

    def _floating(self, model: torch.nn.Module) -> list[torch.Tensor]:
        state = model.state_dict().values()
        return [tensor for tensor in state if tensor.dtype.is_floating_point]

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Move the average towards the model's present weights, in place."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp))
        torch._foreach_lerp_(self._floating(self.model), self._floating(model), weight)
