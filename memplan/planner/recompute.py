"""Which blocks to recompute: the cheapest choice at each of a ladder of memory limits.

From recordings with nothing and with every block recomputed, each block's effect on memory at each
operator of a micro-batch is known, and what its second forward costs; between blocks the effects
add up. Least time within a limit is then an integer program (`memplan.planner.milp`).

The rungs of the ladder are limits spread evenly from the peak with nothing recomputed to the
lowest that can be had. They do not depend on a budget, so of two budgets the larger one never
ends on a lower rung.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.planner.milp import Choices
from memplan.planner.splice import Splicer
from memplan.tape import Int64, Tape

NUM_RUNGS = 16
# Blocks that keep less than this part of what all keep are chosen as a whole or not at all.
_LARGE_FRACTION = 0.03
_MICRO_BATCH = tapes.SECTIONS.index("micro_batch")
_BLOCK_BYTES = 512  # the allocator's rounding

# Returns each operator's time and each event's bytes for a tape on the card.
Timer = Callable[[Tape], npt.NDArray[np.float64]]
Sizer = Callable[[Tape], Int64]


def kept_bytes(tape: Tape, paths: Sequence[str]) -> dict[str, int]:
    """Return by path the bytes that forward leaves there for backward.

    Args:
        tape: nothing is recomputed in it.
        paths: of modules, none inside another.
    """
    events, operators = tape.events, tape.operators
    forward = tapes.PHASES.index("forward")
    row = np.maximum(events.operator, 0)
    kept = (
        (events.section == _MICRO_BATCH)
        & (events.kind == tapes.ALLOCATE)
        & (operators.phase[row] == forward)
        & (tape.block_category[events.block] == tapes.CATEGORY_INDEX["activation"])
    )
    of_module = np.zeros(len(tape.modules) + 1, dtype=np.int64)
    np.add.at(of_module, operators.module[row[kept]], events.requested_bytes[kept])
    return {
        path: sum(
            int(of_module[index])
            for index, module in enumerate(tape.modules)
            if is_inside(module.path, path)
        )
        for path in paths
    }


def is_inside(path: str, outer: str) -> bool:
    """Return whether a module path is another one's or lies within."""
    return path == outer or path.startswith(f"{outer}.")


def parts_of_large(tape: Tape, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of large blocks that may be recomputed by themselves, in order.

    Parts are the modules directly inside that were called, compute products or convolutions, and
    consist of several modules: a lone layer keeps hardly more than its own input.
    """
    kept = kept_bytes(tape, blocks)
    large = [one for one in blocks if kept[one] > _LARGE_FRACTION * sum(kept.values())]
    computes = {
        tape.modules[index].path
        for index in np.unique(tape.operators.module[tape.operators.flops > 0])
        if index >= 0
    }
    found = []
    for module in tape.modules:
        outer, _, _ = module.path.rpartition(".")
        if outer not in large or not module.output_shape:
            continue
        inside = [one.path for one in tape.modules if is_inside(one.path, module.path)]
        if len(inside) > 2 and computes & set(inside):
            found.append(module.path)
    return tuple(found)


class RecomputeLadder:
    """The cheapest choices of what to recompute at one micro-batch size, less memory rung by rung.

    Args:
        splicer: knows what can be chosen, and the tapes.
        seconds_of: returns each operator's time, float64 `[operators]`.
        bytes_of: returns each event's bytes with the device's answers filled in, int64 `[events]`.
    """

    def __init__(self, splicer: Splicer, seconds_of: Timer, bytes_of: Sizer) -> None:
        self._splicer = splicer
        self._seconds_of = seconds_of
        self._bytes_of = bytes_of
        self._rungs: dict[int, npt.NDArray[np.bool_]] = {}

    @cached_property
    def choices(self) -> Choices:
        """What may be chosen and what it does, in the order of `paths`."""
        lifetimes = self._splicer.lifetimes()
        count, width = lifetimes.num_points, len(self._splicer.paths)
        plain = -(-self._bytes_of(self._splicer.plain) // _BLOCK_BYTES) * _BLOCK_BYTES
        held = _curve(count, lifetimes.born, lifetimes.gone, plain[lifetimes.rows])
        change = np.zeros((count, width))
        seconds = np.zeros(width)
        for effect in lifetimes.effects:
            own = -(-self._bytes_of(effect.tape) // _BLOCK_BYTES) * _BLOCK_BYTES
            spent = self._seconds_of(effect.tape)
            for path in range(width):
                gains, drops = effect.gains.of(path), effect.drops.of(path)
                if not (len(gains.rows) or len(drops.rows)):
                    continue
                change[:, path] += _curve(count, gains.born, gains.gone, own[gains.rows])
                change[:, path] -= _curve(count, drops.born, drops.gone, plain[drops.rows])
                seconds[path] += float(spent[effect.inserted_of == path].sum())
        return Choices(seconds, held, change, self._splicer.exclusive)

    @cached_property
    def _limits(self) -> tuple[float, float]:
        choices = self.choices
        return choices.peak_bytes(choices.nothing), choices.peak_bytes(choices.least_memory())

    def chosen(self, rung: int) -> tuple[str, ...]:
        """Return the paths that a rung recomputes: none on rung 0, for least memory on the last.

        Args:
            rung: 0 to `NUM_RUNGS`.
        """
        if rung not in self._rungs:
            high, low = self._limits
            limit = high - (high - low) * rung / NUM_RUNGS
            found = self.choices.cheapest(limit)
            self._rungs[rung] = self.choices.least_memory() if found is None else found
        flags = self._rungs[rung]
        return tuple(path for path, flag in zip(self._splicer.paths, flags, strict=True) if flag)

    def tape(self, rung: int) -> Tape:
        """Return the tape of a rung."""
        return self._splicer.tape(self.chosen(rung))


def _curve(count: int, born: Int64, gone: Int64, num_bytes: Int64) -> npt.NDArray[np.float64]:
    """Return bytes held at each point by what lives from one point to another, both included."""
    steps = np.zeros(count + 1)
    np.add.at(steps, born, num_bytes)
    np.add.at(steps, gone + 1, -num_bytes)
    curve: npt.NDArray[np.float64] = np.cumsum(steps)[:-1]
    return curve
