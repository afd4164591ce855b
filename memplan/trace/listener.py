"""What one operator takes from a card's caching allocator."""

from __future__ import annotations

import torch


class Listener:
    """Notes what an operator takes from the allocator of one card; nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._index = None if device.type != "cuda" else device.index or 0

    def listen(self) -> None:
        """Forget what was and listen from now on."""
        if self._index is not None:
            torch.cuda.synchronize(self._index)
            torch.cuda.memory._record_memory_history(
                "all", context=None, stacks="python", clear_history=True
            )

    def heard(self) -> dict[str, list[int]] | None:
        """Return bytes taken and kept, and taken and given back, in order."""
        if self._index is None:
            return None
        torch.cuda.synchronize(self._index)
        trace = torch.cuda.memory._snapshot(self._index)["device_traces"][self._index]
        torch.cuda.memory._record_memory_history(None)
        taken: dict[int, int] = {}
        back: list[int] = []
        for entry in trace:
            if entry["action"] == "alloc":
                taken[entry["addr"]] = entry["size"]
            elif entry["action"] == "free_completed" and entry["addr"] in taken:
                back.append(taken.pop(entry["addr"]))
        return {"kept_bytes": list(taken.values()), "given_back_bytes": back}
