"""The exponential moving average (EMA) of a model's weights.

It is kept on the training device. Where that is short of room it goes to the host, and each step
brings it back one tensor at a time: the same kernels compute it, so the values are the same, and
the device needs room for the largest tensor alone.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator

import torch


class ModelAverage:
    """An fp32 copy of the model that follows it, weighted towards the recent past.

    Every parameter and floating buffer is averaged, batch-norm statistics included; integers keep
    the value of the copy.

    Args:
        model: the model to follow; copied on its own device.
        decay: weight of the old average once warmed up, in 0-1.
        ramp: updates over which the decay grows from 0, > 0.
        on_host: whether the copy is kept on the host from the start.

    Source: decay and ramp as in the official YOLOv9 recipe: 0.9999 * (1 - exp(-updates / 2000)).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        decay: float = 0.9999,
        ramp: float = 2000,
        *,
        on_host: bool = False,
    ) -> None:
        self.model = _copy(model, on_host=on_host).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        self.is_away = on_host
        """Whether it is kept on the host."""
        self._followed = model

    def leave_device(self) -> None:
        """Go to the host, for good."""
        self.is_away = True
        self.model.to("cpu")

    @contextlib.contextmanager
    def on(self, device: torch.device) -> Iterator[torch.nn.Module]:
        """Have the averaged model on the device inside, to evaluate it."""
        try:
            yield self.model.to(device) if self.is_away else self.model
        finally:
            if self.is_away:
                self.model.to("cpu")

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the followed model's present weights, in place."""
        self.updates += 1
        weight = 1 - self.decay * (1 - math.exp(-self.updates / self.ramp))
        # Asked for each time: a validation in half precision replaces the average's tensors.
        mine, followed = _floating(self.model), _floating(self._followed)
        if not self.is_away:
            torch._foreach_lerp_(mine, followed, weight)
            return
        for kept, new in zip(mine, followed, strict=True):
            # Added to a copy, so that on a CPU, too, a failure leaves the tensor whole.
            kept.copy_(kept.to(new.device, copy=True).lerp_(new, weight))


def _copy(model: torch.nn.Module, *, on_host: bool) -> torch.nn.Module:
    """Return a deep copy whose tensors are clones, parameters and buffers on the host if asked.

    `copy.deepcopy` alone copies fake tensors through memory they do not have (PyTorch 2.11 writes
    out of bounds), so the clones are made first and handed to it.
    """
    clones: dict[int, object] = {}
    for parameter in model.parameters():
        clone = torch.nn.Parameter(_clone(parameter, on_host), parameter.requires_grad)
        clones[id(parameter)] = clone
    clones |= {id(buffer): _clone(buffer, on_host) for buffer in model.buffers()}
    # Others than these `Module.to` leaves where they are.
    plain = (value for module in model.modules() for value in vars(module).values())
    tensors = (value for value in plain if isinstance(value, torch.Tensor))
    clones |= {id(tensor): tensor.detach().clone() for tensor in tensors}
    return copy.deepcopy(model, clones)


def _clone(tensor: torch.Tensor, on_host: bool) -> torch.Tensor:
    one = tensor.detach()
    return one.to("cpu", copy=True) if on_host else one.clone()


def _floating(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return the parameters and floating buffers, in the module's order."""
    tensors = [*model.parameters(), *model.buffers()]
    return [tensor for tensor in tensors if tensor.dtype.is_floating_point]
