"""The chance that a run meets an image too full."""

import numpy as np
import pytest

from memplan.planner.crowd import Crowd
from memplan.planner.risk import CrowdTail, RunCrowd
from memplan.workload import Workload

COUNTS = np.random.default_rng(3).geometric(0.1, 400)


class Mosaic(Workload):
    """A training on mosaics of four images."""

    name = "mosaic"
    image_size = 8

    def build_model(self):
        """Return nothing; no model is asked for here."""

    def make_batch(self, micro_batch_size):
        """Return nothing."""

    def compute_loss(self, model, batch):
        """Return nothing."""

    def draw_object_counts(self, counts, num_draws, generator):
        """Return the objects of four images at once."""
        return generator.choice(counts, (num_draws, 4)).sum(axis=1)


def _simulated(objects, num_images, num_runs=2000):
    """Return the share of simulated runs whose fullest mosaic exceeds a number of objects."""
    chance = np.random.default_rng(7)
    drawn = chance.choice(COUNTS, (num_runs, num_images, 4)).sum(axis=2)
    return np.mean(drawn.max(axis=1) > objects)


@pytest.mark.parametrize("objects", [90, 110, 130])
@pytest.mark.parametrize("num_images", [50, 300])
def test_the_chance_is_that_of_simulated_runs(objects, num_images):
    """Two thousand runs drawn image by image exceed as often as the law of the maximum says."""
    run = RunCrowd.of_data(Mosaic(), COUNTS, num_images)

    assert pytest.approx(_simulated(objects, num_images), abs=0.04) == run.chance(objects)[0]


def test_the_fullest_image_of_a_run_is_exceeded_by_one_in_a_hundred():
    """Simulated runs exceed the 99 % fullest image in 1 % of cases, give or take."""
    run = RunCrowd.of_data(Mosaic(), COUNTS, 200)

    assert _simulated(run.fullest(), 200) == pytest.approx(0.01, abs=0.008)


def test_the_tail_goes_beyond_the_draws():
    """Of an exponential law the extrapolated tail is right to a factor of two, far out."""
    draws = np.random.default_rng(0).exponential(20, 100_000).astype(np.int64)
    tail = CrowdTail(draws, 10_000)
    expected = np.exp(-300 / 20)

    assert 0.4 < tail.exceeding(300) / expected < 2.5
    assert tail.exceeding(100) == pytest.approx(np.exp(-101 / 20), rel=0.2)


def test_no_more_objects_are_met_than_augmentation_can_put_together():
    """Mosaics of images with 3 objects hold 12, and a longer run holds no more."""
    run = RunCrowd.of_data(Mosaic(), np.full(10, 3), 10**9)

    assert 12 == run.fullest()
    assert (0.0, 0.0, 0.0) == run.chance(12)
    assert 1.0 == run.chance(11)[0]


def test_the_interval_holds_the_chance_and_narrows_with_data():
    """Resampling few images says little, resampling many says more."""
    few = RunCrowd.of_data(Mosaic(), COUNTS[:20], 100).chance(100)
    many = RunCrowd.of_data(Mosaic(), np.tile(COUNTS, 20), 100).chance(100)

    assert many[1] <= many[0] <= many[2]
    assert many[2] - many[1] < few[2] - few[1]


def test_longer_runs_are_riskier_and_fuller():
    """The chance and the fullest image never fall with the images drawn."""
    runs = [RunCrowd.of_data(Mosaic(), COUNTS, n) for n in (10, 100, 1000)]

    assert sorted(run.fullest() for run in runs) == [run.fullest() for run in runs]
    assert sorted(run.chance(100)[0] for run in runs) == [run.chance(100)[0] for run in runs]


def test_steps_rise_to_the_fullest_image_of_the_run():
    """The steps of a life end with the run's fullest image and never fall."""
    workload = Mosaic()
    run = RunCrowd.of_data(workload, COUNTS, 100)
    steps = run.steps(Crowd.of_data(workload, COUNTS), 8)

    assert sorted(steps) == steps
    assert run.fullest() == steps[-1]
