"""What the run's process and its device hold right now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from memplan.host_memory import resident_bytes, resident_peak_bytes
from memplan.units import format_bytes, gib

if TYPE_CHECKING:
    from memplan.answers import Predicted


@dataclass(frozen=True, kw_only=True)
class LiveMemory:
    """One reading; the device's figures are None on a CPU."""

    allocated_bytes: int | None
    """Highest allocated since the reading before."""
    reserved_bytes: int | None
    """Highest reserved since the reading before."""
    device_used_bytes: int | None
    """Used on the device now, by all processes."""
    host_resident_bytes: int
    """Resident in host memory now, this process alone."""


class MemoryWatch:
    """Reads memory and remembers the highest figures of the run.

    Args:
        device: where the model is.
        predicted: a plan's figures, None without a plan.
        budget_bytes: what the plan may take, None without a plan.
    """

    def __init__(
        self,
        device: torch.device,
        predicted: Predicted | None,
        budget_bytes: int | None = None,
    ) -> None:
        self.device = device
        self.predicted = predicted
        self.budget_bytes = budget_bytes
        self.allocated_peak_bytes: int | None = None
        self.reserved_peak_bytes: int | None = None
        self.device_used_peak_bytes: int | None = None

    def read(self) -> LiveMemory:
        """Return the present figures; the next reading's peaks start here."""
        host = resident_bytes()
        if self.device.type != "cuda":
            return LiveMemory(
                allocated_bytes=None,
                reserved_bytes=None,
                device_used_bytes=None,
                host_resident_bytes=host,
            )
        free, total = torch.cuda.mem_get_info(self.device)
        live = LiveMemory(
            allocated_bytes=torch.cuda.max_memory_allocated(self.device),
            reserved_bytes=torch.cuda.max_memory_reserved(self.device),
            device_used_bytes=total - free,
            host_resident_bytes=host,
        )
        torch.cuda.reset_peak_memory_stats(self.device)
        self.allocated_peak_bytes = _higher(self.allocated_peak_bytes, live.allocated_bytes)
        self.reserved_peak_bytes = _higher(self.reserved_peak_bytes, live.reserved_bytes)
        self.device_used_peak_bytes = _higher(self.device_used_peak_bytes, live.device_used_bytes)
        return live

    @property
    def host_resident_peak_bytes(self) -> int:
        """The most this process ever held resident in host memory."""
        return resident_peak_bytes()

    def exceeds_prediction(self) -> bool:
        """Return whether reserved memory went above what the plan predicted."""
        if self.predicted is None or self.reserved_peak_bytes is None:
            return False
        return self.reserved_peak_bytes > self.predicted.reserved_peak_bytes

    def summary(self) -> str:
        """Return live memory beside predicted and budget, for a line of progress."""
        is_gpu = self.device.type == "cuda"
        names = ("reserved" if is_gpu else "of host memory", "predicted", "budget")
        pairs = zip(self._figures(), names, strict=True)
        return ", ".join(f"{format_bytes(b)} {name}" for b, name in pairs if b is not None)

    def brief(self) -> str:
        """Return the same figures for a live bar, such as `5.10/5.32/22.50 GiB`."""
        return f"{'/'.join(gib(figure) for figure in self._figures() if figure is not None)} GiB"

    def _figures(self) -> tuple[int, int | None, int | None]:
        """Return live, predicted and budget, bytes.

        On a CPU a plan predicts tensors alone, which the resident bytes of a process, with its
        libraries and files, do not compare with.
        """
        if self.device.type != "cuda":
            return resident_bytes(), None, self.budget_bytes
        live = torch.cuda.memory_reserved(self.device)
        predicted = None if self.predicted is None else self.predicted.reserved_peak_bytes
        return live, predicted, self.budget_bytes


def _higher(one: int | None, other: int | None) -> int:
    return max(one or 0, other or 0)
