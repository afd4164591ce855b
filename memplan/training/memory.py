"""What the run's process and its device hold right now."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from memplan.host_memory import resident_bytes, resident_peak_bytes
from memplan.training.watch import Finding, Reading, Watch
from memplan.units import format_bytes, gib

if TYPE_CHECKING:
    from memplan.answers import Predicted

_SHARE = 0.008  # of the run's time that watching may take: with short steps some are left out


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
        self.watch: Watch | None = None
        """Looks at each step; None on a CPU."""
        self.reading: Reading | None = None
        """The newest of a step; None before the first."""
        self.watching_seconds = 0.0
        """Spent in `follow` so far."""
        self._since: float | None = None
        self._highest = (0, 0)  # allocated and reserved, since the last row
        self._unseen = 0  # the peak that a row took away from the next reading of a step
        self._index = 0
        if device.type == "cuda":
            # A number is found sooner than a device.
            self._index = torch.cuda.current_device() if device.index is None else device.index
            self.watch = Watch(
                torch.cuda.mem_get_info(device)[1],
                predicted_peak_bytes=None if predicted is None else predicted.allocated_peak_bytes,
            )

    def follow(self, step: int) -> Finding | None:
        """Look at the device after a step; return what that shows, where it is new.

        Costs some 50 microseconds on the host, waits for nothing, and leaves steps out where it
        would take more than 0.8 % of the time since the first one.
        """
        if self.watch is None:
            return None
        started = time.perf_counter()
        if self._since is None:
            self._since = started
        if self.watching_seconds > _SHARE * (started - self._since):
            return None
        self.reading = self._read_step(step)
        finding = self.watch.add(self.reading)
        self.watching_seconds += time.perf_counter() - started
        return finding

    def _read_step(self, step: int) -> Reading:
        # The flat `memory_stats` that `memory_allocated` asks for each figure takes 5 to 10 times
        # as long.
        stats = torch.cuda.memory_stats_as_nested_dict(self._index)
        free, total = torch.cuda.mem_get_info(self._index)
        torch.cuda.reset_peak_memory_stats(self._index)
        allocated, reserved = (stats[name]["all"] for name in ("allocated_bytes", "reserved_bytes"))
        before = self._highest
        self._highest = (max(before[0], allocated["peak"]), max(before[1], reserved["peak"]))
        self._keep_peaks(allocated["peak"], reserved["peak"], total - free)
        peak, self._unseen = max(allocated["peak"], self._unseen), 0
        return Reading(
            step=step,
            allocated_bytes=allocated["current"],
            allocated_peak_bytes=peak,
            reserved_bytes=reserved["current"],
            device_used_bytes=total - free,
        )

    def read(self, *, of_steps: bool = True) -> LiveMemory:
        """Return the present figures; the next reading's peaks start here.

        Args:
            of_steps: whether steps alone made them, and not an evaluation.
        """
        host = resident_bytes()
        if self.device.type != "cuda":
            return LiveMemory(
                allocated_bytes=None,
                reserved_bytes=None,
                device_used_bytes=None,
                host_resident_bytes=host,
            )
        free, total = torch.cuda.mem_get_info(self.device)
        allocated = torch.cuda.max_memory_allocated(self.device)
        self._unseen = max(self._unseen, allocated) if of_steps else 0
        live = LiveMemory(
            allocated_bytes=max(allocated, self._highest[0]),
            reserved_bytes=max(torch.cuda.max_memory_reserved(self.device), self._highest[1]),
            device_used_bytes=total - free,
            host_resident_bytes=host,
        )
        torch.cuda.reset_peak_memory_stats(self.device)
        self._highest = (0, 0)
        self._keep_peaks(live.allocated_bytes, live.reserved_bytes, live.device_used_bytes)
        return live

    def _keep_peaks(self, allocated: int | None, reserved: int | None, used: int | None) -> None:
        self.allocated_peak_bytes = _higher(self.allocated_peak_bytes, allocated)
        self.reserved_peak_bytes = _higher(self.reserved_peak_bytes, reserved)
        self.device_used_peak_bytes = _higher(self.device_used_peak_bytes, used)

    @property
    def host_resident_peak_bytes(self) -> int:
        """The most this process ever held resident in host memory."""
        return resident_peak_bytes()

    def above_prediction(self) -> str:
        """Return what went above the plan's prediction, `Allocated` first; empty if nothing."""
        predicted = self.predicted
        if predicted is None or self.allocated_peak_bytes is None:
            return ""
        pairs = (
            ("Allocated", self.allocated_peak_bytes, predicted.allocated_peak_bytes),
            ("Reserved", self.reserved_peak_bytes, predicted.reserved_peak_bytes),
            ("Device-used", self.device_used_peak_bytes, predicted.device_used_peak_bytes),
        )
        return next((name for name, live, most in pairs if (live or 0) > most), "")

    def summary(self) -> str:
        """Return live memory beside predicted and budget, for a line of progress."""
        is_gpu = self.device.type == "cuda"
        names = ("reserved" if is_gpu else "of host memory", "predicted", "budget")
        pairs = zip(self._figures(), names, strict=True)
        return ", ".join(f"{format_bytes(b)} {name}" for b, name in pairs if b is not None)

    def brief(self) -> str:
        """Return the same figures for a live bar: `5.10 of 5.32 GiB predicted, 22.50 budget`."""
        live, predicted, budget = self._figures()
        if predicted is not None:
            text = f"{gib(live)} of {gib(predicted)} GiB predicted"
        else:
            text = f"{gib(live)} GiB {'reserved' if self.device.type == 'cuda' else 'host memory'}"
        return text if budget is None else f"{text}, {gib(budget)} budget"

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
