"""What loading limits training to is stated, given or measured."""

from dataclasses import dataclass

import pytest
import torch

from memplan.advise.input_pipeline import input_pipeline
from memplan.errors import UsageError


@dataclass
class Data:
    """Images that take a tenth of a second each on the clock they share."""

    num_training_images: int
    clock: list

    def training_batches(self, *, micro_batch_size, augment_fully, **_):
        """Return the epoch's batches."""
        assert augment_fully
        for start in range(0, self.num_training_images, micro_batch_size):
            count = min(micro_batch_size, self.num_training_images - start)
            self.clock[0] += 0.1 * count
            yield {"images": torch.zeros(count, 1)}


@dataclass
class Loads:
    """A workload as far as loading asks."""

    data: Data
    image_size: int = 8

    def open_data(self, options):
        """Return the data."""
        assert 8 == options.image_size
        return self.data


@pytest.mark.parametrize("images", [4, 8, 30, 1000])
def test_a_workers_rate_is_measured_on_a_few_batches(tmp_path, images):
    """Ten images a second and worker, whatever the data set's size; the first batch warms up."""
    clock = [0.0]
    found = input_pipeline(Loads(Data(images, clock)), tmp_path, 3, None, lambda: clock[0])

    assert pytest.approx(10.0) == found.images_per_second_per_worker
    assert pytest.approx(30.0) == found.images_per_second
    assert "measured" == found.origin


def test_a_given_rate_is_taken_as_it_is():
    """Nothing is read; no workers load as fast as one."""
    found = input_pipeline(None, None, 0, 25.0)

    assert (25.0, "given") == (found.images_per_second, found.origin)
    assert 100.0 == input_pipeline(None, None, 4, 25.0).images_per_second
    assert None is input_pipeline(None, None, None, None)


@pytest.mark.parametrize(("workers", "rate"), [(None, 3.0), (-1, None), (2, 0.0), (2, None)])
def test_what_says_nothing_is_refused(workers, rate):
    """A rate without workers, fewer than none, a rate of 0, nothing to measure on."""
    with pytest.raises(UsageError):
        input_pipeline(None, None, workers, rate)
