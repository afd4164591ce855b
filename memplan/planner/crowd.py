"""How many objects the images of a batch hold, which decides the sizes that depend on data.

A loss that pads every image to the fullest one of its batch takes memory by that one, so what
counts is the distribution of the largest of a batch, not the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memplan.capabilities import object_counts
from memplan.tape import Int64
from memplan.workload import Workload

# The fullest batch so far after 1, 3, 9, 33, 100 and 10,000 of them; the last is what a run of a
# hundred epochs on a small data set meets.
_QUANTILES = (0.5, 0.75, 0.9, 0.97, 0.99, 0.9999)
_NUM_DRAWS = 200_000
_SEED = 0


@dataclass(frozen=True)
class Crowd:
    """The distribution of objects in a training image, as the network sees it.

    Args:
        objects: a sample of it, ascending, int64 `[draws]`.
    """

    objects: Int64

    @classmethod
    def around(cls, mean: float) -> Crowd:
        """Return objects that lie in images independently of each other (Poisson)."""
        draws = np.random.default_rng(_SEED).poisson(mean, _NUM_DRAWS)
        return cls(np.sort(draws.astype(np.int64)))

    @classmethod
    def of_data(cls, workload: Workload, counts: Int64) -> Crowd:
        """Return what training makes of a data set with so many objects in each image."""
        generator = np.random.default_rng(_SEED)
        if not len(counts):
            return cls(np.zeros(1, dtype=np.int64))
        return cls(np.sort(object_counts(workload, counts, _NUM_DRAWS, generator)))

    @property
    def mean(self) -> float:
        """Objects in an image, on average."""
        return float(self.objects.mean())

    def fullest(self, micro_batch_size: int, quantile: float) -> int:
        """Return the objects that the fullest image of a batch does not exceed.

        Args:
            micro_batch_size: images drawn independently, >= 1.
            quantile: the share of batches for which it holds, in 0-1.
        """
        rank = quantile ** (1 / micro_batch_size) * (len(self.objects) - 1)
        return int(self.objects[round(rank)])

    def steps(self, micro_batch_size: int) -> tuple[int, ...]:
        """Return the fullest image of batches that each are the fullest so far, ascending.

        Only those make an allocator grow that keeps what it has: no block that an earlier step
        left is large enough. Among n random batches there are about ln(n) of them.
        """
        return tuple(self.fullest(micro_batch_size, quantile) for quantile in _QUANTILES)
