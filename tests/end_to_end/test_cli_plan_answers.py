"""`memplan plan` answers what people ask beside the plan: their command, cards, images, edge."""

import json

import pytest
from cli_inside import SMALL, runner
from cli_set import memplan as in_process

from memplan.answers import load_answers

TINY = ("--cfg", "yolov9-t", "--img", 160)
OFFICIAL = "train_dual.py --device 0 --data data.yaml --img 160 --cfg yolov9-t --weights ''"


@pytest.fixture
def memplan(monkeypatch, capsys):
    """The command line in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def tight(tmp_path_factory):
    """A command too large for a card of 1 GiB, asked about in a process of its own."""
    folder = tmp_path_factory.mktemp("fit")
    finished = in_process(
        *("plan", "--gpu", "rtx-3090", "--capacity", "1GiB"),
        *("--fit", f"{OFFICIAL} --batch 64", "--json", "--output", "plan.json"),
        cwd=folder,
    )
    assert (0, "Wrote plan.json\n") == (finished.returncode, finished.stderr)
    return folder, json.loads(finished.stdout)


def test_command_that_does_not_fit_gets_changes_that_do(tight):
    """Each change fits, says its cost, and reads as the command with the change."""
    fit, budget = tight[1]["fit"], tight[1]["budget_bytes"]

    assert not fit["fits"]
    assert (64, 1, 64) == tuple(
        fit[name] for name in ("micro_batch_size", "accumulation_steps", "effective_batch_size")
    )
    assert fit["device_used_peak_bytes"] - budget == fit["over_bytes"] > 0
    assert fit["changes"]
    costs = [one["time_change_fraction"] for one in fit["changes"]]
    assert sorted(costs) == costs
    for one in fit["changes"]:
        used = one["device_used_peak_bytes"]
        assert used <= budget
        assert used - fit["device_used_peak_bytes"] == one["memory_change_bytes"]
        assert "train_dual.py" in one["command"] or "memplan train" in one["command"]
        assert one["runs_official"] == ("train_dual.py" in one["command"])


def test_a_changed_command_fits_when_it_is_asked_again(tight, memplan):
    """What the official script can do about it holds when that very command is asked about."""
    fit = tight[1]["fit"]
    change = next(one for one in fit["changes"] if one["runs_official"])
    again = memplan(
        "plan", "--gpu", "rtx-3090", "--capacity", "1GiB", "--fit", change["command"], "--json"
    ).json["fit"]

    assert again["fits"]
    assert change["micro_batch_size"] == again["micro_batch_size"]
    assert change["device_used_peak_bytes"] == again["device_used_peak_bytes"]


def test_saved_answers_come_back(tight):
    """A plan with its further answers is read back as it was printed; so is one without."""
    folder, printed = tight
    (again,) = load_answers(folder / "plan.json")
    older = {
        name: value
        for name, value in printed.items()
        if name not in {"edge", "fit", "cards", "largest_image", "second_card"}
    }
    (folder / "older.json").write_text(json.dumps(older))

    assert printed == json.loads(json.dumps(again.to_json()))
    assert None is load_answers(folder / "older.json")[0].edge


def test_a_probe_agrees_with_the_command_as_typed(tight, memplan):
    """The peak said of the command is that of a probe of the same settings."""
    probe = memplan("probe", *TINY, "--gpu", "rtx-3090", "--batch", 64, "--json").json

    assert tight[1]["fit"]["device_used_peak_bytes"] == pytest.approx(
        probe["batches"][0]["device_used_peak_bytes"], rel=0.02
    )


def test_text_says_whether_the_command_fits(memplan):
    """The verdict comes first, then the plan, then how near the edge it is."""
    finished = memplan("plan", "--gpu", "rtx-3090", "--fit", f"{OFFICIAL} --batch 8")
    lines = finished.out.splitlines()

    assert (0, "") == (finished.code, finished.err)
    assert lines[0].startswith("Your command fits rtx-3090 as it is.")
    assert "8 images at once x 8 = 64 a step" in lines[1]
    assert any(line.startswith("How near the edge (predicted): ") for line in lines)
    assert any(line.startswith("  Objects: the plan reckons with ") for line in lines)
    assert any(line.startswith("  --multi-scale, up to ") for line in lines)


def test_cards_images_and_a_second_card_are_sections(memplan):
    """Each that is asked for is told, with figures in JSON."""
    asked = ("plan", *SMALL, "--gpu", "t4", "--effective-batch", 8, "--recompute", "none")
    options = ("--cards", "--price", "t4=200", "--largest-image", "--second-card")
    finished = memplan(*asked, *options)
    found = memplan(*asked, *options, "--json").json

    assert "Cards (predicted, uncalibrated): smallest that fits " in finished.out
    assert "A second t4 makes it " in finished.out
    assert "Largest image: " in finished.out
    assert "t4" == found["cards"]["best_value"]
    assert found["largest_image"][-1]["img"] >= 64
    assert 8 == found["second_card"]["effective_batch_size"]


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (("--fit", "train.py --cfg yolov9-t --batch 4", "--cfg", "yolov9-t"), "leave it out"),
        (("--price", "t4=3"), "--cards"),
        (("--cards", "--gpu", "h200"), "one --gpu"),
        (("--second-card", "--devices", 2), "Leave it out"),
        (("--second-card", "--effective-batch", 7), "--effective-batch 8"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(memplan, options, way_out):
    """In one line, before any work."""
    finished = memplan("plan", *(() if "--fit" in options else SMALL), "--gpu", "t4", *options)

    assert (2, "") == (finished.code, finished.out)
    assert way_out in finished.err
    assert 1 == len(finished.err.splitlines())
