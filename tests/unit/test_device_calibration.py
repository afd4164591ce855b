"""A calibration is a file of measured figures that replaces a card's published ones."""

import json
from dataclasses import replace

import pytest

from memplan.device import calibration as calibrations
from memplan.device.calibration import Calibration, calibration_of, load
from memplan.device.card import Rates
from memplan.device.catalogue import card
from memplan.errors import BadInputError, BadTapeError
from memplan.files.structures import unsealed

VERSIONS = {"torch": "2.11.0", "cudnn": "9.19.0", "cuda": "13.0"}


def measured(**changes):
    """Return a calibration of an RTX 3090."""
    values = {
        "card": "rtx-3090",
        "device_name": "NVIDIA GeForce RTX 3090",
        "capacity_bytes": 25_000_000_000,
        "driver": "580.1",
        "versions": VERSIONS,
        "context_bytes": 400_000_000,
        "context_uncertainty_bytes": 1_000_000,
        "context_bytes_by_phase": {"initialized": 300_000_000},
        "library_handle_bytes": {"cublas": 10},
        "arithmetic_fraction": {"amp-fp16": 0.4, "fp32": 0.6},
        "bandwidth_fraction": 0.7,
        "launch_seconds": 4e-6,
        "measured_on": "2026-11-24",
    }
    return Calibration(**(values | changes))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Calibrations are kept in a folder of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_a_calibration_reads_back_as_it_was_written(home):
    """Every field survives the file, whose schema stands first."""
    path = home / "new" / "rtx-3090.json"
    measured().save(path)

    assert measured() == load(path)
    assert "memplan.calibration/1" == next(iter(json.loads(path.read_text()).values()))


def test_context_and_rates_replace_the_catalogue_s():
    """The card keeps its capacity and says where its context and rates are from."""
    before = card("rtx-3090")
    after = measured().applied_to(before)

    assert (400_000_000, 1_000_000) == (after.context_bytes, after.context_uncertainty_bytes)
    assert before.capacity_bytes == after.capacity_bytes
    assert "measured on 2026-11-24 (torch 2.11.0, cudnn 9.19.0; calibration)" in after.source
    assert (0.4, 0.6, 0.7, 4e-6) == (
        after.rates.arithmetic_fraction("amp-fp16"),
        after.rates.arithmetic_fraction("fp32"),
        after.rates.bandwidth_fraction,
        after.rates.launch_seconds,
    )
    assert after.rates.is_measured


def test_a_precision_that_was_not_measured_keeps_the_assumed_rate():
    """A card without bfloat16 has no such measurement."""
    assert Rates().bf16_fraction == measured().rates.arithmetic_fraction("amp-bf16")


def test_what_is_kept_of_a_card_is_found_by_its_name():
    """A card without a file has none, and a named file is taken instead of the kept one."""
    measured().save(calibrations.path_of("rtx-3090"))
    own = calibrations.folder() / "own.json"
    other = replace(measured(), context_bytes=7)
    other.save(own)

    assert measured() == calibration_of(card("rtx-3090"))
    assert other == calibration_of(card("rtx-3090"), own)
    assert calibration_of(card("t4")) is None


def test_a_relative_data_home_counts_as_unset(home, monkeypatch):
    """As the specification of base directories has it."""
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(home))

    assert home / ".local/share/memplan/calibrations" == calibrations.folder()


def test_another_card_s_file_is_refused(home):
    """The message names both cards and the way out."""
    path = home / "file.json"
    measured().save(path)

    with pytest.raises(BadInputError, match=r"measured on rtx-3090 .* not on t4. Give --gpu rtx"):
        calibration_of(card("t4"), path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no JSON"),
        ("[]", "schema None"),
        ('{"schema": "memplan.calibration/2"}', "schema 'memplan.calibration/2'"),
        ('{"schema": "memplan.calibration/1"}', "damaged: .*missing required field"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_line(home, text, reason):
    """No JSON, another schema, or fields that are missing."""
    path = home / "file.json"
    path.write_text(text)

    with pytest.raises(BadTapeError, match=reason) as caught:
        load(path)
    assert 1 == len(str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bandwidth_fraction", 1.5),
        ("bandwidth_fraction", "fast"),
        ("launch_seconds", 0),
        ("context_bytes", -1),
        ("context_bytes", 1.5),
        ("arithmetic_fraction", {"amp-fp16": 0}),
        ("arithmetic_fraction", {"int8": 0.5}),
        ("context_bytes_by_phase", [1]),
        ("surplus", 1),
    ],
)
def test_figures_that_no_card_has_are_refused(home, field, value):
    """A damaged number is not planned with."""
    path = home / "file.json"
    measured().save(path)
    path.write_text(json.dumps(unsealed(json.loads(path.read_text())) | {field: value}))

    with pytest.raises(BadTapeError, match="is damaged"):
        load(path)


def test_a_missing_file_says_how_to_write_one(home):
    """The way out is the command that measures."""
    with pytest.raises(BadTapeError, match="gpus --calibrate 0"):
        load(home / "none.json")


def test_other_libraries_are_warned_of_and_equal_ones_are_not():
    """PyTorch and cuDNN decide; another CUDA alone says nothing."""
    now = VERSIONS | {"torch": "2.12.0", "cuda": "13.1"}

    assert () == measured().warnings(VERSIONS)
    (line,) = measured().warnings(now)
    assert "under torch 2.11.0, and 2.12.0 is installed" in line
