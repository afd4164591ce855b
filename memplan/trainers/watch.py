"""Memory watched from pass to pass of somebody else's loop, and the cheapest remedy taken."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from memplan.trainers.pieces import Pieces
from memplan.training.guard import make_room
from memplan.training.memory import MemoryWatch
from memplan.training.remedy import Action, Means, cheapest
from memplan.training.watch import Cause, Finding
from memplan.units import format_bytes

_LOG = logging.getLogger("memplan")
_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_EXPANDABLE = "expandable_segments:True"
_ADVICE = f" Start the next run with PYTORCH_ALLOC_CONF={_EXPANDABLE}."


@dataclass(frozen=True)
class GuardFinding:
    """What memory is about to do, and what was done about it."""

    step: int
    """Passes that had ended, of this guard."""
    cause: str
    """`leak`, `fragmentation`, `crowded batch` or `another process`."""
    grown_bytes: int
    steps_left: int | None
    """Until there is no room left at this rate; None where it does not grow on."""
    action: str
    """`none`, `cache emptied`, `smaller micro-batch`, or what is advised at the next start."""


class LoopWatch:
    """Looks at the device after each pass; does nothing on a CPU.

    Args:
        device: where the model is.
        pieces: made more of where a smaller piece is the cheapest remedy.
    """

    def __init__(self, device: torch.device, pieces: Pieces) -> None:
        self.findings: list[GuardFinding] = []
        self._memory = MemoryWatch(device, None)
        self._pieces = pieces
        self._held = pieces.held
        self._emptied: Counter[Cause] = Counter()

    def follow(self, num_samples: Callable[[], int]) -> None:
        """Look at memory after a pass, and act where it is about to run out.

        Args:
            num_samples: in the batch, asked where it matters; 1 where it cannot be split.
        """
        watch = self._memory.watch
        if watch is None:
            return
        if self._held != self._pieces.held:
            self._held = self._pieces.held
            watch.forget()
        finding = self._memory.follow(self._pieces.num_steps)
        if finding is not None:
            self._act(finding, num_samples())

    def _act(self, finding: Finding, num_samples: int) -> None:
        action = cheapest(finding, self._means(finding.cause, num_samples))
        left, step = finding.steps_left, self._pieces.num_steps
        found = GuardFinding(step, str(finding.cause), finding.grown_bytes, left, str(action))
        self.findings.append(found)
        soon = "" if left is None else f", and runs out in some {left} steps"
        grown = format_bytes(finding.grown_bytes)
        done = _ADVICE if action is Action.EXPANDABLE else f" Done: {action}."
        _LOG.warning("Memory: %s, %s (measured)%s.%s", found.cause, grown, soon, done)
        if action is Action.EMPTY_CACHE:
            self._emptied[finding.cause] += 1
            make_room()
        elif action is Action.SMALLER:
            self._pieces.smaller()
        if action is not Action.WARN and self._memory.watch is not None:
            self._memory.watch.acted(finding.cause)

    def _means(self, cause: Cause, num_samples: int) -> Means:
        reading = self._memory.reading
        cached = 0 if reading is None else reading.reserved_bytes - reading.allocated_peak_bytes
        options = "".join(os.environ.get(name, "") for name in _VARIABLES)
        return Means(
            micro_batch_size=max(num_samples // self._pieces.held, 1),
            cached_bytes=cached,
            is_expandable=_EXPANDABLE in options,
            times_emptied=self._emptied[cause],
        )
