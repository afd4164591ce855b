"""What a convolution does whose workspace finds no memory: it takes the next of cuDNN's plans.

PyTorch catches the out-of-memory error of a plan's workspace and goes on with the next plan of the
list; by then the allocator has given its cached blocks back to the driver, and has counted a retry
and an out-of-memory. The plan that ran is kept for the problem, so that later calls take it at
once, even where the better one would find room again. When the kept plan finds no room either, the
list is gone through anew, from its first plan. Each thread keeps plans of its own: backward has
others than forward. Where no plan finds room, the step fails with a plain `RuntimeError`.

Nothing but convolutions falls back so: a matrix product whose workspace finds no memory raises.

Source: `run_single_conv`, `try_configs` and `benchmark_cache` in
aten/src/ATen/native/cudnn/Conv_v8.cpp; `getCurrentCUDABlasWorkspace` in
aten/src/ATen/cuda/CublasHandlePool.cpp and `gemm_and_bias` in
aten/src/ATen/cuda/CUDABlas.cpp, which catch nothing (PyTorch 2.11).

Limits: under `torch.backends.cudnn.benchmark` PyTorch times what is left anew; taken here is the
plan with the largest workspace that finds room, for only the card can tell which is fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memplan.device.allocator import CachingAllocator
from memplan.device.allocator_blocks import Block
from memplan.errors import DeviceOutOfMemoryError
from memplan.tape import Int64

NO_PLAN_TEXT = "GET was unable to find an engine to execute this computation"
"""What PyTorch says where no plan finds room. Source: `run_single_conv` in Conv_v8.cpp."""

NO_KEY = -1
"""Of an event that asks for no convolution's workspace."""


@dataclass(frozen=True)
class HeldScratch:
    """Workspace that another plan was given, by now given back; bytes."""

    requested: int
    block: int
    rest: int
    """What was cut off an unsplit block for it, and lay free while it was held."""
    later: list[int]
    """This event and those after it that take the same plan."""


def _held(num_bytes: int, block: Block | None, later: list[int]) -> HeldScratch:
    if block is None:
        return HeldScratch(0, 0, 0, later)
    behind = block.next
    was_whole = block.prev is None and behind is not None and behind.next is None
    rest = behind.size if behind is not None and was_whole and not behind.allocated else 0
    return HeldScratch(num_bytes, block.size, rest, later)


class PlanFallback:
    """The plans that convolutions fall back on during one replay.

    Args:
        keys: by replayed event, int64 `[events]`: equal where PyTorch keeps one plan for both,
            `NO_KEY` where the event is no convolution's.
        plans: returns, for a key, the workspaces of all plans in the order they are tried, bytes.
    """

    def __init__(self, keys: Int64, plans: Callable[[int], Sequence[int]]) -> None:
        self._keys = keys
        self._plans = plans
        self._taken: dict[int, int] = {}
        self._replaced: dict[int, int] = {}

    @property
    def num_convolutions(self) -> int:
        """How many convolutions took another plan than the first."""
        return len(self._taken)

    def take(self, allocator: CachingAllocator, event: int) -> HeldScratch | None:
        """Give an event's workspace to the next plan with room, and take it back again.

        Args:
            allocator: that has just refused the event's workspace.
            event: index of the replayed event.

        Returns:
            None where no plan finds room, or the event is no convolution's.
        """
        key = int(self._keys[event])
        for num_bytes in self._left(event) if key != NO_KEY else ():
            try:
                block = allocator.malloc(num_bytes)
            except DeviceOutOfMemoryError:
                continue
            later = (np.flatnonzero(self._keys[event:] == key) + event).tolist()
            self._taken[key] = num_bytes
            self._replaced |= dict.fromkeys(later, num_bytes)
            held = _held(num_bytes, block, later)
            allocator.free(block)
            return held
        return None

    def _left(self, event: int) -> Iterator[int]:
        """Yield the workspaces still to be tried, after the event's own was refused."""
        key = int(self._keys[event])
        plans = self._plans(key)
        # The first call went through the list as far as its first plan; a later call has tried
        # the plan that was kept, and begins with the list.
        yield from plans[1:] if event == self._first_calls[key] else plans

    @cached_property
    def _first_calls(self) -> dict[int, int]:
        keys, events = np.unique(self._keys, return_index=True)
        return dict(zip(keys.tolist(), events.tolist(), strict=True))

    def no_plan_text(self, event: int, refusal: str) -> str:
        """Return what PyTorch raises at an event, after the allocator's own refusal."""
        if self._keys[event] == NO_KEY:
            return refusal
        num_plans = len(self._plans(int(self._keys[event])))
        return (
            f"{NO_PLAN_TEXT} (none of cuDNN's {num_plans} plans finds room for its workspace; the "
            f"first: {refusal})"
        )

    def applied(self, sizes: Int64) -> Int64:
        """Return the bytes by replayed event as they were taken in the end."""
        taken = sizes.copy()
        taken[list(self._replaced)] = list(self._replaced.values())
        return taken
