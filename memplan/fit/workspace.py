"""Convolution workspace at any batch, from a few questions to the library.

Workspace is mostly the copies that a layout change needs, which grow as a line with the batch,
but the library may choose another algorithm at any size. So each convolution is asked at the ends
and in the middle of a range, and wherever the middle is off the line between, the halves are
asked in turn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memplan.tape import Int64

# Below this a difference cannot move a block: the allocator rounds to 512 bytes.
_TOLERANCE_BYTES = 512

Ask = Callable[[Int64, int], Int64]


class WorkspaceCurve:
    """Each convolution's workspace as a function of the micro-batch size.

    Args:
        ask: returns the workspaces of the convolutions with these indices at a batch, bytes.
        num_convolutions: how many there are.
        smallest: first batch, >= 1.
        largest: last batch.
        max_depth: how often a range may be halved; 2 ** max_depth + 1 questions at most.
        indices: which convolutions to ask about; None asks about all.
        known: answers there are already, bytes by convolution and -1 for none; nothing is asked.
    """

    def __init__(
        self,
        ask: Ask,
        num_convolutions: int,
        smallest: int,
        largest: int,
        *,
        max_depth: int = 3,
        indices: Int64 | None = None,
        known: dict[int, Int64] | None = None,
    ) -> None:
        self._ask = ask
        self._count = num_convolutions
        self.known: dict[int, Int64] = known if known is not None else {}
        """Answers by batch, bytes by convolution, -1 where it was not asked."""
        if known is not None:
            return
        asked = np.arange(num_convolutions) if indices is None else indices
        self._learn(smallest, asked)
        if largest > smallest:
            self._learn(largest, asked)
            self._refine(smallest, largest, asked, max_depth)

    def learn(self, known: dict[int, Int64]) -> None:
        """Take over the answers of a curve that asked about other convolutions."""
        for batch, answers in known.items():
            mine = self.known.setdefault(batch, np.full(self._count, -1, dtype=np.int64))
            np.copyto(mine, answers, where=answers >= 0)

    def _learn(self, batch: int, indices: Int64) -> None:
        answers = self.known.setdefault(batch, np.full(self._count, -1, dtype=np.int64))
        missing = indices[answers[indices] < 0]
        if len(missing):
            answers[missing] = self._ask(missing, batch)

    def _refine(self, low: int, high: int, indices: Int64, depth: int) -> None:
        if high - low < 2 or depth == 0 or not len(indices):
            return
        middle = (low + high) // 2
        self._learn(middle, indices)
        lows, highs = self.known[low][indices], self.known[high][indices]
        line = lows + (highs - lows) * (middle - low) // (high - low)
        bent = indices[np.abs(self.known[middle][indices] - line) > _TOLERANCE_BYTES]
        self._refine(low, middle, bent, depth - 1)
        self._refine(middle, high, bent, depth - 1)

    def at(self, batch: int) -> Int64:
        """Return the workspaces at a batch, interpolated between the batches asked about."""
        result = np.zeros(self._count, dtype=np.int64)
        batches = sorted(self.known)
        table = np.stack([self.known[known] for known in batches])
        for index in range(self._count):
            asked = table[:, index] >= 0
            result[index] = _interpolated(
                np.array(batches, dtype=np.int64)[asked], table[asked, index], batch
            )
        return result

    def exactly_at(self, batch: int, indices: Int64 | None = None) -> Int64:
        """Return the workspaces at a batch as the library states them, asking where needed.

        Args:
            batch: the micro-batch size.
            indices: which convolutions; None asks about all. Others may come back as -1.
        """
        self._learn(batch, np.arange(self._count) if indices is None else indices)
        return self.known[batch]


def _interpolated(batches: Int64, values: Int64, batch: int) -> int:
    """Return the value between two neighbours, or on the last line beyond the ends."""
    if len(batches) == 1:
        return int(values[0])
    right = int(np.clip(np.searchsorted(batches, batch), 1, len(batches) - 1))
    low, high = int(batches[right - 1]), int(batches[right])
    rise = int(values[right]) - int(values[right - 1])
    return max(0, int(values[right - 1]) + round(rise * (batch - low) / (high - low)))
