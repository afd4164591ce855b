"""`memplan run`: a person's own command on a card that is not there."""

import contextlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_run import SCRIPTS, TRAIN, answer_of, memplan_run, script

from memplan.device.chosen import calibrated_card
from memplan.phantom.launch import environment
from memplan.trace.snapshot import load_content, parsed
from memplan.trace.snapshot_blocks import snapshot_blocks
from memplan.trace.snapshot_replay import check_snapshot


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the answer's page and snapshot are."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def trained(folder):
    """The answer about the training script at batch 16 on an RTX 3090."""
    files = ("--report", str(folder / "run.html"), "--snapshot", str(folder / "run.pickle"))
    code, answer = answer_of("--gpu", "rtx-3090", *files, command=[*TRAIN, "16"])
    assert code == 0
    return answer


def test_the_snapshot_is_of_the_same_run(trained, folder):
    """Its history replays to the answer's peaks, and lines, modules and categories are told."""
    path = folder / "run.pickle"
    content = load_content(path)
    snapshot = parsed(path, content)
    check = check_snapshot(snapshot)

    peaks = trained["peaks"]
    assert "phantom" == snapshot.origin
    assert (0, True) == (check.num_differing_steps, check.is_layout_equal)
    assert peaks["allocated_peak_bytes"] == check.peaks.allocated_peak_bytes
    assert peaks["reserved_peak_bytes"] == check.peaks.reserved_peak_bytes
    lives = snapshot_blocks(snapshot, "run")
    alive = [lives.labels[label] for label in lives.label]
    assert trained["categories_at_peak"].keys() <= {one.band for one in alive}
    assert any(one.module == "1" and "train.py:" in one.line for one in alive)
    assert ("step_2", "backward") in [phase[:2] for phase in lives.phases]
    stacks = [snapshot.trace.asked(at).frames for at in range(len(snapshot.trace))]
    stacks += [block["frames"] for one in content["segments"] for block in one["blocks"]]
    files = {frame["filename"] for stack in stacks for frame in stack}
    assert not [name for name in files if "memplan/recording" in name]


def test_the_page_shows_every_block_of_the_run(trained, folder):
    """Its blocks add up to the allocated peak of the answer, on the card that was named."""
    page = (folder / "run.html").read_text()
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    data = json.loads(found[1])

    change = [0] * (data["n"] + 1)
    blocks = data["blocks"]
    for made, freed, num_bytes in zip(
        blocks["made"], blocks["freed"], blocks["bytes"], strict=True
    ):
        change[made] += num_bytes
        change[freed] -= num_bytes
    peak = trained["peaks"]["allocated_peak_bytes"]
    # The allocator leaves up to 1 MiB uncut in a block, which is in its peak.
    assert 0.95 * peak <= max(itertools.accumulate(change)) <= peak
    assert trained["gpu"]["capacity_bytes"] == data["capacity"]


def test_a_snapshot_is_of_one_run():
    """Looking for the largest batch runs the command many times."""
    done = memplan_run(
        *("--gpu", "t4", "--find-batch", "--batch", "--snapshot", "x.pickle"),
        command=[*TRAIN, "16"],
    )

    assert (2, "") == (done.returncode, done.stdout)
    assert "--snapshot is of one run" in done.stderr


def test_the_answer_has_the_contracts_names(trained):
    """`memplan.run/1` says steps, peaks, categories, growth and host reads, from the phantom."""
    assert trained["schema"] == "memplan.run/1"
    assert trained["origin"] == "phantom"
    assert trained["gpu"]["name"] == "rtx-3090"
    assert trained["stopped"]
    assert trained["steps"] == len(trained["growth"]) >= 9
    assert trained["out_of_memory"] is None
    assert set(trained["host_reads"]) == {"from_host", "by_rule", "lines"}


def test_a_validation_is_seen(trained):
    """The script is not stopped before its first validation."""
    assert trained["num_evaluations"] >= 2


def peaks_alone(*command):
    """Return what a script says of its own peaks, unwatched on the phantom card."""
    card = calibrated_card("rtx-3090")
    alone = subprocess.run(
        command, env=environment(card), capture_output=True, text=True, timeout=300, check=True
    )
    _, allocated, reserved = alone.stdout.split()
    return int(allocated), int(reserved)


def peaks_of(answer):
    peaks = answer["peaks"]
    return peaks["allocated_peak_bytes"], peaks["reserved_peak_bytes"]


def test_watching_changes_no_peak(trained):
    """The script's own peaks are the same bytes when nobody watches it."""
    assert peaks_alone(*TRAIN, "16") == peaks_of(trained)


def test_watching_breaks_no_compiled_graph():
    """`torch.compile` makes one graph of a network whose modules are followed, with its peaks."""
    command = [sys.executable, str(SCRIPTS / "compiled.py")]
    code, answer = answer_of("--gpu", "rtx-3090", "--steps", "4", command=command)

    assert (0, "") == (code, answer["error"] or "")
    assert peaks_alone(*command) == peaks_of(answer)


def test_what_lives_at_the_peak_adds_up(trained):
    """Categories and modules at the peak sum to the allocated peak, none left out."""
    allocated = trained["peaks"]["allocated_peak_bytes"]
    assert sum(trained["categories_at_peak"].values()) == allocated
    assert sum(one["bytes"] for one in trained["modules"]) == allocated


def test_known_categories_have_their_bytes(trained):
    """Parameters, and AdamW's state of twice their size, are found exactly, blocks rounded."""
    sizes = [32 * 3 * 9, 32, 32, 32, 32 * 32 * 9, 32, 320, 10]
    rounded = sum(-(-4 * size // 512) * 512 for size in sizes)
    steps = 512 * len(sizes)
    state = trained["categories_at_peak"]["optimizer_state"]

    assert trained["categories_at_peak"]["parameter"] >= rounded
    assert state in {2 * rounded, 2 * rounded + steps}


def test_the_workspace_of_matrix_products_is_temporary(trained):
    """The 8,519,680 bytes that cuBLAS takes in a linear layer's forward are no activation of it."""
    linear = next(one for one in trained["modules"] if one["path"] == "7")

    assert linear["temporary"] >= 8_519_680
    assert linear.get("activation", 0) < 8_519_680


def test_the_largest_activations_are_named(trained):
    """The convolutions' outputs, 16 x 32 x 64 x 64 floats each, are in their modules."""
    by_path = {one["path"]: one for one in trained["modules"]}
    assert by_path["0"]["activation"] == 16 * 32 * 64 * 64 * 4


def test_device_used_is_reserved_and_what_the_card_holds_beside(trained):
    """Device-used memory is the driver's pages plus the card's context."""
    peaks = trained["peaks"]
    context = calibrated_card("rtx-3090").context_bytes
    assert peaks["device_used_peak_bytes"] == peaks["reserved_peak_bytes"] + context


def test_out_of_memory_is_the_real_error_with_its_line():
    """Where memory runs out the answer has PyTorch's text, the script's line and the module."""
    code, answer = answer_of("--gpu", "rtx-3090", "--capacity", "700MiB", command=[*TRAIN, "256"])
    found = answer["out_of_memory"]

    assert code == 1
    assert found["message"].startswith("CUDA out of memory. Tried to allocate")
    assert "GPU 0 has a total capacity of 700.00 MiB" in found["message"]
    assert Path(found["file"]).name == "train.py"
    assert found["line"] in {28, 30}
    assert found["module"] in {"0", "1", "2", "3", "4", "5"}


def test_the_largest_batch_is_found_and_the_next_fails():
    """`--find-batch` runs the command until one batch runs and the next does not."""
    code, answer = answer_of(
        "--gpu", "rtx-3090", "--capacity", "600MiB", "--steps", "2", "--find-batch", "--batch",
        command=[*TRAIN, "4"],
    )  # fmt: skip
    tried = {one["batch"]: one["runs"] for one in answer["trials"]}

    assert code == 0
    assert tried[answer["largest_batch"]]
    assert not tried[answer["largest_batch"] + 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import subprocess, torch\nsubprocess.check_output(['nvidia-smi'])\n",
            "A phantom card has no nvidia-smi",
        ),
        (
            "import torch\nraise ValueError('no such file')\n",
            "ValueError: no such file (script.py:2)",
        ),
        ("print('hello')\n", "never imported torch"),
        ("import torch\ntorch.ones(3)\n", "never used CUDA"),
        ("import torch, ctypes\ntorch.ones(3).cuda()\nctypes.string_at(0)\n", "killed by SIGSEGV"),
    ],
)
def test_scripts_that_never_train_end_in_one_line(tmp_path, text, words):
    """What fails before CUDA, never uses it, or crashes is said in the last line, exit 1."""
    done = memplan_run("--gpu", "t4", command=script(tmp_path, text))
    last = done.stderr.strip().splitlines()[-1]

    assert done.returncode == 1
    assert last.startswith("Error: ")
    assert words in last


def test_a_second_card_that_is_not_described_is_the_scripts_error(tmp_path):
    """Using cuda:1 where one card is described fails as it would on such a machine."""
    command = script(
        tmp_path, "import torch\ntorch.ones(3).cuda()\ntorch.ones(3, device='cuda:1')\n"
    )
    done = memplan_run("--gpu", "t4", command=command)

    assert done.returncode == 1
    assert done.stdout.startswith("The command fails at script.py:3")
    assert "--devices N" in done.stdout


def test_an_error_that_the_script_catches_is_told(tmp_path):
    """A script that halves its batch after an out-of-memory error runs, and that is said."""
    command = script(
        tmp_path,
        "import torch\n"
        "for size in (64, 4):\n"
        "    try:\n"
        "        x = torch.empty(size << 28, dtype=torch.uint8, device='cuda')\n"
        "        break\n"
        "    except torch.OutOfMemoryError:\n"
        "        pass\n",
    )
    code, answer = answer_of("--gpu", "rtx-3060-12gb", command=command)

    assert code == 0
    assert answer["out_of_memory"]["is_caught"]
    assert answer["out_of_memory"]["line"] == 4
    assert answer["out_of_memory"]["requested_bytes"] == 64 << 28


def test_what_trains_in_a_forked_process_is_watched(tmp_path):
    """The parent that only waits is not what is told of; --read that met nothing is said."""
    command = script(
        tmp_path,
        "import multiprocessing, torch\n"
        "def train():\n"
        "    net = torch.nn.Linear(512, 512).cuda()\n"
        "    optimizer = torch.optim.SGD(net.parameters(), 0.1)\n"
        "    for _ in range(3):\n"
        "        loss = net(torch.ones(4, 512, device='cuda')).sum()\n"
        "        loss.backward()\n"
        "        optimizer.step()\n"
        "        print(loss.item())\n"
        "child = multiprocessing.get_context('fork').Process(target=train)\n"
        "child.start()\n"
        "child.join()\n",
    )
    done = memplan_run("--gpu", "t4", "--read", "script.py:8=1", command=command)

    assert done.returncode == 0
    assert "3 steps watched" in done.stdout
    assert "--read script.py:8 met no read by rule; these were met: script.py:9." in done.stdout
    assert " 0.00" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "rtx-9999"], "Unknown card 'rtx-9999'"),
        (["--gpu", "t4", "--capacity", "100MiB"], "A capacity of 100 MiB"),
        (["--gpu", "t4", "--capacity", "much"], "'much' is not an amount of memory"),
        (["--gpu", "t4", "--report", "pages.txt"], "--report pages.txt: reports are PDF or HTML"),
        (["--gpu", "t4", "--read", "x=1"], "is not FILE:LINE=VALUE"),
        (["--gpu", "t4", "--find-batch", "--size"], "the command has no --size"),
    ],
)
def test_wrong_usage_ends_with_2(options, words):
    """One line says the value and the way out."""
    done = memplan_run(*options, command=[sys.executable, "train.py"])

    assert done.returncode == 2
    assert words in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["ls", "-l"], "does not start Python"),
        (["no-such-program"], "not a program that can be found"),
        ([], "No command to run"),
    ],
)
def test_what_is_not_python_is_refused(command, words):
    """A command that starts no Python is refused before anything runs."""
    done = memplan_run("--gpu", "t4", command=command)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_users_sitecustomize_is_still_run(tmp_path, monkeypatch):
    """The start-up file of the user's own that ours hides runs as ever."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nprint('starting')\nos.environ['OWN_START'] = 'yes'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = script(
        tmp_path,
        "import os, torch\ntorch.ones(3).cuda()\nassert os.environ['OWN_START'] == 'yes'\n",
    )
    assert memplan_run("--gpu", "t4", command=command).returncode == 0


def _sleeper(tmp_path):
    return script(
        tmp_path,
        "import time, torch\n"
        "w = torch.nn.Parameter(torch.ones(1 << 20, device='cuda'))\n"
        "o = torch.optim.SGD([w], 0.1)\n"
        "w.sum().backward()\n"
        "o.step()\n"
        "print('asleep', flush=True)\n"
        "time.sleep(600)\n",
    )


def test_a_script_that_takes_too_long_is_told_of_as_far_as_it_came(tmp_path):
    """At the time-out the peaks so far are the answer, and it says so."""
    code, answer = answer_of("--gpu", "t4", "--timeout", "15", command=_sleeper(tmp_path))

    assert code == 0
    assert answer["timed_out"]
    assert answer["steps"] == 1
    assert answer["peaks"]["allocated_peak_bytes"] >= 2 * 4 << 20


def _running():
    """Yield the command lines of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield path.read_bytes()


def test_nothing_is_left_when_memplan_is_ended(tmp_path):
    """SIGTERM ends the script, too."""
    command = _sleeper(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "memplan", "run", "--gpu", "t4", "--", *command],
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert any("asleep" in line for line in running.stderr)
        running.terminate()
        assert running.wait(timeout=60) == 143

    assert not any(command[1].encode() in arguments for arguments in _running())


@pytest.mark.slow
def test_two_ranks_train_over_nccl_on_two_cards():
    """`torchrun` with two processes trains; each rank is sent what it has itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    code, answer = answer_of(
        "--gpu", "rtx-3090", "--devices", "2", "--timeout", "200",
        command=[*command, str(SCRIPTS / "two_ranks.py")],
    )  # fmt: skip

    assert code == 0
    assert answer["num_processes"] == 2
    assert answer["steps"] == 3
    # A gradient bucket lies beside the gradients' own storage or holds them.
    assert answer["categories_at_peak"]["gradient"] >= 512


def test_peaks_are_those_of_the_whole_run(tmp_path):
    """What the script does with PyTorch's own counters and history hides nothing."""
    command = script(
        tmp_path,
        "import torch\n"
        "net = torch.nn.Linear(64, 64).cuda()\n"
        "rate = torch.optim.SGD(net.parameters(), 0.1)\n"
        "for size in (1 << 20, 2):\n"
        "    torch.cuda.memory._record_memory_history(enabled=None)\n"
        "    net(torch.ones(size, 64).cuda()).sum().backward()\n"
        "    rate.step()\n"
        "    torch.cuda.empty_cache()\n"
        "    torch.cuda.reset_peak_memory_stats()\n",
    )
    done = memplan_run("--gpu", "t4", "--json", command=command)
    answer = json.loads(done.stdout)

    assert 0 == done.returncode, done.stderr
    assert answer["peaks"]["allocated_peak_bytes"] > 512 << 20
    assert sum(answer["categories_at_peak"].values()) > 512 << 20
