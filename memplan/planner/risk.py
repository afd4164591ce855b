"""How likely a run meets an image so full that its memory exceeds a budget.

Every training image that the network sees is a draw from what augmentation makes of the data set.
A run of N draws stays below m objects with probability F(m)^N, whatever the micro-batch, so the
chance that any step exceeds a budget is 1 - F(m*)^N, with m* the most objects that fit.

F is known from draws. Beyond those, the tail is taken to fall exponentially with the mean excess
over the highest draws, and to end where augmentation can put no more objects together. How much a
data set of so few images says of F is found by resampling its images (bootstrap).

Source: peaks over a threshold with exponential excesses, the case of shape 0 of the generalized
Pareto law (Pickands 1975); percentile bootstrap (Efron 1979).

Limits: draws are taken as independent; the last epochs without mosaic hold fewer objects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memplan.capabilities import object_counts
from memplan.evaluation.bisection import last_holding
from memplan.planner.crowd import Crowd
from memplan.tape import Int64
from memplan.workload import Workload

# Part of the capacity left for the prediction's own error: its median error over the 31 measured
# runs of the xMem study. Source: benchmarks/results/accuracy_xmem.md.
PREDICTION_ERROR = 0.025
# The part where crowds are not known: as much again for them.
SAFETY_WITHOUT_DATA = 0.05
# A plan for a data set holds for all but one run in a hundred.
RUN_QUANTILE = 0.99
_SEED = 0
_NUM_DRAWS = 400_000
_NUM_RESAMPLES = 24
_RESAMPLE_DRAWS = 50_000
# An empirical share of fewer draws than this is left to the tail.
_FEWEST_BEYOND = 50


class CrowdTail:
    """The chance that a training image holds more than some number of objects.

    Args:
        draws: objects in drawn images, int64 `[draws]`, at least one.
        most: the most that augmentation can put together, >= all draws.
    """

    def __init__(self, draws: Int64, most: int) -> None:
        self._draws = np.sort(draws)
        self.most = most
        count = len(self._draws)
        beyond = min(_FEWEST_BEYOND, count - 1)
        self._threshold = int(self._draws[count - 1 - beyond])
        excess = self._draws[self._draws > self._threshold] - self._threshold
        self._share = len(excess) / count
        self._mean_excess = float(excess.mean()) if len(excess) else 0.0

    @property
    def mean(self) -> float:
        """Objects in an image, on average."""
        return float(self._draws.mean())

    def exceeding(self, objects: int) -> float:
        """Return the chance that one image holds more objects, 0 to 1."""
        if objects >= self.most:
            return 0.0
        if objects < self._threshold:
            above = len(self._draws) - np.searchsorted(self._draws, objects, side="right")
            return float(above) / len(self._draws)
        if not self._share:
            return 0.0
        return self._share * math.exp(-(objects - self._threshold) / self._mean_excess)

    def exceeding_in_run(self, objects: int, num_images: int) -> float:
        """Return the chance that the fullest of many images holds more objects, 0 to 1."""
        one = self.exceeding(objects)
        return 1.0 if one >= 1 else -math.expm1(num_images * math.log1p(-one))

    def fullest(self, num_images: int, quantile: float) -> int:
        """Return the objects that the fullest of many images does not exceed.

        Args:
            num_images: drawn, >= 1.
            quantile: the share of runs for which it holds, in 0-1.
        """

        def is_exceeded(objects: int) -> bool:
            return self.exceeding_in_run(objects, num_images) > 1 - quantile

        return last_holding(is_exceeded, -1, self.most) + 1

    def at_share(self, share: float) -> int:
        """Return the objects that a share of the images does not exceed."""
        return int(self._draws[round(share * (len(self._draws) - 1))])


def most_objects(workload: Workload, counts: Int64) -> int:
    """Return the most objects that augmentation makes of a data set: all images as its fullest."""
    fullest = np.full(len(counts), counts.max())
    drawn = object_counts(workload, fullest, 10_000, np.random.default_rng(_SEED))
    return max(int(drawn.max()), int(counts.max()))


@dataclass(frozen=True)
class RunCrowd:
    """The objects that a run over a data set meets.

    Args:
        tail: of the data set.
        resampled: of data sets drawn from it with replacement.
        num_images: drawn over the whole run.
    """

    tail: CrowdTail
    resampled: tuple[CrowdTail, ...]
    num_images: int

    @classmethod
    def of_data(cls, workload: Workload, counts: Int64, num_images: int) -> RunCrowd:
        """Return the crowds of a run.

        Args:
            workload: says what augmentation makes of the images.
            counts: objects in each image of the data set, int64 `[images]`, at least one.
            num_images: drawn over the whole run: epochs times images, >= 1.
        """
        chance = np.random.default_rng(_SEED)

        def tail(some: Int64, draws: int) -> CrowdTail:
            drawn = object_counts(workload, some, draws, chance)
            return CrowdTail(drawn, max(most_objects(workload, some), int(drawn.max())))

        resampled = tuple(
            tail(chance.choice(counts, len(counts)), _RESAMPLE_DRAWS) for _ in range(_NUM_RESAMPLES)
        )
        return cls(tail(counts, _NUM_DRAWS), resampled, num_images)

    def fullest(self, quantile: float = RUN_QUANTILE) -> int:
        """Return the objects in the fullest image of a run, for a share of the runs."""
        return self.tail.fullest(self.num_images, quantile)

    def steps(self, crowd: Crowd, micro_batch_size: int, fullest: int | None = None) -> list[int]:
        """Return the fullest image of batches that each are the fullest so far, ascending.

        Args:
            crowd: of single batches.
            micro_batch_size: images in one.
            fullest: the last of them; None takes the run's.
        """
        last = self.fullest() if fullest is None else fullest
        return [*(n for n in crowd.steps(micro_batch_size)[:-1] if n < last), last]

    def chance(self, tolerated: int | None) -> tuple[float, float, float]:
        """Return the chance that an image holds more than is tolerated, with 5th and 95th centile.

        Args:
            tolerated: objects; None tolerates any number, a negative number none.
        """
        if tolerated is None:
            return 0.0, 0.0, 0.0
        chances = [tail.exceeding_in_run(tolerated, self.num_images) for tail in self.resampled]
        low, high = np.percentile(chances, [5, 95])
        return self.tail.exceeding_in_run(tolerated, self.num_images), float(low), float(high)
