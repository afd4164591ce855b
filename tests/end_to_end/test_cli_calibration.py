"""A calibration changes what probe, plan and gpus say of its card, and a wrong one is refused."""

import json
from dataclasses import replace

import pytest
from cli_inside import SMALL, runner

from memplan.advise import versions
from memplan.device import calibration as calibrations
from memplan.device import catalogue, nvml
from memplan.device.calibration import Calibration

no_card = pytest.mark.skipif(bool(nvml.present()), reason="this machine has a card")


@pytest.fixture
def memplan(monkeypatch, capsys, tmp_path):
    """The command line in this process, with calibrations of its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return runner(monkeypatch, capsys)


@pytest.fixture
def measured():
    """An RTX 3090 with a larger context than the catalogue's, half as fast as is assumed."""
    card = catalogue.card("rtx-3090")
    return Calibration(
        card="rtx-3090",
        device_name="NVIDIA GeForce RTX 3090",
        capacity_bytes=card.capacity_bytes,
        driver="580.1",
        versions=versions(),
        context_bytes=card.context_bytes + 10**8,
        arithmetic_fraction={"amp-fp16": 0.25},
        bandwidth_fraction=0.425,
        launch_seconds=1e-5,
        measured_on="2026-11-24",
    )


def probe(memplan, *more):
    """Return the command's end for a small network on an RTX 3090."""
    return memplan("probe", *SMALL, "--batch", "2", "--gpu", "rtx-3090", *more)


def test_a_kept_calibration_changes_a_probe_s_context(memplan, measured):
    """Device-used grows by the context's difference, and the source says where it is from."""
    before = probe(memplan, "--json").json
    measured.save(calibrations.path_of("rtx-3090"))
    finished = probe(memplan, "--json")
    after = finished.json

    assert "" == finished.err
    assert before["gpu"]["context_bytes"] + 10**8 == after["gpu"]["context_bytes"]
    assert (False, True) == (before["gpu"]["calibrated"], after["gpu"]["calibrated"])
    assert 0 == after["gpu"]["context_uncertainty_bytes"]
    assert "measured on 2026-11-24" in after["gpu"]["source"]
    used = [answer["batches"][0]["device_used_peak_bytes"] for answer in (before, after)]
    assert 10**8 == used[1] - used[0]
    assert "(predicted, calibrated)" in probe(memplan).out


def test_a_named_calibration_changes_a_plan_s_images_per_second(memplan, measured, tmp_path):
    """Half the rates and twice the launch are half the images a second."""
    file = tmp_path / "mine.json"
    measured.save(file)
    line = ("plan", *SMALL, "--gpu", "rtx-3090", "--effective-batch", "2", "--json",
            "--memory-format", "contiguous", "--recompute", "none")  # fmt: skip
    before = memplan(*line).json["predicted"]["images_per_second"]
    after = memplan(*line, "--calibration", file).json["predicted"]["images_per_second"]

    assert pytest.approx(before / 2) == after


def test_several_cards_take_the_file_that_is_theirs(memplan, measured, tmp_path):
    """A file of one of the cards asked about leaves the others as they were."""
    file = tmp_path / "mine.json"
    measured.save(file)
    answers = probe(memplan, "--gpu", "t4", "--calibration", file, "--json").json

    assert [True, False] == [answer["gpu"]["calibrated"] for answer in answers]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "measured on rtx-3090 (NVIDIA GeForce RTX 3090), not on t4"),
        ("{}", "has schema None"),
        ("{", "it is no JSON"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(memplan, measured, tmp_path, content, reason):
    """Another card's, another schema's, and a damaged file end with exit code 1."""
    file = tmp_path / "file.json"
    measured.save(file)
    if content is not None:
        file.write_text(content)
    finished = memplan("probe", *SMALL, "--gpu", "t4", "--calibration", file)

    assert (1, "") == (finished.code, finished.out)
    assert reason in finished.err
    assert 1 == len(finished.err.splitlines())


def test_other_libraries_are_a_warning_on_standard_error(memplan, measured):
    """The answer is given all the same."""
    old = replace(measured, versions={"torch": "2.0.0", "cudnn": versions()["cudnn"]})
    old.save(calibrations.path_of("rtx-3090"))
    finished = probe(memplan, "--json")

    assert 0 == finished.code
    assert finished.err.startswith("Warning: rtx-3090 was calibrated under torch 2.0.0, and ")
    assert 1 == len(finished.err.splitlines())


def test_gpus_lists_calibrated_cards_and_warns_of_damaged_files(memplan, measured):
    """What is kept is shown with its day, in text and JSON."""
    assert "Calibrated" not in memplan("gpus").out
    measured.save(calibrations.path_of("rtx-3090"))
    calibrations.path_of("t4").write_text("{")
    finished = memplan("gpus")

    row = next(line for line in finished.out.splitlines() if "2026-11-24" in line)
    assert row.startswith("rtx-3090")
    assert finished.err.startswith("Warning: ")
    assert "t4.json cannot be read as a calibration" in finished.err
    found = memplan("gpus", "--json").json["calibrations"]
    assert ["rtx-3090"] == list(found)
    assert measured.context_bytes == found["rtx-3090"]["context_bytes"]


@no_card
def test_calibrating_without_a_card_is_an_error(memplan):
    """Exit code 1, one line, and nothing is written."""
    finished = memplan("gpus", "--calibrate", "0")

    assert (1, "") == (finished.code, finished.out)
    assert finished.err.startswith("Error: No NVIDIA card is present, so --calibrate 0 names none.")
    assert not calibrations.folder().exists()


def test_training_takes_a_calibration_only_to_plan(memplan, tmp_path):
    """Without --auto-batch it would be ignored, so it is refused."""
    finished = memplan("train", "--cfg", "yolov9-t", "--data", tmp_path / "d.yaml",
                       "--calibration", tmp_path / "c.json")  # fmt: skip

    assert 2 == finished.code
    assert "--calibration is for planning. Add --auto-batch" in finished.err


def test_a_calibration_is_the_file_that_was_described(memplan, measured, tmp_path):
    """Other programs read it: names, units and schema are a contract."""
    del memplan
    file = tmp_path / "mine.json"
    measured.save(file)

    assert {
        "checksum", "schema", "card", "device_name", "capacity_bytes", "driver", "versions",
        "context_bytes",
        "context_uncertainty_bytes", "context_bytes_by_phase", "library_handle_bytes",
        "arithmetic_fraction", "bandwidth_fraction", "launch_seconds", "measured_on",
        "num_measurements", "median_error_fraction", "origin",
    } == set(json.loads(file.read_text()))  # fmt: skip
