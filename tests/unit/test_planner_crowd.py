"""How full the fullest image of a batch is."""

from __future__ import annotations

import numpy as np
import pytest
from memplan_models.yolov9.workload import YoloV9

from memplan.planner.crowd import Crowd


class AsTheyAre:
    """A workload that trains on images as they are."""

    def draw_object_counts(self, counts, num_draws, generator):
        """Return plain draws."""
        return generator.choice(counts, num_draws)


def test_the_fullest_of_a_batch_follows_the_law_of_the_largest():
    """Of images with 0 to 99 objects, the largest of 10 is below m with probability (m/100)^10."""
    crowd = Crowd.of_data(AsTheyAre(), np.arange(100))

    assert crowd.fullest(10, 0.5) == pytest.approx(100 * 0.5**0.1, abs=1)
    assert crowd.fullest(1, 0.5) == pytest.approx(50, abs=1)


def test_larger_batches_and_rarer_ones_are_fuller():
    """The fullest image never holds fewer when more images are drawn."""
    crowd = Crowd.around(20)
    fullest = [crowd.fullest(batch, 0.9) for batch in (1, 4, 16, 64)]

    assert fullest == sorted(fullest)
    assert list(crowd.steps(16)) == sorted(crowd.steps(16))
    assert crowd.mean == pytest.approx(20, abs=0.1)


def test_a_mosaic_holds_the_objects_of_four_images_and_mixup_of_eight():
    """With 3 objects in every image, a training image holds 3, 12 or 24."""
    counts = np.full(50, 3)
    strengths = {"mosaic": 0.5, "mixup": 0.5}
    workload = YoloV9("yolov9-t", hyperparameters=strengths)

    drawn = workload.draw_object_counts(counts, 1000, np.random.default_rng(0))

    assert {3, 12, 24} == set(drawn.tolist())
    assert np.mean(drawn == 3) == pytest.approx(0.5, abs=0.06)


def test_an_empty_data_set_has_no_objects():
    """No images, no objects, no error."""
    assert {0} == set(Crowd.of_data(AsTheyAre(), np.zeros(0, dtype=np.int64)).steps(8))
