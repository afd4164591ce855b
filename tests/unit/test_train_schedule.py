"""The rates of a run, held against the figures of the official recipe."""

import pytest

from memplan.training.schedule import (
    Recipe,
    Schedule,
    accumulation_steps,
    learning_rate_factor,
    recipe_of,
)


def _schedule(**changes):
    values = {
        "recipe": Recipe(),
        "kind": "linear",
        "epochs": 100,
        "batches_per_epoch": 5,
        "micro_batch_size": 4,
        "effective_batch_size": 64,
    }
    return Schedule(**(values | changes))


@pytest.mark.parametrize(
    ("kind", "epoch", "expected"),
    [
        ("linear", 25, 0.7525),
        ("linear", 75, 0.2575),
        ("linear", 99, 0.0199),
        ("cos", 25, 0.855018),
        ("cos", 75, 0.154982),
        ("cos", 99, 0.010244),
        ("flat-cos", 25, 1.0),
        ("flat-cos", 75, 0.505),
        ("flat-cos", 99, 0.010977),
        ("fixed", 75, 1.0),
    ],
)
def test_schedules_have_the_official_values(kind, epoch, expected):
    """Each schedule's factor is the one measured on the official code, to six decimals."""
    assert expected == pytest.approx(learning_rate_factor(kind, epoch, 100, 0.01), abs=1e-6)


def test_warm_up_starts_as_officially():
    """Biases fall from 0.1, others rise from 0, momentum rises from 0.8 over 100 iterations."""
    schedule = _schedule()

    rates = [schedule.rates(0, batch) for batch in range(3)]

    assert [0.1, 0.0991, 0.0982] == pytest.approx([r.bias_learning_rate for r in rates])
    assert [0.0, 0.0001, 0.0002] == pytest.approx([r.learning_rate for r in rates])
    assert [0.8, 0.80137, 0.80274] == pytest.approx([r.momentum for r in rates])


def test_warm_up_lasts_three_epochs_but_at_least_100_iterations():
    """Five batches an epoch warm up for 100 iterations, fifty for 150; 0 epochs mean none."""
    assert 100 == _schedule().warmup_iterations
    assert 150 == _schedule(batches_per_epoch=50).warmup_iterations
    assert 0 == _schedule(recipe=Recipe(warmup_epochs=0)).warmup_iterations


def test_accumulation_grows_through_warm_up():
    """The first micro-batch steps alone; at the end of warm-up a step sees 64 images."""
    schedule = _schedule()

    assert 1 == schedule.rates(0, 0).accumulation
    assert 8 == schedule.rates(9, 2).accumulation  # iteration 47 of 100: 1 + 0.47 * 15
    assert 16 == schedule.rates(20, 0).accumulation
    assert 16 == schedule.rates(50, 0).accumulation


def test_the_rate_lags_one_epoch_after_warm_up():
    """Epoch e trains with the factor of e - 1, but where warm-up ends with that of e."""
    schedule = _schedule(batches_per_epoch=40)  # warm-up ends with iteration 120, epoch 3

    assert 0.01 * learning_rate_factor("linear", 3, 100, 0.01) == pytest.approx(
        schedule.rates(3, 7).learning_rate
    )
    assert 0.01 * learning_rate_factor("linear", 3, 100, 0.01) == pytest.approx(
        schedule.rates(4, 7).learning_rate
    )
    assert 0.01 * learning_rate_factor("linear", 98, 100, 0.01) == pytest.approx(
        schedule.rates(99, 0).learning_rate
    )


def test_without_warm_up_the_first_two_epochs_share_the_full_rate():
    """The lag means that epochs 0 and 1 both train with lr0."""
    schedule = _schedule(recipe=Recipe(warmup_epochs=0))

    assert 0.01 == schedule.rates(0, 0).learning_rate == schedule.rates(1, 0).learning_rate
    assert 0.01 > schedule.rates(2, 0).learning_rate


def test_accumulation_is_the_nearest_and_at_least_one():
    """64 images are 4 micro-batches of 16, 3 of 24, and 1 of 128."""
    assert [4, 3, 1] == [accumulation_steps(64, size) for size in (16, 24, 128)]


def test_recipe_takes_what_is_its_own():
    """Augmentation strengths among the hyperparameters are left to others."""
    assert Recipe(lr0=0.5) == recipe_of({"lr0": 0.5, "mosaic": 1.0})
