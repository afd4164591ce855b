"""The options of a training run: what is refused, and how they are recorded."""

from dataclasses import replace
from pathlib import Path

import pytest

from memplan.errors import UsageError
from memplan.spec import StepSpec
from memplan.training import TrainOptions
from memplan.training.options import check_image_size, options_from_record


def _options(**changes):
    return TrainOptions(data=Path("data.yaml"), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "--batch 0 is below 1."),
        ({"epochs": -1}, "--epochs -1 is below 0."),
        ({"workers": -2}, "--workers -2 is below 0."),
        ({"accumulate": 0}, "--accumulate 0 is below 1."),
        ({"cos_lr": True, "fixed_lr": True}, "--cos-lr and --fixed-lr exclude each other."),
        ({"accumulate": 2, "effective_batch": 64}, "Give one of them."),
        ({"label_smoothing": 1.5}, "--label-smoothing 1.5 is not in 0 to 1."),
        ({"freeze": (-1,)}, "--freeze -1 has a layer below 0."),
        ({"cache": "tape"}, "--cache tape is not offered."),
        ({"name": "a/b"}, "--name 'a/b' is not a folder's name."),
    ],
)
def test_values_out_of_range_are_refused_by_the_option_as_typed(changes, message):
    """Each message names the option, its value and the way out, in one line."""
    with pytest.raises(UsageError) as caught:
        _options(**changes)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_size_off_the_stride_names_the_nearest():
    """650 is no multiple of 32; 640 is."""
    with pytest.raises(UsageError, match=r"--img 650 .* stride 32\. Nearest: 640\."):
        check_image_size(650, 32)


def test_the_schedule_follows_the_flags():
    """No flag means linear, as officially."""
    assert "linear" == _options().schedule
    assert "cos" == _options(cos_lr=True).schedule
    assert "flat-cos" == _options(flat_cos_lr=True).schedule
    assert "fixed" == _options(fixed_lr=True).schedule


def test_options_survive_their_record():
    """What `as_record` gives as plain values makes the same options again."""
    options = _options(
        freeze=(1, 2), spec=StepSpec(recompute=("model.2",), lean=True), weights=Path("x.pt")
    )

    # Found again from anywhere.
    expected = replace(options, data=options.data.absolute())
    assert expected == options_from_record(options.as_record())


def test_batch_is_of_all_devices_together():
    """The official --batch 64 is 32 on each of two; what does not divide is refused."""
    options = _options(batch=64)

    assert 32 == options.micro_batch_size(2)
    assert 64 == _options(batch=16, batch_per_device=64).micro_batch_size(2)
    with pytest.raises(
        UsageError, match=r"--batch 64 .* 3 devices cannot.*63, or give --batch-per"
    ):
        options.micro_batch_size(3)
    with pytest.raises(UsageError, match="--batch 8 is 2 on each of 4 devices, but --quad"):
        _options(batch=8, quad=True).micro_batch_size(4)


def test_records_of_before_mean_each_device():
    """A checkpoint without `batch_per_device` was of a version in which `batch` was that."""
    record = _options(batch=6).as_record()
    del record["batch_per_device"]

    assert 6 == options_from_record(record).micro_batch_size(4)


@pytest.mark.parametrize(("close", "expected"), [(0, 3), (1, 2), (3, 0), (4, 3)])
def test_mosaics_close_where_the_official_recipe_closes_them(tmp_path, close, expected):
    """In the last N of three epochs; a number above the epochs is never reached."""
    options = TrainOptions(data=tmp_path, epochs=3, close_mosaic=close)

    assert expected == sum(options.augments_fully(epoch) for epoch in range(3))
