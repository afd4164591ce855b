"""PyTorch's optimizers, and LION, by the names users type."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from memplan.capabilities import MakesOptimizer
from memplan.errors import UnknownNameError, UsageError
from memplan.step.lion import Lion
from memplan.workload import OptimizerSettings, Workload

_Arguments = dict[str, Any]


def _sgd(settings: OptimizerSettings) -> _Arguments:
    return {"momentum": settings.momentum, "nesterov": settings.momentum > 0}


def _adam(settings: OptimizerSettings) -> _Arguments:
    return {"betas": (settings.momentum, 0.999)}


def _adamw(settings: OptimizerSettings) -> _Arguments:
    return {"betas": (settings.momentum, 0.999), "weight_decay": 0.0}


def _rmsprop(settings: OptimizerSettings) -> _Arguments:
    return {"momentum": settings.momentum}


def _adagrad(_: OptimizerSettings) -> _Arguments:
    return {}


def _lion(settings: OptimizerSettings) -> _Arguments:
    return {"betas": (settings.momentum, 0.99)}


_KNOWN: dict[str, tuple[type[torch.optim.Optimizer], Callable[[OptimizerSettings], _Arguments]]] = {
    "SGD": (torch.optim.SGD, _sgd),
    "Adam": (torch.optim.Adam, _adam),
    "AdamW": (torch.optim.AdamW, _adamw),
    "RMSprop": (torch.optim.RMSprop, _rmsprop),
    "Adagrad": (torch.optim.Adagrad, _adagrad),
    "LION": (Lion, _lion),
}
_FUSED = ("SGD", "Adam", "AdamW")
OPTIMIZER_NAMES = tuple(_KNOWN)


def optimizer_of(
    workload: Workload, model: torch.nn.Module, settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """Return a workload's optimizer: its own, else the named one over its parameter groups.

    Raises:
        UnknownNameError: no such optimizer.
        UsageError: the optimizer has no fused kernels and `settings` ask for them.
    """
    if isinstance(workload, MakesOptimizer):
        return workload.make_optimizer(model, settings)
    return make_optimizer(workload.parameter_groups(model, settings), settings)


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
    settings: OptimizerSettings,
) -> torch.optim.Optimizer:
    """Return the named optimizer over parameters or parameter groups.

    SGD uses Nesterov momentum; the Adam family and LION take `momentum` as their first
    beta. Weight decay is for groups to state; none is applied without.

    Args:
        parameters: parameters, or groups as PyTorch takes them.
        settings: name and numbers.

    Raises:
        UnknownNameError: no such optimizer.
        UsageError: the optimizer has no fused kernels and `settings` ask for them.
    """
    if settings.name not in _KNOWN:
        hint = f"Known: {', '.join(OPTIMIZER_NAMES)}."
        raise UnknownNameError("optimizer", settings.name, _KNOWN, hint)
    kind, arguments_of = _KNOWN[settings.name]
    arguments = {"lr": settings.learning_rate, **arguments_of(settings)}
    if settings.fused:
        if settings.name not in _FUSED:
            raise UsageError(
                f"--fused: {settings.name} has no fused kernels in PyTorch. Leave it out, or use "
                f"--optimizer {', '.join(_FUSED)}."
            )
        arguments["fused"] = True
    groups: list[Any] = list(parameters)
    return kind(groups, **arguments)
