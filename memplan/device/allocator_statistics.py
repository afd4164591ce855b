"""Counters of `torch.cuda.memory_stats`, kept by the simulated allocator."""

from __future__ import annotations

GROUPED = (
    "allocation",
    "segment",
    "active",
    "inactive_split",
    "allocated_bytes",
    "reserved_bytes",
    "active_bytes",
    "inactive_split_bytes",
    "requested_bytes",
)
PLAIN = (
    "num_alloc_retries",
    "num_ooms",
    "num_sync_all_streams",
    "num_device_alloc",
    "num_device_free",
    "num_oom_rejections",
)


class Counter:
    """A level with its highest value and the sums of its rises and falls."""

    __slots__ = ("allocated", "current", "freed", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self.freed = 0

    def increase(self, amount: int) -> None:
        """Raise the level, and the peak with it."""
        self.current += amount
        self.allocated += amount
        self.peak = max(self.peak, self.current)

    def decrease(self, amount: int) -> None:
        """Lower the level; the peak stays."""
        self.current -= amount
        self.freed += amount

    def change(self, amount: int) -> None:
        """Raise or lower the level; zero is neither."""
        if amount > 0:
            self.increase(amount)
        elif amount < 0:
            self.decrease(-amount)

    def reset_peak(self) -> None:
        """Forget the peak: it becomes the current level."""
        self.peak = self.current

    def reset_accumulated(self) -> None:
        """Forget the sums of rises and falls."""
        self.allocated = self.freed = 0

    def as_dict(self, prefix: str) -> dict[str, int]:
        """Return the four figures under PyTorch's names."""
        return {
            f"{prefix}.current": self.current,
            f"{prefix}.peak": self.peak,
            f"{prefix}.allocated": self.allocated,
            f"{prefix}.freed": self.freed,
        }


class PoolCounters:
    """One statistic for all pools together and for each size class."""

    __slots__ = ("_classes", "all")

    def __init__(self) -> None:
        self.all = Counter()
        self._classes = (Counter(), Counter())

    def change(self, amount: int, *, is_small: bool) -> None:
        """Raise or lower the level of a size class and of the whole."""
        self.all.change(amount)
        self._classes[0 if is_small else 1].change(amount)

    def named(self) -> tuple[tuple[str, Counter], ...]:
        """Return the three counters under PyTorch's names."""
        return (
            ("all", self.all),
            ("small_pool", self._classes[0]),
            ("large_pool", self._classes[1]),
        )


class Statistics:
    """All statistics of one device's allocator.

    Source: `DeviceStats` in `c10/core/CachingDeviceAllocator.h` of PyTorch 2.11.
    """

    def __init__(self, max_split_bytes: int | None) -> None:
        self.allocation = PoolCounters()
        self.segment = PoolCounters()
        self.active = PoolCounters()
        self.inactive_split = PoolCounters()
        self.allocated_bytes = PoolCounters()
        self.reserved_bytes = PoolCounters()
        self.active_bytes = PoolCounters()
        self.inactive_split_bytes = PoolCounters()
        self.requested_bytes = PoolCounters()
        self.oversize_allocations = Counter()
        self.oversize_segments = Counter()
        self.num_alloc_retries = 0
        self.num_ooms = 0
        self.num_sync_all_streams = 0
        self.num_device_alloc = 0
        self.num_device_free = 0
        self.num_oom_rejections = 0
        self._max_split_bytes = max_split_bytes

    def as_dict(self) -> dict[str, int]:
        """Return every figure under its name in `torch.cuda.memory_stats`; bytes and counts."""
        figures: dict[str, int] = {}
        for name in GROUPED:
            group: PoolCounters = getattr(self, name)
            for pool, counter in group.named():
                figures |= counter.as_dict(f"{name}.{pool}")
        figures |= self.oversize_allocations.as_dict("oversize_allocations")
        figures |= self.oversize_segments.as_dict("oversize_segments")
        for name in PLAIN:
            figures[name] = getattr(self, name)
        figures["max_split_size"] = -1 if self._max_split_bytes is None else self._max_split_bytes
        return figures

    def reset_peaks(self) -> None:
        """Set every peak to the current level, as `reset_peak_memory_stats`."""
        for counter in self._counters():
            counter.reset_peak()

    def reset_accumulated(self) -> None:
        """Set sums and plain counts to zero, as `reset_accumulated_memory_stats`."""
        for counter in self._counters():
            counter.reset_accumulated()
        for name in PLAIN:
            setattr(self, name, 0)

    def _counters(self) -> list[Counter]:
        groups: list[PoolCounters] = [getattr(self, name) for name in GROUPED]
        counters = [counter for group in groups for _pool, counter in group.named()]
        return [*counters, self.oversize_allocations, self.oversize_segments]
