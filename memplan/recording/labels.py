"""Labels that travel with allocations, kept by the allocator or beside it.

From PyTorch 2.11 on the allocator's history holds a text that the program sets. Before, each label
is noted with the number of allocations and frees served by then, which finds its events again in
the history; that takes some 20 us a label, not 0.2.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch

NAME = "user_metadata"
"""What the label is called in entries of the history."""


class Labels:
    """The labels of one card's allocations.

    Args:
        device: index of the card.
        are_kept: whether the allocator keeps them; None asks PyTorch.
    """

    def __init__(self, device: int, *, are_kept: bool | None = None) -> None:
        self._device = device
        self._are_kept = (
            hasattr(torch._C, "_cuda_setMemoryMetadata") if are_kept is None else are_kept
        )
        self._counts: list[int] = []
        self._texts: list[str] = []

    @property
    def tell(self) -> Callable[[str], None]:
        """The function that sets the label of what follows."""
        return torch._C._cuda_setMemoryMetadata if self._are_kept else self._note

    def _note(self, text: str) -> None:
        self._counts.append(self._num_served())
        self._texts.append(text)

    def _num_served(self) -> int:
        counts = torch._C._cuda_memoryStats(self._device)["allocation"]["all"]
        return int(counts["allocated"] + counts["freed"])

    def write_into(self, history: list[dict[str, Any]]) -> None:
        """Give the entries of a history, which ends now, their labels where they have none."""
        if self._are_kept:
            return
        events = [one for one in history if one["action"] in {"alloc", "free_requested"}]
        for number, event in enumerate(events, self._num_served() - len(events)):
            at = bisect_right(self._counts, number) - 1
            event[NAME] = self._texts[at] if at >= 0 else ""
