"""State shared by the parts of the simulated allocator, and its bookkeeping of driver memory."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.device.allocator_blocks import Block, Pool, RankRule
from memplan.device.allocator_driver import Driver
from memplan.device.allocator_records import Action, TraceEntry
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.allocator_statistics import Statistics


class PrivatePool:
    """A pair of pools that only diverted requests use, as for CUDA graphs and `MemPool`."""

    def __init__(self, pool_id: tuple[int, int]) -> None:
        self.use_count = 1
        self.use_on_oom = False
        self.small = Pool(is_small=True, pool_id=pool_id)
        self.large = Pool(is_small=False, pool_id=pool_id)
        self.num_pieces = 0
        """Growths minus releases: at 0 a freeable pool disappears."""


class AllocatorState:
    """Pools, driver, limit, statistics and trace of one device."""

    def __init__(
        self,
        driver: Driver,
        settings: AllocatorSettings,
        torch_version: tuple[int, int],
        *,
        trace: bool,
    ) -> None:
        self.driver = driver
        self.settings = settings
        self.torch_version = torch_version
        self.ranks = RankRule(torch_version)
        self.statistics = Statistics(settings.max_split_bytes)
        self.small = Pool(is_small=True)
        self.large = Pool(is_small=False)
        self.private: dict[tuple[int, int], PrivatePool] = {}
        self.reserved = 0
        self.limit: int | None = None
        self.trace: list[TraceEntry] | None = [] if trace else None

    def record(self, action: Action, address: int, size: int, stream: int) -> None:
        """Append to the trace, if one is kept."""
        if self.trace is not None:
            self.trace.append(TraceEntry(action, address, size, stream))

    def count_growth(self, pool: Pool, num_bytes: int) -> None:
        """Count memory that came from the driver into `pool`."""
        self.reserved += num_bytes
        self.statistics.reserved_bytes.change(num_bytes, is_small=pool.is_small)
        self.statistics.num_device_alloc += 1

    def count_release(self, pool: Pool, num_bytes: int) -> None:
        """Count memory that went from `pool` back to the driver."""
        self.driver.give_back(num_bytes)
        self.reserved -= num_bytes
        self.statistics.reserved_bytes.change(-num_bytes, is_small=pool.is_small)
        self.statistics.num_device_free += 1
        self.count_private_pieces(pool, -1)

    def count_private_pieces(self, pool: Pool, change: int) -> None:
        """Follow how many pieces of driver memory a private pool holds."""
        owner = self.private.get(pool.pool_id)
        if owner is not None:
            owner.num_pieces += change

    def release_segment(self, block: Block) -> None:
        """Return an unsplit cached block's segment to the driver."""
        self.record("segment_free", block.address, block.size, block.stream)
        block.pool.remove(block)
        self.count_release(block.pool, block.size)
        self.statistics.segment.change(-1, is_small=block.pool.is_small)
        maximum = self.settings.max_split_bytes
        if maximum is not None and block.size >= maximum:
            self.statistics.oversize_segments.decrease(1)

    def pools(self) -> Iterator[Pool]:
        """Yield every pool, private ones last."""
        yield self.small
        yield self.large
        for private in self.private.values():
            yield private.small
            yield private.large
