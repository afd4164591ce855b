"""The states of every random number generator a run draws from, as plain tensors and numbers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, those of all GPUs included."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code may draw from the global generator
    torch.manual_seed(seed)


def capture_random_states() -> dict[str, Any]:
    """Return all states in a form that `torch.load(weights_only=True)` reads."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    uses_gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = torch.cuda.get_rng_state_all() if uses_gpus else []
    return {
        "python": random.getstate(),
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "gpus": gpus,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put all generators where `capture_random_states` found them.

    States of GPUs are restored where this machine has as many.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    saved = states["numpy"]
    keys = saved["keys"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        (saved["name"], keys, saved["position"], saved["has_gauss"], saved["gauss"])
    )
    torch.set_rng_state(states["torch"])
    if states["gpus"] and len(states["gpus"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["gpus"])
