"""Where an epoch stands between two steps, what it came to, and what is wanted of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from memplan.training.schedule import Rates


@dataclass(frozen=True, kw_only=True)
class EpochPosition:
    """A place between two steps of an epoch; with the weights, all that the rest follows from."""

    images_seen: int = 0
    """Of the epoch's order, by all processes."""
    num_steps: int = 0
    """Steps of the optimizer."""
    loss_sums: torch.Tensor | None = None
    """Each part's sum over the images, on the CPU; None before the first step."""
    rates: Rates | None = None
    """Those of the last micro-batch."""

    def as_record(self) -> dict[str, Any]:
        """Return plain values and tensors, for a checkpoint."""
        rates = None if self.rates is None else asdict(self.rates)
        return {**vars(self), "rates": rates}


def position_of(record: dict[str, Any]) -> EpochPosition:
    """Return the position that `as_record` described; other entries are left alone."""
    known = {name: record[name] for name in ("images_seen", "num_steps", "loss_sums")}
    rates = record["rates"]
    return EpochPosition(**known, rates=None if rates is None else Rates(**rates))


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What an epoch's training came to, over all processes."""

    losses: tuple[float, ...]
    """Mean of each part over the images."""
    num_images: int
    num_steps: int
    """Steps of the optimizer."""
    rates: Rates
    """Those of the last micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is wanted once the step under way is done."""

    stop: bool = False
    """Save and stop."""
    save: bool = False
    """Save and go on."""
    smaller: bool = False
    """Go on with smaller micro-batches."""
    stays_small: bool = False
    """Do not try the planned micro-batch again."""
    lighter: bool = False
    """Go on keeping less for backward."""
    tell: bool = False
    """Let the first process tell what another one noticed."""
