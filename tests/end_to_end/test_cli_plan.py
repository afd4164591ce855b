"""`memplan plan` chooses settings that fit, says what it chose from, and how to run them."""

import json
import shlex

import pytest
from cli_inside import SMALL, memory_values, runner
from cli_set import memplan as in_process
from cli_set import write_set

from memplan.answers import load_answers
from memplan.cli import cli
from memplan.spec import LEVER

SETTING = {
    *("micro_batch_size", "accumulation_steps", "effective_batch_size", "nominal_batch_size"),
    *("precision", "memory_format", "recompute", "allocator", "devices", "predicted", "lean"),
}
ANSWER = SETTING | {
    *("schema", "budget_bytes", "headroom_bytes", "alternatives", "command", "gpu", "versions"),
    *("seconds", "workload", "notes", "other_ranks", "risk", "safety_source", "phase_peaks"),
    *("block_savings", "share_fraction", "feasible", "taken_bytes", "batch", "input_pipeline"),
    *("edge", "fit", "cards", "largest_image", "second_card", "unchecked"),
}
PREDICTED = {
    *("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes", "peak_phase"),
    *("images_per_second", "epoch_seconds", "origin"),
}


@pytest.fixture
def memplan(monkeypatch, capsys):
    """The command line in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A plan for 16 images a step, made in a process of its own, with file and pages."""
    folder = tmp_path_factory.mktemp("plan")
    finished = in_process(
        *("plan", *SMALL, "--gpu", "rtx-3090", "--effective-batch", 16, "--json"),
        *("--output", "plan.json", "--report", "plan.pdf"),
        cwd=folder,
    )
    assert (0, "Wrote plan.json\nWrote plan.pdf\n") == (finished.returncode, finished.stderr)
    return folder, json.loads(finished.stdout)


def test_plan_has_the_promised_fields(saved):
    """JSON has exactly the fields of `memplan.plan/1`, memory in whole bytes, origins said."""
    answer = saved[1]

    assert "memplan.plan/1" == answer["schema"]
    assert ANSWER | set(LEVER) | {"others_batch_size"} == set(answer)
    for setting in (answer, *answer["alternatives"]):
        assert set(setting) >= SETTING
        assert PREDICTED == set(setting["predicted"])
        assert "predicted" == setting["predicted"]["origin"]
    assert all(value is None or type(value) is int for _, value in memory_values(answer))


def test_plan_fits_its_budget_and_gives_the_batch_asked_for(saved):
    """The peak is within the budget, and every alternative gives 16 images a step."""
    answer = saved[1]
    used = answer["predicted"]["device_used_peak_bytes"]

    assert answer["budget_bytes"] - used == answer["headroom_bytes"] >= 0
    assert int(0.95 * answer["gpu"]["capacity_bytes"]) == pytest.approx(answer["budget_bytes"])
    products = {
        setting["micro_batch_size"] * setting["accumulation_steps"] * setting["devices"]
        for setting in (answer, *answer["alternatives"])
    }
    assert {16} == products
    assert None is answer["predicted"]["epoch_seconds"]


def test_alternatives_are_a_pareto_set_that_ends_in_the_choice(saved):
    """Each alternative takes more memory than the one before it, and is faster."""
    alternatives = saved[1]["alternatives"]
    memory = [setting["predicted"]["device_used_peak_bytes"] for setting in alternatives]
    speed = [setting["predicted"]["images_per_second"] for setting in alternatives]

    assert sorted(set(memory)) == memory
    assert sorted(set(speed)) == speed
    assert set(alternatives[-1]) >= SETTING
    assert {name: saved[1][name] for name in alternatives[-1]} == alternatives[-1]


def test_command_is_one_that_train_takes(saved):
    """The line to run parses as `memplan train`, with the plan's values."""
    words = shlex.split(saved[1]["command"])
    train = cli.get_command(None, "train")

    with train.make_context("train", words[2:]) as context:
        given = context.params

    assert ["memplan", "train"] == words[:2]
    assert saved[1]["micro_batch_size"] == int(words[words.index("--batch") + 1])
    assert saved[1]["accumulation_steps"] == int(words[words.index("--accumulate") + 1])
    assert "torchvision:resnet18" == given["workload"]


def test_saved_plan_comes_back(saved):
    """`--output` is read back as it was printed."""
    (again,) = load_answers(saved[0] / "plan.json")

    assert saved[1] == json.loads(json.dumps(again.to_json()))
    assert b"%PDF" == (saved[0] / "plan.pdf").read_bytes()[:4]


def test_text_names_the_choice_and_the_line_to_run(memplan):
    """The answer comes first; what it was chosen from and how to run it follow."""
    finished = memplan(
        *("plan", *SMALL, "--gpu", "t4", "--effective-batch", 4, "--recompute", "none"),
        *("--memory-format", "contiguous"),
    )

    lines = finished.out.splitlines()
    assert (0, "") == (finished.code, finished.err)
    assert lines[0].startswith("torchvision:resnet18, 64 px on t4: 4 images a step, ")
    assert lines[0].endswith(", amp-fp16, contiguous.")
    assert "Less memory, less speed (predicted)" in lines
    assert any(line.startswith("Run it: memplan train --workload") for line in lines)
    assert "channels-last" not in finished.out
    assert finished.out.replace("\n", "").isprintable()


def test_devices_share_the_effective_batch(memplan):
    """Two cards take half of the images each; what they send costs the small step much."""
    options = ("plan", *SMALL, "--gpu", "a100-80gb", "--recompute", "none", "--json")
    options += ("--memory-format", "channels-last")
    one = memplan(*options, "--effective-batch", 4).json
    two = memplan(*options, "--effective-batch", 8, "--devices", 2).json

    assert (8, 2) == (two["effective_batch_size"], two["devices"])
    assert one["micro_batch_size"] == two["micro_batch_size"]
    ratio = two["predicted"]["images_per_second"] / one["predicted"]["images_per_second"]
    assert 1.2 < ratio < 2


def test_several_cards_give_a_list(memplan):
    """Each card named gets a plan of its own."""
    answers = memplan(
        *("plan", *SMALL, "--gpu", "t4", "--gpu", "h200", "--effective-batch", 2, "--json"),
        *("--recompute", "none", "--memory-format", "contiguous"),
    ).json

    assert ["t4", "h200"] == [answer["gpu"]["name"] for answer in answers]


def test_no_feasible_plan_is_exit_code_3(memplan):
    """What does not fit says by how much, and what would help."""
    finished = memplan(
        *("plan", *SMALL, "--gpu", "rtx-3090", "--capacity", "500MiB", "--effective-batch", 2),
        *("--memory-format", "contiguous"),
    )

    assert (3, "") == (finished.code, finished.out)
    assert finished.err.startswith("Error: Nothing fits")
    assert "too much" in finished.err
    assert "Nearest change that fits (predicted): " in finished.err
    assert 1 == len(finished.err.splitlines())


def test_a_card_that_fits_nothing_does_not_fail_the_others(memplan):
    """Each card has an entry; JSON says which are infeasible, why, and what would fit."""
    options = ("plan", *SMALL, "--effective-batch", 2, "--memory-format", "contiguous")
    finished = memplan(*options, "--gpu", "t4", "--gpu", "h200", "--safety", 0.98, "--json")
    small, large = finished.json

    assert [False, True] == [small["feasible"], large["feasible"]]
    assert ("memplan.infeasible/1", "t4") == (small["schema"], small["gpu"]["name"])
    least = small["least"]["predicted"]["device_used_peak_bytes"]
    assert small["over_bytes"] == least - small["budget_bytes"] > 0
    assert small["changes"]
    for change in small["changes"]:
        assert change["device_used_peak_bytes"] <= change["budget_bytes"]


def test_json_of_no_feasible_plan_is_an_answer_with_exit_code_3(memplan):
    """Programs get the refusal as JSON, people as a line on standard error."""
    finished = memplan("plan", *SMALL, "--gpu", "t4", "--capacity", "100MiB", "--json")

    assert 3 == finished.code
    answer = json.loads(finished.out)
    assert (False, None, []) == (answer["feasible"], answer["least"], answer["changes"])
    assert "CUDA context" in finished.err
    assert "Give a larger --capacity" in finished.err


def test_data_set_gives_the_time_of_an_epoch(memplan, tmp_path):
    """`--data` counts the training images, which gives the epoch's duration and the command."""
    data = write_set(tmp_path)
    answer = memplan(
        *("plan", "--cfg", "yolov9-t", "--img", 160, "--gpu", "t4", "--effective-batch", 1),
        *("--recompute", "none", "--memory-format", "channels-last", "--data", data, "--json"),
    ).json

    expected = 8 / answer["predicted"]["images_per_second"]
    assert expected == pytest.approx(answer["predicted"]["epoch_seconds"])
    words = shlex.split(answer["command"])
    assert ["--cfg", "yolov9-t", "--data", str(data), "--img", "160"] == words[2:8]


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, ["--safety", "2"], "--safety 2.0 is not in 0 to 1"),
        (2, ["--safety", "nan"], "is not in 0 to 1"),
        (2, ["--workers", "4"], "Add --data data.yaml, or --worker-rate"),
        (2, ["--workers", "-1"], "--workers -1 is below 0"),
        (2, ["--worker-rate", "9"], "Add --workers N"),
        (2, ["--workers", "1", "--worker-rate", "0"], "is not above 0"),
        (2, ["--effective-batch", "0"], "--effective-batch 0 is below 1"),
        (2, ["--effective-batch", "3", "--devices", "2"], "Nearest: 4"),
        (2, ["--recompute", "no.such"], "no module of this model"),
        (1, ["--precision", "amp-bf16"], "amp-fp16 or fp32"),
        (1, ["--set", "num_classes=-3"], "cannot be built"),
        (2, ["--precision", "fp8"], "amp-bf16"),
        (2, ["--batch", "3"], "No such option"),
    ],
)
def test_refusals_name_the_value_and_the_way_out(memplan, code, options, words):
    """What cannot be planned ends with its exit code and no answer."""
    finished = memplan("plan", *SMALL, "--gpu", "t4", *options)

    assert (code, "") == (finished.code, finished.out)
    assert words in finished.err
