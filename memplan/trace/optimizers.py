"""PyTorch's optimizers by the names users type."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from memplan.errors import UnknownNameError
from memplan.workload import OptimizerSettings


def _sgd(groups: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
    momentum = settings.momentum
    return torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0
    )


def _adam(groups: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=settings.learning_rate, betas=(settings.momentum, 0.999))


def _adamw(groups: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
    betas = (settings.momentum, 0.999)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, weight_decay=0.0)


def _rmsprop(groups: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(groups, lr=settings.learning_rate, momentum=settings.momentum)


def _adagrad(groups: Any, settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, lr=settings.learning_rate)


_MAKERS: dict[str, Callable[[Any, OptimizerSettings], torch.optim.Optimizer]] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adamw,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}
OPTIMIZER_NAMES = tuple(_MAKERS)


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
    settings: OptimizerSettings,
) -> torch.optim.Optimizer:
    """Return the named optimizer over parameters or parameter groups.

    SGD uses Nesterov momentum; the Adam family takes `momentum` as its first beta.

    Raises:
        UnknownNameError: no such optimizer.
    """
    if settings.name not in _MAKERS:
        raise UnknownNameError(
            "optimizer", settings.name, _MAKERS, f"Known: {', '.join(OPTIMIZER_NAMES)}."
        )
    return _MAKERS[settings.name](list(parameters), settings)
