"""`memplan probe` answers on standard output, in JSON, in files, and refuses in one line."""

import json
import re
import shlex

import pytest
from cli_inside import SMALL, memory_values, runner
from cli_set import memplan as in_process
from cli_set import write_set

from memplan.answers import load_answers

FIELDS = {
    "workload": {
        *("name", "img", "precision", "memory_format", "optimizer", "recompute"),
        *("parameters", "devices"),
    },
    "gpu": {"name", "capacity_bytes", "context_bytes", "source"},
    "fit": {
        *("base_bytes", "bytes_per_image", "max_residual_bytes", "recorded_batches", "origin"),
    },
}
ROW = {
    *("micro_batch_size", "allocated_peak_bytes", "reserved_peak_bytes"),
    *("device_used_peak_bytes", "peak_phase", "fits", "origin"),
}
CATEGORIES = [
    *("parameter", "optimizer_state", "gradient", "input", "activation"),
    *("workspace", "temporary", "cached", "context"),
]
MODULE = {
    *("path", "type", "output_shape", "activation_bytes", "workspace_bytes", "forward_flops"),
}


@pytest.fixture
def memplan(monkeypatch, capsys):
    """The command line in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A probe of two cards, its tape and its report, made in a process of its own."""
    folder = tmp_path_factory.mktemp("probe")
    finished = in_process(
        *("probe", *SMALL, "--batch", "1:8", "--gpu", "rtx-3090", "--gpu", "t4", "--json"),
        *("--output", "probe.json", "--tape", "step.tape", "--report", "probe.pdf"),
        "--no-what-if",  # a unit test asks on a model that is recorded sooner
        cwd=folder,
    )
    assert (0, "") == (finished.returncode, finished.stderr if finished.returncode else "")
    return folder, finished


def test_several_cards_give_a_list_with_the_promised_fields(saved):
    """JSON holds a record a card, with every field of the contract."""
    answers = json.loads(saved[1].stdout)

    assert ["rtx-3090", "t4"] == [answer["gpu"]["name"] for answer in answers]
    for answer in answers:
        assert "memplan.probe/1" == answer["schema"]
        for field, inner in FIELDS.items():
            assert inner <= set(answer[field]), field
        assert list(range(1, 9)) == [row["micro_batch_size"] for row in answer["batches"]]
        assert all(set(row) >= ROW for row in answer["batches"])
        assert sorted(CATEGORIES) == sorted(answer["categories_at_peak"])
        assert all(set(module) == MODULE for module in answer["modules"])
        assert {"memplan", "torch", "cudnn"} <= set(answer["versions"])
        assert answer["seconds"] > 0
        assert [] == answer["what_if"]


def test_memory_is_integers_and_predictions_say_so(saved):
    """Every field of bytes is an int of at least 0, every prediction has its origin."""
    for answer in json.loads(saved[1].stdout):
        values = list(memory_values(answer))
        assert len(values) > 30
        assert [] == [pair for pair in values if type(pair[1]) is not int or pair[1] < 0]
        assert all(type(value) is int for value in answer["categories_at_peak"].values())
        spoken = [*answer["batches"], *answer["edge"], answer["fit"], answer["timeline"]]
        spoken.append(answer["recommended"]["predicted"])
        assert {"predicted"} == {part["origin"] for part in spoken}


def test_peaks_are_ordered_and_grow_with_the_batch(saved):
    """Allocated <= reserved < device-used on every row, and no image makes it less."""
    for answer in json.loads(saved[1].stdout):
        rows = answer["batches"]
        for row in rows:
            assert row["allocated_peak_bytes"] <= row["reserved_peak_bytes"]
            used = row["reserved_peak_bytes"] + answer["gpu"]["context_bytes"]
            assert used == row["device_used_peak_bytes"]
        allocated = [row["allocated_peak_bytes"] for row in rows]
        assert sorted(allocated) == allocated


def test_largest_batch_fits_and_one_more_does_not(saved):
    """The edge is the largest micro-batch that fits and the next one."""
    for answer in json.loads(saved[1].stdout):
        largest, (last, over) = answer["largest_batch"], answer["edge"]
        assert (largest, largest + 1) == (last["micro_batch_size"], over["micro_batch_size"])
        assert (True, False) == (last["fits"], over["fits"])
        assert last["device_used_peak_bytes"] <= answer["gpu"]["capacity_bytes"]
        assert over["device_used_peak_bytes"] > answer["gpu"]["capacity_bytes"]


def test_saved_files_come_back_as_they_were(saved):
    """`--output` holds what `--json` printed; progress and paths go to standard error."""
    folder, finished = saved

    again = [json.loads(json.dumps(a.to_json())) for a in load_answers(folder / "probe.json")]

    assert json.loads(finished.stdout) == again
    kept = json.loads((folder / "probe.json").read_text())
    assert [{k: v for k, v in one.items() if k != "checksum"} for one in kept] == again
    assert [
        "Wrote probe.json",
        "Wrote step.tape",
        "Next: memplan replay step.tape --gpu rtx-3090",
        "Wrote probe.pdf",
    ] == finished.stderr.splitlines()
    assert b"%PDF" == (folder / "probe.pdf").read_bytes()[:4]


def test_command_is_kept_as_typed(saved):
    """The record names the command that gave it."""
    words = shlex.split(json.loads(saved[1].stdout)[0]["command"])

    assert ["memplan", "probe", *SMALL] == words[: 2 + len(SMALL)]


def test_one_card_gives_one_record_and_a_range_equals_single_batches(memplan, saved):
    """Batch 4 asked for alone answers as batch 4 of a range, on a card of its own too."""
    of_range = json.loads(saved[1].stdout)[1]

    alone = memplan("probe", *SMALL, "--batch", 4, "--gpu", "t4", "--json").json

    assert of_range["batches"][3] == alone["batches"][0]
    assert of_range["largest_batch"] == alone["largest_batch"]
    assert alone["fit"]["base_bytes"] > 0


def test_text_answers_first_and_is_plain(memplan):
    """The first line is the answer; nothing but printable characters is piped."""
    finished = memplan("probe", *SMALL, "--batch", "2", "--batch", "3", "--gpu", "t4")

    first = finished.out.splitlines()[0]
    assert re.fullmatch(
        r"torchvision:resnet18, 64 px, amp-fp16, contiguous: the largest micro-batch that fits "
        r"t4 \(14\.\d GiB\) is \d+ \(predicted\)\.",
        first,
    )
    assert "Device-used GiB" in finished.out
    assert "" == finished.err
    assert finished.out.replace("\n", "").isprintable()


def test_capacity_makes_another_largest_batch(memplan):
    """More memory takes more images; --capacity is what the record states."""
    largest = {}
    for capacity in ("2GiB", "4GiB"):
        answer = memplan(
            "probe", *SMALL, "--batch", 2, "--gpu", "rtx-3090", "--capacity", capacity, "--json"
        ).json
        assert int(capacity[0]) << 30 == answer["gpu"]["capacity_bytes"]
        largest[capacity] = answer["largest_batch"]

    assert 0 < 2 * largest["2GiB"] < largest["4GiB"]


def test_nothing_fits_a_capacity_that_is_too_small(memplan):
    """A largest batch of 0 is said in words and is no failure."""
    finished = memplan("probe", *SMALL, "--batch", 1, "--gpu", "t4", "--capacity", "200MiB")

    assert 0 == finished.code
    assert "not even one image fits t4 (200 MiB) (predicted)." in finished.out.splitlines()[0]


def probed(memplan, *options):
    """Return the only row and the record of a probe of 64 images on an RTX 3090."""
    answer = memplan("probe", *SMALL, "--batch", 64, "--gpu", "rtx-3090", "--json", *options).json
    return answer["batches"][0], answer


def test_settings_of_the_step_change_memory(memplan):
    """Recompute lowers the peak, channels-last the workspaces, segments that grow the cache."""
    plain, answer = probed(memplan)
    recomputed, of_recompute = probed(memplan, "--recompute", "all")
    turned, of_layout = probed(memplan, "--memory-format", "channels-last")
    growing, _ = probed(memplan, "--allocator", "expandable_segments:True")
    full, _ = probed(memplan, "--precision", "fp32", "--optimizer", "AdamW")

    assert recomputed["allocated_peak_bytes"] < plain["allocated_peak_bytes"]
    assert len(of_recompute["workload"]["recompute"]) > 5
    workspaces = [
        [module["workspace_bytes"] for module in each["modules"]] for each in (answer, of_layout)
    ]
    assert sum(workspaces[0]) != sum(workspaces[1])
    assert turned["reserved_peak_bytes"] <= plain["reserved_peak_bytes"]
    assert growing["reserved_peak_bytes"] < plain["reserved_peak_bytes"]
    assert full["allocated_peak_bytes"] > plain["allocated_peak_bytes"]


def test_cards_that_cudnn_does_not_describe_say_so(memplan):
    """Old cards come with a note on where their workspaces are from."""
    answers = memplan(
        "probe", *SMALL, "--batch", 2, "--gpu", "v100-16gb", "--gpu", "p100", "--json"
    ).json

    for answer in answers:
        assert "cuDNN" in answer["notes"][0]
        # At the largest batch some convolutions may find no room for their first plan.
        assert all("slower plan at this capacity" in note for note in answer["notes"][1:])


def test_data_set_gives_objects_and_classes(memplan, tmp_path):
    """`--data` reads the most crowded image and the classes from the label files."""
    data = write_set(tmp_path, names=[f"class {number}" for number in range(7)])
    crowded = tmp_path / "labels/train/3.txt"
    crowded.write_text("".join(f"{n % 7} 0.5 0.5 0.{n + 1} 0.{n + 1}\n" for n in range(9)))
    small = ("probe", "--cfg", "yolov9-t", "--img", 160, "--batch", 2, "--gpu", "t4", "--json")
    finished = memplan(*small, "--capacity", "1GiB", "--data", data)

    facts = finished.json["workload"]
    assert 9 == facts["objects_per_image"]
    widths = {module["output_shape"][1:2] == [7] for module in finished.json["modules"]}
    assert True in widths  # a class branch
    assert "yolov9-t" == facts["name"]
    assert 10 < finished.json["largest_batch"]


def test_own_factory_is_found_in_the_working_folder(memplan, tmp_path, monkeypatch):
    """`package.module:factory` is imported from where the command runs, with --set's arguments."""
    (tmp_path / "my_training.py").write_text(
        "import torch\n"
        "from memplan.workload import Workload\n"
        "class Toy(Workload):\n"
        "    name = 'toy'\n"
        "    image_size = 8\n"
        "    def __init__(self, width=4):\n"
        "        self.width = width\n"
        "    def build_model(self):\n"
        "        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, self.width))\n"
        "    def make_batch(self, micro_batch_size):\n"
        "        return {'images': torch.zeros(micro_batch_size, 3, 8, 8)}\n"
        "    def compute_loss(self, model, batch):\n"
        "        loss = model(batch['images']).square().sum()\n"
        "        return loss, loss.detach()[None]\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ("probe", "--workload", "my_training:Toy", "--gpu", "t4", "--json", "--batch", "8")

    sizes = {
        width: memplan(*options, "--capacity", "1GiB", "--set", f"width={width}").json["workload"][
            "parameters"
        ]
        for width in (2, 64)
    }

    assert {2: 192 * 2 + 2, 64: 192 * 64 + 64} == sizes
    refused = memplan(*options, "--set", "depth=3")
    assert (2, "") == (refused.code, refused.out)
    assert "takes no 'depth'. It takes: width." in refused.err


REFUSED = [
    (1, ["--gpu", "0"], "--gpu NAME"),
    (1, ["--gpu", "rtx-309"], "'rtx-3090'"),
    (1, ["--gpu", "\N{SUPERSCRIPT TWO}"], "Unknown card"),
    (1, [], "Give --gpu NAME"),
    (2, ["--gpu", "t4", "--batch", "0"], "--batch 0 is below 1"),
    (2, ["--gpu", "t4", "--batch", "5:2"], "Write 2:5"),
    (2, ["--gpu", "t4", "--batch", "\N{SUPERSCRIPT TWO}"], "neither a number"),
    (2, ["--gpu", "t4", "--precision", "fp8"], "amp-fp16, amp-bf16, fp32"),
    (2, ["--gpu", "t4", "--memory-format", "nhwc"], "contiguous, channels-last"),
    (1, ["--gpu", "t4", "--optimizer", "Foo"], "SGD, Adam"),
    (2, ["--gpu", "t4", "--capacity", "junk"], "24GiB"),
    (1, ["--gpu", "t4", "--capacity", "1MiB"], "context"),
    (2, ["--gpu", "t4", "--allocator", "foo:1"], "expandable_segments"),
    (2, ["--gpu", "t4", "--recompute", "no.such.module"], "no module of this model"),
    (2, ["--gpu", "t4", "--set", "num_classes"], "KEY=VALUE"),
    (2, ["--gpu", "t4", "--set", "num_classes=[1"], "YAML"),
    (2, ["--gpu", "t4", "--img", "0"], "--img 0 is below 1"),
    (2, ["--gpu", "t4", "--devices", "0"], "--devices"),
    (1, ["--gpu", "t4", "--set", "num_classes=-3"], "negative dimension"),
    (1, ["--gpu", "t4", "--precision", "amp-bf16"], "amp-fp16 or fp32"),
    (2, ["--gpu", "t4", "--cfg", "yolov9-s"], "Give one"),
    (1, ["--gpu", "t4", "--output", "no/such/folder.json"], "no folder"),
    (1, ["--gpu", "t4", "--output", ".", "--force"], "is a folder"),
]


@pytest.mark.parametrize(("code", "options", "words"), REFUSED)
def test_refusals_are_one_line_with_a_way_out(memplan, code, options, words):
    """What cannot be used ends with its exit code, one line on standard error and no answer."""
    finished = memplan("probe", *SMALL, *options)

    assert (code, "") == (finished.code, finished.out)
    assert words in finished.err
    assert finished.err.splitlines()[-1].startswith("Error: ")
    assert "Usage:" in finished.err or 1 == len(finished.err.splitlines())


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        (["--cfg", "yolov9-x"], "yolov9-"),
        (["--cfg", ""], "Unknown workload ''"),
        (["--workload", "torchvision:resnet19"], "'resnet18'"),
        (["--workload", "memplan.workload:Worklod"], "'Workload'"),
        (["--workload", "no_such_module:x"], "cannot be imported"),
        (["--workload", ":x"], "cannot be imported"),
    ],
)
def test_unknown_workloads_suggest_the_nearest(memplan, option, nearest):
    """A name that does not exist is exit code 1, with the nearest that does."""
    finished = memplan("probe", *option, "--gpu", "t4")

    assert (1, "") == (finished.code, finished.out)
    assert nearest in finished.err


def test_existing_files_are_only_overwritten_with_force(memplan, tmp_path):
    """An existing --output is refused before any work, and --force overwrites it."""
    path = tmp_path / "probe.json"
    path.write_text("mine")
    options = ("probe", *SMALL, "--batch", 1, "--gpu", "t4", "--output", path)

    refused = memplan(*options)
    kept = path.read_text()
    forced = memplan(*options, "--force")

    assert (1, "mine") == (refused.code, kept)
    assert "--force" in refused.err
    assert (0, f"Wrote {path}\n") == (forced.code, forced.err)
    assert "t4" == load_answers(path)[0].gpu.name


def test_one_recording_answers_for_many_cards(memplan):
    """Cards of several generations answer side by side, those with more memory take more."""
    names = ["rtx-3060-12gb", "a100-80gb", "h200"]
    gpus = [word for name in names for word in ("--gpu", name)]

    answers = memplan("probe", *SMALL, "--batch", 2, *gpus, "--json").json

    assert names == [answer["gpu"]["name"] for answer in answers]
    largest = [answer["largest_batch"] for answer in answers]
    assert sorted(set(largest)) == largest


def test_validation_at_a_batch_that_training_has_too(memplan):
    """Where both sizes are one, convolutions coincide; a batch that the answer covers is that."""
    classifier = "--workload torchvision:resnet18 --img 64 --gpu rtx-3090 --val-batch 32"

    finished = memplan("probe", *classifier.split(), "--json")

    assert 0 == finished.code
    assert finished.json
