"""What a snapshot's segments and blocks add up to, pool by pool."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.device.allocator_records import SegmentRecord


@dataclass(frozen=True, kw_only=True)
class PoolTotals:
    """One pool on one stream at the time of a snapshot; bytes."""

    pool: str
    """`small` or `large`, with the id of a private pool."""
    stream: int
    num_segments: int
    num_blocks: int
    """In use."""
    reserved_bytes: int
    allocated_bytes: int
    inactive_bytes: int
    """Held from the driver and in no use."""
    largest_inactive_bytes: int
    """The largest request that fits into a block in no use."""


def pool_totals(segments: tuple[SegmentRecord, ...]) -> tuple[PoolTotals, ...]:
    """Return the totals of each pool and stream, the largest first."""
    members: dict[tuple[str, int], list[SegmentRecord]] = {}
    for segment in segments:
        private = segment.segment_pool_id
        name = segment.segment_type if private == (0, 0) else f"{segment.segment_type} {private}"
        members.setdefault((name, segment.stream), []).append(segment)
    totals = [_totals(*key, inside) for key, inside in members.items()]
    return tuple(sorted(totals, key=lambda one: -one.reserved_bytes))


def _totals(pool: str, stream: int, segments: list[SegmentRecord]) -> PoolTotals:
    blocks = [block for segment in segments for block in segment.blocks]
    inactive = [block.size for block in blocks if block.state == "inactive"]
    return PoolTotals(
        pool=pool,
        stream=stream,
        num_segments=len(segments),
        num_blocks=sum(block.state == "active_allocated" for block in blocks),
        reserved_bytes=sum(segment.total_size for segment in segments),
        allocated_bytes=sum(segment.allocated_size for segment in segments),
        inactive_bytes=sum(inactive),
        largest_inactive_bytes=max(inactive, default=0),
    )
