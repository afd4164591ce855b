"""A tape's life on a card as the memory snapshot that PyTorch would have written there.

Source: what `torch/csrc/cuda/memory_snapshot.cpp` (PyTorch 2.11) writes; `category` stands in an
entry as `torch/cuda/_memory_viz.py` puts it there of a profile.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from memplan import tape as tapes
from memplan.blocks import BlockLabel, BlockLives
from memplan.device.allocator import CachingAllocator
from memplan.device.allocator_blocks import Block
from memplan.device.allocator_records import SegmentRecord, TraceEntry
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.life import Program
from memplan.files import replaced
from memplan.history_frames import Frame, frames_of
from memplan.tape import Int64


def write_snapshot(path: Path, content: dict[str, Any]) -> None:
    """Write a snapshot's content as a pickle, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replaced(path) as file:
        pickle.dump(content, file, protocol=4)


def snapshot_content(
    program: Program,
    sizes: Int64,
    lives: BlockLives,
    settings: AllocatorSettings,
    release: tuple[int, int],
) -> dict[str, Any]:
    """Return what `torch.cuda.memory._snapshot()` would return at the end of a life.

    Times are the numbers of events: nothing is known of seconds. Memory is not limited, so that a
    life that does not fit is written whole.

    Args:
        program: the life.
        sizes: bytes by replayed event, as the card's plans take them.
        lives: the same life's blocks, for their labels.
        settings: of the allocator.
        release: of PyTorch, whose allocator's rules apply.
    """
    writer = _Writer(lives, CachingAllocator(1 << 50, settings, torch_version=release, trace=True))
    events = zip(program.kinds.tolist(), program.blocks.tolist(), sizes.tolist(), strict=True)
    for event, (kind, block, num_bytes) in enumerate(events):
        writer.run(event, kind, block, num_bytes)
    return {
        "segments": [segment_row(one, writer.frames_at) for one in writer.allocator.snapshot()],
        "device_traces": [writer.entries],
        "external_annotations": [],
        "allocator_settings": _written_settings(settings),
        "memplan": {"origin": "simulated"},
    }


class _Writer:
    """Runs a life through the allocator and writes each entry with the frames of its block."""

    def __init__(self, lives: BlockLives, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.entries: list[dict[str, Any]] = []
        self._lives = lives
        self._label_at = dict(zip(lives.made.tolist(), lives.label.tolist(), strict=True))
        self._phases = _by_event(lives)
        self._frames: dict[tuple[int, str], list[Frame]] = {}
        self._blocks: dict[int, Block | None] = {}
        self._at_address: dict[int, tuple[list[Frame], str]] = {}

    def run(self, event: int, kind: int, block: int, num_bytes: int) -> None:
        """Run one event and write what it leaves in the history."""
        phase = next(self._phases)
        begun = len(self.allocator.trace)
        if kind == tapes.FREE:
            self.allocator.free(self._blocks.pop(block, None))
        elif kind == tapes.EMPTY_CACHE:
            self.allocator.empty_cache()
        else:
            made = self.allocator.malloc(num_bytes)
            if kind == tapes.SCRATCH:
                self.allocator.free(made)
            else:
                self._blocks[block] = made
        label = self._label_at.get(event) if kind in (tapes.ALLOCATE, tapes.SCRATCH) else None
        for entry in self.allocator.trace[begun:]:
            self._write(entry, event, label, phase)

    def _write(self, entry: TraceEntry, event: int, label: int | None, phase: str) -> None:
        frames, category = self._at_address.get(entry.address, ([], ""))
        if label is not None and entry.action in {"alloc", "segment_alloc", "segment_map"}:
            frames, category = self._told(label, phase)
            if entry.action == "alloc":
                self._at_address[entry.address] = frames, category
        row = {
            "action": entry.action,
            "addr": entry.address,
            "size": entry.size,
            "stream": entry.stream,
            "time_us": event,
            "frames": frames,
            "compile_context": "N/A",
            "user_metadata": "",
        }
        if entry.action == "alloc":
            row["category"] = category
        self.entries.append(row)

    def _told(self, label: int, phase: str) -> tuple[list[Frame], str]:
        one: BlockLabel = self._lives.labels[label]
        key = label, phase
        if key not in self._frames:
            operator = " ".join(part for part in (one.operator, one.tensor) if part)
            self._frames[key] = frames_of(
                line=one.line, operator=operator, module=one.module, phase=phase
            )
        return self._frames[key], one.band

    def frames_at(self, address: int) -> list[Frame]:
        """Return the frames that asked for the block at an address."""
        return self._at_address.get(address, ([], ""))[0]


def segment_row(one: SegmentRecord, frames_at: Callable[[int], Sequence[Any]]) -> dict[str, Any]:
    """Return a segment as PyTorch writes it.

    Args:
        one: of a simulated allocator.
        frames_at: returns the frames that asked for the block at an address.
    """
    return {
        "device": 0,
        "address": one.address,
        "total_size": one.total_size,
        "allocated_size": one.allocated_size,
        "active_size": one.active_size,
        "requested_size": one.requested_size,
        "stream": one.stream,
        "segment_type": one.segment_type,
        "segment_pool_id": one.segment_pool_id,
        "is_expandable": one.is_expandable,
        "frames": [],
        "blocks": [
            {
                "address": block.address,
                "size": block.size,
                "requested_size": block.requested_size,
                "state": block.state,
                "frames": [] if block.state == "inactive" else frames_at(block.address),
            }
            for block in one.blocks
        ],
    }


def _by_event(lives: BlockLives) -> Iterator[str]:
    """Yield `period/phase` of each event."""
    starts = [start for _, _, start in lives.phases]
    ends = [*starts[1:], lives.num_events]
    for (period, phase, start), end in zip(lives.phases, ends, strict=True):
        yield from (f"{period}/{phase}" for _ in range(start, end))


def _written_settings(settings: AllocatorSettings) -> dict[str, Any]:
    table = settings.roundup_power2_divisions
    maximum = settings.max_split_bytes
    return {
        "PYTORCH_CUDA_ALLOC_CONF": settings.text,
        "max_split_size": -1 if maximum is None else maximum,
        "garbage_collection_threshold": settings.garbage_collection_threshold,
        "expandable_segments": settings.expandable_segments,
        "roundup_power2_divisions": {str(1 << at): each for at, each in enumerate(table)},
        "graph_capture_record_stream_reuse": False,
    }
