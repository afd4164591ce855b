"""A step of a user's, run in a child process on a phantom card."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import Any

import torch

from memplan.training.guard import OutOfMemory, attempt, first_line


def runs(module: str, name: str, batch: int) -> dict[str, Any]:
    """Return what came of a function of a module, called with a batch.

    Returns:
        `fits`: whether it found room; `allocated_bytes`: most it had on the card; `error`: what it
        died of, other than memory, with the line of the user's file; None where it did not.
    """
    try:
        step: Any = importlib.import_module(module)
        for part in name.split("."):
            step = getattr(step, part)
        found = attempt(lambda: step(batch))
    except Exception as error:  # noqa: BLE001 - told by the process that asked
        return {"fits": False, "allocated_bytes": 0, "error": _told(error)}
    used = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    return {
        "fits": not isinstance(found, OutOfMemory),
        "allocated_bytes": used,
        "error": None,
    }


def _told(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({Path(last.filename).name}:{last.lineno})"
