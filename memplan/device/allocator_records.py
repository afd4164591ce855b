"""What the simulated allocator reports of itself: trace entries and snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from memplan.device.allocator_blocks import Block, PoolId

Action = Literal[
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "snapshot",
    "oom",
]
BlockState = Literal["active_allocated", "active_pending_free", "inactive"]


class TraceEntry(NamedTuple):
    """One entry of the allocator's history, as in a snapshot's `device_traces`.

    `address` is the block's or segment's; for `oom` the device's free bytes. `size` is what was
    requested for blocks, the rounded request for `oom`, and bytes of memory otherwise.
    """

    action: Action
    address: int
    size: int
    stream: int


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """A block in a snapshot; `requested_size` of an inactive block is stale."""

    address: int
    size: int
    requested_size: int
    state: BlockState


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """A segment in a snapshot, or one contiguous mapped run of an expandable segment; bytes."""

    address: int
    total_size: int
    allocated_size: int
    active_size: int
    requested_size: int
    stream: int
    segment_type: Literal["small", "large"]
    segment_pool_id: PoolId
    is_expandable: bool
    blocks: tuple[BlockRecord, ...]


def segments_of(blocks: Iterable[Block]) -> tuple[SegmentRecord, ...]:
    """Return the segments that mapped blocks belong to, by address.

    Source: `snapshot` in `c10/cuda/CUDACachingAllocator.cpp`.
    """
    heads = [block for block in blocks if block.prev is None or not block.prev.mapped]
    return tuple(_segment(head) for head in sorted(heads, key=lambda head: head.address))


def _segment(head: Block) -> SegmentRecord:
    records = []
    block: Block | None = head
    while block is not None and block.mapped:
        records.append(BlockRecord(block.address, block.size, block.requested, _state(block)))
        block = block.next
    active = [record for record in records if record.state != "inactive"]
    return SegmentRecord(
        address=head.address,
        total_size=sum(record.size for record in records),
        allocated_size=sum(r.size for r in active if r.state == "active_allocated"),
        active_size=sum(record.size for record in active),
        requested_size=sum(record.requested_size for record in active),
        stream=head.stream,
        segment_type="small" if head.pool.is_small else "large",
        segment_pool_id=head.pool.pool_id,
        is_expandable=head.expandable is not None,
        blocks=tuple(records),
    )


def _state(block: Block) -> BlockState:
    if block.allocated:
        return "active_allocated"
    return "inactive" if block.is_available else "active_pending_free"
