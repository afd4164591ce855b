"""Learning rate, momentum and accumulation at each point of a run, as pure functions.

Source: the official YOLOv9 recipe. Two of its habits are worth knowing. After warm-up its scheduler
lags one epoch: epoch e trains with the factor of epoch e - 1, except the epoch in which warm-up
ends, which keeps the last rate of warm-up. That is kept, so that runs follow the same rates as the
official ones. Its warm-up lasts at least 100 iterations; that is kept too, except that
`warmup_epochs: 0`, which shortens it to 100 there, switches it off here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

SCHEDULES = ("linear", "cos", "flat-cos", "fixed")
_SHORTEST_WARMUP = 100  # iterations


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters that the training loop itself reads, by their official names."""

    lr0: float = 0.01
    """Learning rate after warm-up, > 0."""
    lrf: float = 0.01
    """The last learning rate as a fraction of lr0."""
    momentum: float = 0.937
    """SGD's momentum, or Adam's first beta."""
    weight_decay: float = 0.0005
    """L2 penalty at the nominal batch size; scaled with the effective one."""
    warmup_epochs: float = 3.0
    """Length of the warm-up; 0 means none, otherwise it lasts at least 100 iterations."""
    warmup_momentum: float = 0.8
    """Momentum at the first iteration."""
    warmup_bias_lr: float = 0.1
    """Learning rate of the biases at the first iteration."""


def recipe_of(hyperparameters: Mapping[str, float]) -> Recipe:
    """Return the recipe with the values given; other hyperparameters are not the loop's."""
    known = {field.name for field in fields(Recipe)}
    return Recipe(**{name: value for name, value in hyperparameters.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What holds for one micro-batch."""

    learning_rate: float
    """Of weights and norm weights."""
    bias_learning_rate: float
    """Of the parameter group of kind `bias`."""
    momentum: float
    """SGD's; other optimizers keep their betas."""
    accumulation: int
    """Micro-batches a step of the optimizer, >= 1."""


def accumulation_steps(effective_batch_size: float, micro_batch_size: int) -> int:
    """Return the micro-batches a step that come nearest to the effective batch, at least 1."""
    return max(round(effective_batch_size / micro_batch_size), 1)


def learning_rate_factor(schedule: str, epoch: float, epochs: int, lrf: float) -> float:
    """Return the factor on lr0 that a schedule gives an epoch, the lag left aside.

    Args:
        schedule: one of `SCHEDULES`.
        epoch: 0-based.
        epochs: of the whole run, >= 1.
        lrf: the factor that the schedule ends at.
    """
    if schedule == "linear":
        return (1 - epoch / epochs) * (1 - lrf) + lrf
    if schedule == "cos":
        return _cosine(epoch / epochs, lrf)
    if schedule == "flat-cos":
        flat = epochs // 2
        return _cosine(max(epoch - flat, 0) / (epochs - flat), lrf)
    assert schedule == "fixed"
    return 1.0


def _cosine(fraction: float, lrf: float) -> float:
    return (1 - math.cos(math.pi * fraction)) / 2 * (lrf - 1) + 1


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The rates of a whole run at one micro-batch size."""

    recipe: Recipe
    kind: str
    """One of `SCHEDULES`."""
    epochs: int
    batches_per_epoch: int
    micro_batch_size: int
    effective_batch_size: float
    """Images that a step is meant to see."""

    @property
    def warmup_iterations(self) -> int:
        """Micro-batches of warm-up; 0 when there is none."""
        if self.recipe.warmup_epochs <= 0:
            return 0
        return max(round(self.recipe.warmup_epochs * self.batches_per_epoch), _SHORTEST_WARMUP)

    def rates(self, epoch: int, batch: int) -> Rates:
        """Return the rates of a micro-batch.

        Args:
            epoch: 0-based.
            batch: the micro-batch's place in its epoch, 0-based.
        """
        iteration = epoch * self.batches_per_epoch + batch
        warmup = self.warmup_iterations
        if warmup and iteration <= warmup:
            return self._warming_up(epoch, iteration / warmup)
        ends_here = warmup and warmup // self.batches_per_epoch == epoch
        rate = self._rate(epoch if ends_here else max(epoch - 1, 0))
        return Rates(
            learning_rate=rate,
            bias_learning_rate=rate,
            momentum=self.recipe.momentum,
            accumulation=accumulation_steps(self.effective_batch_size, self.micro_batch_size),
        )

    def _rate(self, epoch: int) -> float:
        factor = learning_rate_factor(self.kind, epoch, self.epochs, self.recipe.lrf)
        return self.recipe.lr0 * factor

    def _warming_up(self, epoch: int, fraction: float) -> Rates:
        rate = self._rate(epoch)
        accumulation = _between(1, self.effective_batch_size / self.micro_batch_size, fraction)
        return Rates(
            learning_rate=rate * fraction,
            bias_learning_rate=_between(self.recipe.warmup_bias_lr, rate, fraction),
            momentum=_between(self.recipe.warmup_momentum, self.recipe.momentum, fraction),
            accumulation=max(1, round(accumulation)),
        )


def _between(start: float, end: float, fraction: float) -> float:
    return start + (end - start) * fraction
