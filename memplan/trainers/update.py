"""An optimizer's step of somebody else's loop, taken whole or not at all."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.amp.grad_scaler import GradScaler

from memplan.errors import UsageError
from memplan.step.run import TrainingStep
from memplan.training.guard import NoRoomError
from memplan.training.update import SafeUpdate


def update(optimizer: torch.optim.Optimizer, scaler: GradScaler | None) -> None:
    """Take an optimizer's step, through its scaler; undone and repeated where it finds no room.

    Raises:
        UsageError: it is no optimizer of PyTorch's kind.
        DeviceOutOfMemoryError: no room for one parameter's step; everything is as it was.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's and Lightning's wrappers
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"{type(optimizer).__name__} is no torch.optim.Optimizer.")
    own_step = vars(optimizer).get("step")  # a scheduler's, which counts the calls
    try:
        refusal = SafeUpdate(cast("TrainingStep", _Update(optimizer, scaler))).take()
    finally:
        if own_step is not None:
            vars(optimizer)["step"] = own_step
    if refusal is not None:
        raise NoRoomError(
            f"The optimizer's step finds no room, even one parameter at a time ({refusal.message})."
            " Take a smaller batch, or an optimizer with less state."
        )


def guard_step(optimizer: Any) -> Callable[[], None]:
    """Guard an optimizer's step wherever it is called from; return what undoes this.

    Limits: an optimizer that calls its closure more than once, as LBFGS does, is left as it is.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if isinstance(optimizer, torch.optim.LBFGS):
        return lambda: None
    attributes, own, original = vars(optimizer), vars(optimizer).get("step"), optimizer.step

    @functools.wraps(original)
    def step(closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        attributes["step"] = original
        try:
            update(optimizer, None)
        finally:
            attributes["step"] = step
        return loss

    def undo() -> None:
        attributes.pop("step", None)
        if own is not None:
            attributes["step"] = own

    attributes["step"] = step
    return undo


class _Update:
    """An optimizer and its scaler as `SafeUpdate` takes them."""

    average = None

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: GradScaler | None) -> None:
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self.optimizer = optimizer
        self.model = _Parameters(parameters)
        self.device = parameters[0].device
        # `SafeUpdate` makes a new scaler; the loop's own is to stay the object it is.
        self.scaler = GradScaler(self.device.type, enabled=False)
        self._scaler = scaler
        self._before = None if scaler is None else copy.deepcopy(vars(scaler))

    def update(self) -> None:
        """Step, as often as it takes, from the scaler's state at the beginning."""
        if self._scaler is None:
            self.optimizer.step()
            return
        vars(self._scaler).update(copy.deepcopy(self._before or {}))
        self._scaler.step(self.optimizer)

    def spare_average(self) -> bool:
        """Make no room: the loop's average, where it keeps one, is not known."""
        return False


class _Parameters:
    def __init__(self, parameters: list[Any]) -> None:
        self._parameters = parameters

    def parameters(self) -> list[Any]:
        """Return what the optimizer steps."""
        return self._parameters
