"""How many objects a training batch carries: what the assigner's memory depends on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from memplan.errors import UsageError

_IMAGES_IN_MOSAIC = 4


def max_objects_quantile(
    objects_per_image: npt.NDArray[np.int64],
    micro_batch_size: int,
    mosaic: float,
    mixup: float,
    quantile: float,
) -> int:
    """Return the objects of a batch's fullest sample that this share of batches stays within.

    A sample is one image, or with probability `mosaic` four images, or then with probability
    `mixup` eight, each drawn from the data set. The distribution is computed, not drawn: histograms
    are convolved, and the largest of a batch has the distribution function to the power of the
    batch size.

    Args:
        objects_per_image: objects in each training image, `[n]`, n >= 1.
        micro_batch_size: samples in a batch, >= 1.
        mosaic: probability, 0 to 1.
        mixup: probability given a mosaic, 0 to 1.
        quantile: share of batches, above 0, at most 1; 1 gives the most there can be.

    Limits:
        Objects that the affine map cuts away are counted, and images are drawn as if with
        replacement, so real batches hold fewer objects, never more at quantile 1.

    Raises:
        UsageError: a probability or the batch size is out of range.
    """
    if micro_batch_size < 1:
        raise UsageError(f"micro_batch_size {micro_batch_size} is below 1.")
    if not (0 <= mosaic <= 1 and 0 <= mixup <= 1 and 0 < quantile <= 1):
        raise UsageError(
            f"mosaic {mosaic}, mixup {mixup} and quantile {quantile} must be 0 to 1, "
            "and quantile not 0."
        )
    sample = sample_distribution(objects_per_image, mosaic, mixup)
    possible = np.flatnonzero(sample)
    if quantile == 1:
        return int(possible[-1])
    within = np.cumsum(sample[possible]) ** micro_batch_size
    # Rounding must not make the last possible number look too small.
    position = min(int(np.searchsorted(within, quantile - 1e-12)), len(possible) - 1)
    return int(possible[position])


def sample_distribution(
    objects_per_image: npt.NDArray[np.int64], mosaic: float, mixup: float
) -> npt.NDArray[np.float64]:
    """Return the probability of each number of objects in a training sample, from 0 up.

    Args:
        objects_per_image: objects in each training image, `[n]`, n >= 1.
        mosaic: probability of four images, 0 to 1.
        mixup: probability of eight given a mosaic, 0 to 1.
    """
    counts = np.bincount(objects_per_image)
    one = counts / counts.sum()
    four = _sum_of(one, _IMAGES_IN_MOSAIC)
    eight = np.convolve(four, four)
    sample = np.zeros(len(eight))
    for distribution, share in (
        (one, 1 - mosaic),
        (four, mosaic * (1 - mixup)),
        (eight, mosaic * mixup),
    ):
        sample[: len(distribution)] += share * distribution
    return sample


def _sum_of(distribution: npt.NDArray[np.float64], times: int) -> npt.NDArray[np.float64]:
    total = np.ones(1)
    for _ in range(times):
        total = np.convolve(total, distribution)
    return total
