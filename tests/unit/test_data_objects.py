"""Objects in a batch: the exact distribution of the fullest sample."""

import numpy as np
import pytest
from memplan_models.yolo_data.objects import max_objects_quantile, sample_distribution

from memplan.errors import UsageError

COUNTS = np.array([0, 1, 1, 2, 5, 12], np.int64)


@pytest.mark.parametrize(("mosaic", "mixup", "images"), [(0, 1, 1), (1, 0, 4), (1, 0.15, 8)])
def test_the_most_there_can_be_is_every_part_from_the_fullest_image(mosaic, mixup, images):
    """Quantile 1 is the fullest image once, four times in a mosaic, eight with mixup."""
    assert images * 12 == max_objects_quantile(COUNTS, 16, mosaic, mixup, 1.0)


def test_a_single_image_gives_the_data_sets_quantile():
    """Without mosaics and at batch 1 the answer is the quantile of the images themselves."""
    assert 1 == max_objects_quantile(COUNTS, 1, 0.0, 0.0, 0.5)
    assert 5 == max_objects_quantile(COUNTS, 1, 0.0, 0.0, 5 / 6)


def test_the_distribution_sums_to_one():
    """Mosaic and mixup mix three distributions whose shares add to 1."""
    distribution = sample_distribution(COUNTS, 0.7, 0.3)

    assert 1 == pytest.approx(distribution.sum())
    mean = COUNTS.mean() * (0.3 + 0.7 * (0.7 * 4 + 0.3 * 8))
    assert mean == pytest.approx(distribution @ np.arange(len(distribution)))


def test_it_agrees_with_drawn_batches():
    """The computed quantile is that of many batches drawn at random."""
    rng = np.random.default_rng(0)
    batches = 4000
    mosaic = rng.random((batches, 8)) < 0.9
    mixup = rng.random((batches, 8)) < 0.3
    draws = rng.choice(COUNTS, (batches, 8, 8))
    parts = np.where(mosaic, np.where(mixup, 8, 4), 1)
    totals = (draws * (np.arange(8) < parts[..., None])).sum(-1).max(-1)

    for quantile in (0.1, 0.5, 0.9):
        expected = np.quantile(totals, quantile, method="inverted_cdf")
        assert expected == pytest.approx(max_objects_quantile(COUNTS, 8, 0.9, 0.3, quantile), abs=1)


@pytest.mark.parametrize(
    ("batch", "mosaic", "quantile"), [(0, 1, 0.5), (1, 2, 0.5), (1, 1, 0), (1, 1, 1.1)]
)
def test_values_out_of_range_are_refused(batch, mosaic, quantile):
    """A batch below 1 or a probability outside 0 to 1 is wrong usage."""
    with pytest.raises(UsageError):
        max_objects_quantile(COUNTS, batch, mosaic, 0.0, quantile)
