"""Convolution workspace at any batch, from a few questions to the library.

Workspace is mostly the copies that a layout change needs, which grow as a line with the batch,
but the library may choose another algorithm at any size. So it is asked at powers of two, where
most batches are, and at the ends of a range; between them the line through the two neighbours is
taken, which is an estimate and not the library's word.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memplan.tape import Int64

Ask = Callable[[Int64, int], Int64]


def anchors(smallest: int, largest: int) -> list[int]:
    """Return the batches asked about: the ends, and the powers of two between them."""
    powers = [1 << exponent for exponent in range(largest.bit_length())]
    return sorted({smallest, largest, *(p for p in powers if smallest < p < largest)})


class WorkspaceCurve:
    """Each convolution's workspace as a function of the micro-batch size.

    Args:
        ask: returns the workspaces of the convolutions with these indices at a batch, bytes.
        num_convolutions: how many there are.
        smallest: first batch, >= 1.
        largest: last batch.
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
        indices: Int64 | None = None,
        known: dict[int, Int64] | None = None,
    ) -> None:
        self._ask = ask
        self._count = num_convolutions
        self.known: dict[int, Int64] = known if known is not None else {}
        """Answers by batch, bytes by convolution, -1 where it was not asked."""
        if known is None:
            asked = np.arange(num_convolutions) if indices is None else indices
            for batch in anchors(smallest, largest):
                self._learn(batch, asked)

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
