"""`memplan check` gates continuous integration on saved probes."""

import json

import pytest
from cli_inside import runner
from cli_set import memplan as in_process

import memplan as package
from memplan.answers import save_answers
from memplan.units import format_bytes


def probed(path, **options):
    """Save a probe of ResNet-18 at batches 1 and 64."""
    answer = package.probe("torchvision:resnet18", gpu="t4", batch=[1, 64], **options)
    save_answers(path, [answer], force=False)
    return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Probes of the same network on small and on larger images."""
    path = tmp_path_factory.mktemp("check")
    probed(path / "small.json", img=64)
    probed(path / "large.json", img=96)
    return path


@pytest.fixture
def memplan(monkeypatch, capsys):
    """The command line in this process."""
    return runner(monkeypatch, capsys)


def used_bytes(path, row=-1):
    """Return the device-used peak of a row of a saved probe."""
    return json.loads(path.read_text())["batches"][row]["device_used_peak_bytes"]


def test_budget_is_met_exactly(memplan, folder):
    """A budget of the very peak passes, one byte less fails and names both."""
    path = folder / "small.json"
    peak = used_bytes(path)

    passed = memplan("check", path, "--budget", peak)
    failed = memplan("check", path, "--budget", peak - 1)

    assert (0, f"{path}: ok.\n", "") == (passed.code, passed.out, passed.err)
    assert 1 == failed.code
    assert f"batch 64 needs {format_bytes(peak)} device-used (predicted)" in failed.out
    assert f"Error: {path} failed the check.\n" == failed.err


def test_batch_chooses_the_row(memplan, folder):
    """--batch 1 is checked on its own peak; a batch that was not probed is wrong usage."""
    path = folder / "small.json"
    budget = used_bytes(path, 0)

    assert 0 == memplan("check", path, "--budget", budget, "--batch", 1).code
    assert 1 == memplan("check", path, "--budget", budget).code
    missing = memplan("check", path, "--budget", budget, "--batch", 2)
    assert (2, "") == (missing.code, missing.out)
    assert "Probed: 1" in missing.err


def test_same_probe_has_not_grown(memplan, folder):
    """A probe passes against itself with no tolerance at all."""
    path = folder / "large.json"

    assert 0 == memplan("check", path, "--baseline", path, "--tolerance", 0).code


def test_growth_fails_and_names_the_layers(folder):
    """Larger images outgrow the baseline; the layers that grew most come first."""
    finished = in_process("check", "large.json", "--baseline", "small.json", cwd=folder)

    lines = finished.stdout.splitlines()
    assert (1, "Error: large.json failed the check.\n") == (finished.returncode, finished.stderr)
    assert lines[0].startswith("torchvision:resnet18 on t4: batch 64 grew from ")
    assert lines[0].endswith("against 1.0% allowed.")
    assert lines[1].startswith("Module that grew")
    assert {"bn1", "layer1.0.bn1"} <= {line.split()[0] for line in lines[2:]}
    assert 2 < len(lines) <= 13
    assert lines[-1].startswith(
        "torchvision:resnet18 on t4: not set as in the baseline: img 64 to 96"
    )


def test_tolerance_lets_growth_pass_and_shrinking_always_does(memplan, folder):
    """A wide tolerance passes what grew; what became smaller passes at 0."""
    small, large = folder / "small.json", folder / "large.json"

    assert 0 == memplan("check", large, "--baseline", small, "--tolerance", 10).code
    assert 0 == memplan("check", small, "--baseline", large, "--tolerance", 0).code


@pytest.mark.parametrize("tolerance", ["-0.1", "nan", "inf"])
def test_tolerance_must_be_a_fraction(memplan, folder, tolerance):
    """A tolerance that no growth could be held against is wrong usage."""
    path = folder / "small.json"

    finished = memplan("check", path, "--baseline", path, f"--tolerance={tolerance}")

    assert (2, "") == (finished.code, finished.out)
    assert "--tolerance" in finished.err


def test_baseline_of_another_card_is_refused(memplan, folder, tmp_path):
    """Probes of different cards are not compared."""
    answer = json.loads((folder / "small.json").read_text())
    answer["gpu"]["name"] = "h200"
    del answer["checksum"]  # as the message about an edited file says
    other = tmp_path / "other.json"
    other.write_text(json.dumps(answer))

    finished = memplan("check", folder / "small.json", "--baseline", other)

    assert (1, "") == (finished.code, finished.out)
    assert "has no probe of torchvision:resnet18 on t4" in finished.err


def test_every_probe_of_a_list_is_checked(memplan, folder, tmp_path):
    """A file with several cards fails when one of them does."""
    small, large = (
        json.loads((folder / name).read_text()) for name in ("small.json", "large.json")
    )
    path = tmp_path / "both.json"
    path.write_text(json.dumps([small, large]))
    budget = small["batches"][-1]["device_used_peak_bytes"]

    finished = memplan("check", path, "--budget", budget)

    assert 1 == finished.code
    assert 1 == len(finished.out.splitlines())


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, [], "--budget SIZE or --baseline FILE"),
        (2, ["--budget", "lots"], "24GiB"),
        (1, ["--baseline", "no.json"], "does not exist"),
    ],
)
def test_refusals_name_the_way_out(memplan, folder, code, options, words):
    """What cannot be checked is not said to be ok."""
    finished = memplan("check", folder / "small.json", *options)

    assert (code, "") == (finished.code, finished.out)
    assert words in finished.err
