"""How unequal cards share one effective batch.

Under DDP all cards take every step together, so a step lasts as long as the slowest card's. The
micro-batches of one step are shared so that it is as short as can be, each within its card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """One way to share an effective batch among cards."""

    accumulation_steps: int
    micro_batches: tuple[int, ...]
    """Images of each card in one micro-batch, in the order of the cards."""
    seconds: float
    """Of one optimizer step."""


def seconds_between(batches: Sequence[int], seconds: Sequence[float]) -> Callable[[int], float]:
    """Return a micro-batch's time at any size, on lines between known ones.

    Args:
        batches: micro-batch sizes, ascending, at least one.
        seconds: of a micro-batch at each.
    """

    def at(batch: int) -> float:
        return float(np.interp(batch, batches, seconds))

    return at


def share(
    total: int, largest: Sequence[int], seconds: Sequence[Callable[[int], float]]
) -> tuple[int, ...] | None:
    """Return each card's images of one micro-batch, the slowest card as fast as can be.

    One image after another goes to the card that would then be done first; as each card's time
    never falls with its images, no other sharing is done earlier.

    Args:
        total: images together.
        largest: each card's largest micro-batch size.
        seconds: each card's time for a micro-batch of some size.

    Returns:
        Images a card, each >= 1; None where they do not fit or do not go round.
    """
    if total < len(largest) or sum(largest) < total or min(largest) < 1:
        return None
    shares = [1] * len(largest)
    for _ in range(total - len(largest)):
        after = [
            at(mine + 1) if mine < most else math.inf
            for mine, most, at in zip(shares, largest, seconds, strict=True)
        ]
        shares[after.index(min(after))] += 1
    return tuple(shares)


def best_sharing(
    effective: int, largest: Sequence[int], seconds: Sequence[Callable[[int], float]]
) -> Sharing | None:
    """Return the fastest way to give all cards together an effective batch; None if none fits.

    Args:
        effective: images an optimizer step sees.
        largest: each card's largest micro-batch size.
        seconds: each card's time for a micro-batch of some size.
    """
    best: Sharing | None = None
    for steps in range(1, effective + 1):
        if effective % steps:
            continue
        shares = share(effective // steps, largest, seconds)
        if shares is None:
            continue
        slowest = max(at(mine) for mine, at in zip(shares, seconds, strict=True))
        if best is None or steps * slowest < best.seconds:
            best = Sharing(accumulation_steps=steps, micro_batches=shares, seconds=steps * slowest)
    return best
