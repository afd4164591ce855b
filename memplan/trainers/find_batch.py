"""`memplan.find_batch`: the largest batch of a step of one's own, on a card that is not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from memplan.device import catalogue
from memplan.device.card import Card
from memplan.errors import MemplanError, UsageError
from memplan.phantom.child import PhantomChild
from memplan.trainers.phantom_step import runs


def find_batch(
    step: Callable[[int], Any],
    *,
    card: str | Card,
    capacity_bytes: int | None = None,
    most: int = 65536,
) -> int:
    """Return the largest batch at which a training step runs on a phantom card; no GPU is needed.

    Each trial runs in a fresh process: batches are doubled until one finds no room, then halved in.

    Args:
        step: `step(batch)` makes network, batch of that size and optimizer on `"cuda"` and trains
            some steps, two at least, so that the optimizer's state is there. It stands in a module
            that can be imported.
        card: a name of `memplan gpus`, or a card.
        capacity_bytes: bytes the card is taken to have; its own by default.
        most: the largest batch that is tried, >= 1; where it fits, it is the answer.

    Raises:
        UsageError: the step cannot be imported or leaves the card untouched, or an argument is of
            another type or out of its range.
        MemplanError: not even a batch of 1 runs, or a step fails for another reason than memory.
    """
    module, name = _importable(step)
    if type(most) is not int or most < 1:
        raise UsageError(f"most={most!r} is not a whole number of 1 or more.")
    made = _card(card)
    variables = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with PhantomChild(made, capacity_bytes=capacity_bytes, variables=variables) as child:

        def fits(batch: int) -> bool:
            found = child.call(runs, {"module": module, "name": name, "batch": batch})
            if found["error"] is not None:
                raise MemplanError(f"{name}({batch}) fails: {found['error']}.")
            if found["fits"] and not found["allocated_bytes"]:
                raise UsageError(
                    f"{name}({batch}) leaves the card untouched. Make network and samples on "
                    '"cuda", and call the step itself.'
                )
            return bool(found["fits"])

        largest = _largest(fits, most)
    if not largest:
        raise MemplanError(
            f"{name} finds no room on {made.title} even at a batch of 1. Name a larger card, or "
            "make the network or its samples smaller."
        )
    return largest


def _importable(step: Any) -> tuple[str, str]:
    """Return module and name of a function that another process can import."""
    module, name = getattr(step, "__module__", None), getattr(step, "__qualname__", None)
    if not callable(step) or module is None or name is None:
        raise UsageError(
            f"find_batch() is given a function step(batch), not a {type(step).__name__}."
        )
    if module == "__main__" or "<" in name:
        raise UsageError(
            f"The step {name} of {module} cannot be imported by another process. Move it to the "
            "top of a module of its own."
        )
    return module, name


def _card(card: Any) -> Card:
    if isinstance(card, str):
        return catalogue.card(card)
    if not isinstance(card, Card):
        raise UsageError(f"card={card!r} is neither a name of `memplan gpus` nor a card.")
    return card


def _largest(fits: Callable[[int], bool], most: int) -> int:
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, most if low < most < 2 * high and high < most else 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
