"""A step of a user's, run in a child process on a phantom card."""

from __future__ import annotations

import importlib

from memplan.train.guard import OutOfMemory, attempt


def runs(module: str, name: str, batch: int) -> bool:
    """Return whether a function of a module finds room for a batch of so many samples."""
    step = importlib.import_module(module)
    for part in name.split("."):
        step = getattr(step, part)
    return not isinstance(attempt(lambda: step(batch)), OutOfMemory)  # type: ignore[operator]
