"""From the allocator's history of a watched script to what lived at its peak.

Works on plain values, so that it needs no torch.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.history_frames import frames_of

WORKSPACE = "workspace"
"""Phase in which libraries' workspaces are given back, when the script has ended."""

# Points of the drawn curve, at most.
_MOST_POINTS = 1200
_ROUND = 512
_OURS = str(Path(__file__).parents[1])


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A moment at which it was known what lies at some addresses."""

    num_allocations: int
    """Allocations that the allocator had served by then, since its start."""
    categories: dict[int, str]
    """`parameter`, `gradient` or `optimizer_state` by address of the block."""


@dataclass(slots=True)
class _Block:
    """One allocation in the history."""

    address: int
    num_bytes: int
    phase: str
    path: str
    category: str = ""
    freed_in: str | None = None
    """Phase in which it was freed; None while it lives."""


def _parted(text: str) -> tuple[str, str]:
    phase, _, path = text.partition("\x1f")
    return phase, path


class History:
    """The history replayed: each allocation once, and how many bytes lived after each event.

    A history may begin late, as old events give way to new ones. What was allocated before is
    known from its free, or from the blocks that stand at the end.

    Args:
        events: alloc and free entries of one device, oldest first.
        standing: address and bytes of the blocks in use at the end.
        num_allocations: that the allocator has served in all.
    """

    def __init__(
        self,
        events: Iterable[dict[str, Any]],
        standing: dict[int, int],
        num_allocations: int,
    ) -> None:
        self.steps: list[tuple[_Block, bool]] = []
        self.before: list[_Block] = []
        live: dict[int, _Block] = {}
        for event in events:
            action = event["action"]
            if action not in {"alloc", "free_requested"}:
                continue
            address = event["addr"]
            phase, path = _parted(event.get("user_metadata", ""))
            if action == "alloc":
                size = -(-event["size"] // _ROUND) * _ROUND
                block = live[address] = _Block(address, size, phase, path)
                self.steps.append((block, True))
            else:
                known = live.pop(address, None)
                block = self._earlier(address, event["size"]) if known is None else known
                block.freed_in = phase
                if phase != WORKSPACE:
                    self.steps.append((block, False))
        for address, size in standing.items():
            if address not in live:
                self._earlier(address, size)
        served = sum(is_alloc for _, is_alloc in self.steps)
        self.num_before = max(0, num_allocations - served)

    def _earlier(self, address: int, num_bytes: int) -> _Block:
        block = _Block(address, -(-num_bytes // _ROUND) * _ROUND, "", "")
        self.before.append(block)
        return block

    def categorize(self, marks: Sequence[Mark]) -> None:
        """Give blocks the categories that were known at some moments, the others by lifetime."""
        pending = sorted(marks, key=lambda mark: mark.num_allocations)
        live = {block.address: block for block in self.before}
        served = self.num_before
        for block, is_alloc in self.steps:
            if is_alloc:
                live[block.address] = block
                served += 1
            else:
                live.pop(block.address, None)
            # At the last allocation before a mark: what it names may be freed before the next.
            while pending and is_alloc and served >= pending[0].num_allocations:
                _assign(live, pending.pop(0))
        for mark in pending:
            _assign(live, mark)
        for block in (*self.before, *(block for block, is_alloc in self.steps if is_alloc)):
            if not block.category:
                block.category = _by_lifetime(block)

    def peak(self) -> tuple[int, int]:
        """Return the index of the event after which most bytes lived, and how many."""
        total = most = sum(block.num_bytes for block in self.before)
        at = -1
        for index, (block, is_alloc) in enumerate(self.steps):
            total += block.num_bytes if is_alloc else -block.num_bytes
            if total > most:
                at, most = index, total
        return at, most

    def live_after(self, index: int) -> list[_Block]:
        """Return the blocks that lived after an event."""
        live = {id(block): block for block in self.before}
        for block, is_alloc in self.steps[: index + 1]:
            if is_alloc:
                live[id(block)] = block
            else:
                live.pop(id(block), None)
        return list(live.values())

    def curve(self, step_ends: Sequence[int]) -> dict[str, Any]:
        """Return bytes by category over the history, thinned to the fullest of each stretch.

        Args:
            step_ends: allocations served when each optimizer step ended.

        Returns:
            `categories`, a list of bytes for each, and `step_ends`, indices into these lists.
        """
        width = max(1, -(-len(self.steps) // _MOST_POINTS))
        now: dict[str, int] = {}
        for block in self.before:
            now[block.category] = now.get(block.category, 0) + block.num_bytes
        total = most = sum(now.values())
        points = [dict(now)]
        ends: list[int] = []
        served, pending = self.num_before, sorted(step_ends)
        for index, (block, is_alloc) in enumerate(self.steps):
            if index % width == 0:
                points.append(dict(now))
                most = total
            change = block.num_bytes if is_alloc else -block.num_bytes
            served += is_alloc
            total += change
            now[block.category] = now.get(block.category, 0) + change
            if total > most:
                points[-1], most = dict(now), total
            while pending and served >= pending[0]:
                pending.pop(0)
                ends.append(len(points) - 1)
        names = sorted({name for point in points for name in point})
        lists = {name: [point.get(name, 0) for point in points] for name in names}
        return {"categories": lists, "step_ends": ends}


def _assign(live: dict[int, _Block], mark: Mark) -> None:
    for address, category in mark.categories.items():
        if address in live and not live[address].category:
            live[address].category = category


def _by_lifetime(block: _Block) -> str:
    """Return what a block is by when it lived.

    What forward makes and does not free itself is kept for backward, and what backward leaves is
    a gradient; what is made between steps and lives into one is its input. A library's workspace
    is scratch of every call, though it is kept from one to the next.
    """
    if block.freed_in == WORKSPACE:
        return "temporary"
    is_kept = block.freed_in is None or block.freed_in != block.phase
    if block.phase == "input" or (block.phase == "between" and block.freed_in and is_kept):
        return "input"
    if block.phase == "forward" and is_kept:
        return "activation"
    if block.phase == "backward" and is_kept:
        return "gradient"
    return "temporary" if block.freed_in else "unattributed"


def breakdown(
    snapshot: dict[str, Any],
    device: int,
    marks: Sequence[Mark],
    steps: Sequence[dict[str, int]],
    shown: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Return what lived at the peak by category and module, and memory over the history.

    Args:
        snapshot: of `torch.cuda.memory._snapshot`.
        device: index of the card.
        marks: moments at which categories were known.
        steps: allocator counts after each optimizer step.
        shown: a module's path as people read it.
    """
    traces = snapshot["device_traces"]
    events = traces[device] if device < len(traces) else traces[0]
    standing = {
        address: size
        for segment in snapshot["segments"]
        if segment.get("device", device) == device
        for address, size in _standing(segment)
    }
    served = steps[-1]["num_allocations"] if steps else 0
    num_allocs = sum(event["action"] == "alloc" for event in events)
    history = History(events, standing, max(served, num_allocs))
    history.categorize(marks)
    _write_into(snapshot, events, history, [step["num_allocations"] for step in steps], shown)
    at, most = history.peak()
    live = history.live_after(at)
    categories: dict[str, int] = {}
    modules: dict[str, dict[str, int]] = {}
    for block in live:
        categories[block.category] = categories.get(block.category, 0) + block.num_bytes
        held = modules.setdefault(shown(block.path), {})
        held[block.category] = held.get(block.category, 0) + block.num_bytes
    phase, path = ("", "") if at < 0 else (history.steps[at][0].phase, history.steps[at][0].path)
    return {
        "peak_bytes": most,
        "peak_phase": phase,
        "peak_module": shown(path),
        "categories": categories,
        "modules": modules,
        "timeline": history.curve([step["num_allocations"] for step in steps]),
        "num_events": len(events),
    }


def _write_into(
    snapshot: dict[str, Any],
    events: Sequence[dict[str, Any]],
    history: History,
    step_ends: Sequence[int],
    shown: Callable[[str], str],
) -> None:
    """Write what was found of each allocation into its entry, and leave our own frames out."""
    for segment in snapshot["segments"]:
        for standing in segment["blocks"]:
            standing["frames"] = _of_script(standing)
    blocks = iter([block for block, is_alloc in history.steps if is_alloc])
    served = history.num_before
    for event in events:
        event["frames"] = _of_script(event)
        if event["action"] != "alloc":
            continue
        block = next(blocks)
        served += 1
        step = bisect.bisect_left(step_ends, served) + 1
        phase = f"step_{step}/{block.phase}" if block.phase else ""
        event["frames"] += frames_of(module=shown(block.path), phase=phase)
        event["category"] = block.category


def _of_script(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in event.get("frames", ()) if _is_the_scripts(one["filename"])]


@lru_cache(maxsize=4096)
def _is_the_scripts(path: str) -> bool:
    return not path.startswith(_OURS)


def _standing(segment: dict[str, Any]) -> Iterable[tuple[int, int]]:
    address = segment["address"]
    for block in segment["blocks"]:
        place = block.get("address", address)
        if block["state"] == "active_allocated":
            yield place, block["size"]
        address = place + block["size"]
