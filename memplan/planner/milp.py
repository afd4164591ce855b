"""The cheapest choices that keep memory within a limit at every point: an integer program.

Choosing what to recompute is choosing x in {0, 1}^n so that the extra time `seconds @ x` is least
while `held + change @ x <= limit` holds at each point of a step, and of choices that exclude each
other at most one is taken.

Source: the form of `sac_milp` in torch/distributed/_tools/sac_ilp.py (PyTorch 2.11), with memory
at every point instead of block by block; solved by HiGHS through `scipy.optimize.milp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from memplan.planner.quiet import quiet_stdout
from memplan.units import MIB

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

# Bytes within which a limit is met; HiGHS's own tolerance, 1e-6 of a MiB, is an eighth of it.
_TOLERANCE_BYTES = 8
_GAP = 1e-6
# A search tree of this size takes a second or two; counted in nodes, so that the answer does not
# depend on how busy the machine is.
_MOST_NODES = 2_000


@dataclass(frozen=True)
class Choices:
    """What may be chosen, and what it does to memory at each point.

    Args:
        seconds: what each choice costs, >= 0, float64 `[choices]`.
        held: bytes at each point when nothing is chosen, float64 `[points]`.
        change: bytes that each choice adds at each point, float64 `[points, choices]`.
        exclusive: indices of choices of which at most one may be taken, a tuple each.
    """

    seconds: Float64
    held: Float64
    change: Float64
    exclusive: tuple[tuple[int, ...], ...] = ()

    @property
    def nothing(self) -> Bool:
        """The choice of nothing."""
        return np.zeros(len(self.seconds), dtype=bool)

    def peak_bytes(self, chosen: Bool) -> float:
        """Return the most bytes at any point."""
        return float((self.held + self.change @ chosen).max(initial=0.0))

    def cost(self, chosen: Bool) -> float:
        """Return the seconds that a choice adds."""
        return float(self.seconds @ chosen)

    @cached_property
    def _decisive(self) -> tuple[Float64, Float64]:
        """The points that may be the peak: no other is at least as high whatever is chosen."""
        # Equal rows are alike at every choice but for the bytes held.
        rows, group = np.unique(self.change, axis=0, return_inverse=True)
        held = np.full(len(rows), -np.inf)
        np.maximum.at(held, group.reshape(-1), self.held)
        # A point that stays below the floor of the peak is never decisive.
        least = held + np.minimum(rows, 0).sum(axis=1)
        most = held + np.maximum(rows, 0).sum(axis=1)
        keep = most > least.max(initial=-np.inf)
        held, rows = held[keep], rows[keep]
        order = np.argsort(-held, kind="stable")
        kept: list[int] = []
        for index in order.tolist():
            others = np.array(kept, dtype=np.int64)
            excess = np.maximum(rows[index] - rows[others], 0).sum(axis=1)
            if not (held[index] + excess <= held[others]).any():
                kept.append(index)
        return held[kept], rows[kept]

    def _exclusions(self) -> Float64:
        rows = np.zeros((len(self.exclusive), len(self.seconds)))
        for row, members in zip(rows, self.exclusive, strict=True):
            row[list(members)] = 1
        return rows

    def cheapest(self, limit_bytes: float) -> Bool | None:
        """Return the choice that adds least time within a limit; None where none keeps it.

        Of equally cheap choices HiGHS's is taken, always the same one.
        """
        if self.peak_bytes(self.nothing) <= limit_bytes:
            return self.nothing
        held, change = self._decisive
        scale = max(float(self.seconds.max(initial=0)), 1e-12)
        room = (limit_bytes - held) / MIB
        chosen = self._solved(self.seconds / scale, change / MIB, room)
        if chosen is None or self.peak_bytes(chosen) > limit_bytes + _TOLERANCE_BYTES:
            return None
        return chosen

    def least_memory(self) -> Bool:
        """Return the choice with the lowest peak."""
        held, change = self._decisive
        if not len(self.seconds):
            return self.nothing
        # One more variable is the peak itself, in MiB.
        over_peak = np.hstack([change / MIB, np.full((len(held), 1), -1.0)])
        nothing = np.zeros(len(self.seconds))
        chosen = self._solved(nothing, over_peak, -held / MIB, with_peak=True)
        return self.nothing if chosen is None else chosen

    def _solved(
        self, costs: Float64, rows: Float64, most: Float64, *, with_peak: bool = False
    ) -> Bool | None:
        """Return the cheapest choice with `rows @ choice <= most`; None where HiGHS finds none."""
        # Here, for it takes a fifth of a second that a probe need not wait for.
        from scipy.optimize import Bounds, LinearConstraint, milp

        count = len(costs)
        upper = np.ones(count)
        if with_peak:
            costs, upper = np.append(costs, 1.0), np.append(upper, np.inf)
        constraints = [LinearConstraint(rows, ub=most)]
        if self.exclusive:
            exclusions = self._exclusions()
            padded = np.hstack([exclusions, np.zeros((len(exclusions), len(costs) - count))])
            constraints.append(LinearConstraint(padded, ub=1))
        whole = np.append(np.ones(count, dtype=np.int64), np.zeros(len(costs) - count, np.int64))
        with quiet_stdout():
            result = milp(
                costs,
                constraints=constraints,
                bounds=Bounds(0, upper),
                integrality=whole,
                options={"mip_rel_gap": _GAP, "node_limit": _MOST_NODES},
            )
        return None if result.x is None else np.rint(result.x[:count]).astype(bool)
