"""The allocator's peaks, though the script sets them back as it goes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

_RESETS = ("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached")
_PEAKS = {
    "allocated_peak_bytes": "allocated_bytes.all.peak",
    "reserved_peak_bytes": "reserved_bytes.all.peak",
}


class Peaks:
    """Keeps the greatest peaks of a device.

    Args:
        device: returns its index; asked when the script has begun to use it.
    """

    def __init__(self, device: Callable[[], int]) -> None:
        self._device = device
        self._greatest = dict.fromkeys(_PEAKS, 0)

    def install(self) -> None:
        """Note what the peaks were before the script sets them back."""
        places: tuple[Any, ...] = (torch.cuda, torch.cuda.memory)
        for name in _RESETS:
            reset = getattr(torch.cuda.memory, name)
            noting = self._noting(reset)
            for place in places:
                if getattr(place, name, None) is reset:
                    setattr(place, name, noting)

    def _noting(self, reset: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(reset)
        def noting(*args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                self.of(torch.cuda.memory_stats(self._device()))
            reset(*args, **kwargs)

        return noting

    def of(self, stats: dict[str, int]) -> dict[str, int]:
        """Return the greatest allocated and reserved peaks so far, bytes.

        Args:
            stats: what the allocator counts now.
        """
        for name, field in _PEAKS.items():
            self._greatest[name] = max(self._greatest[name], stats[field])
        return dict(self._greatest)
