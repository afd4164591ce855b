"""Two processes train together as one with twice the batch, over gloo on CPUs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from train_toy import NUM_IMAGES, Toy, toy_options

from memplan.errors import BadInputError, UsageError
from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint
from memplan.training.distributed import Ranks
from memplan.training.launch import launch
from memplan.training.setup import find_device, prepare
from memplan.workload import dealt

# torch's launcher leaves the logs of its processes to be closed by the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

# What each process runs: a Toy with keyword arguments, trained with options, or resumed.
_PROCESS = """
import json, os, signal, sys
from pathlib import Path
from train_toy import Toy, toy_options
from memplan.errors import MemplanError
from memplan.training import TrainOptions, train

given = json.loads(sys.argv[1])
folder = Path(given["folder"])

calls = 0

class Uneven(Toy):
    def compute_loss(self, model, batch):
        global calls
        calls += 1
        if calls == given.get("ends_at") and os.environ["RANK"] == "1":
            if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0):
                os.kill(os.getpid(), given["signal"])
        # Only the second process is short of memory.
        self.most_images = given.get("most_images") if os.environ["RANK"] == "1" else None
        return super().compute_loss(model, batch)

def on_event(name, facts):
    if name == "saved" and "stop_at" in given and facts.get("images") == given["stop_at"]:
        os.kill(os.getpid(), signal.SIGTERM)

if given.get("resume"):
    options = TrainOptions(data=folder, resume=folder / "runs/toy", device="cpu,cpu")
else:
    options = toy_options(folder, **{"device": "cpu,cpu", **given["options"]})
try:
    train(Uneven(**given.get("workload", {})), options, on_event=on_event)
except MemplanError as error:
    print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr)
    sys.exit(1)
if Path("/proc/self/task").exists():
    names = [(one / "comm").read_text().strip() for one in Path("/proc/self/task").iterdir()]
    (folder / f"threads-{os.environ['RANK']}.json").write_text(json.dumps(names))
"""


def _command(folder, given):
    folder.mkdir(exist_ok=True)
    return [sys.executable, "-c", _PROCESS, json.dumps({"folder": str(folder), **given})]


def _together(folder, **given):
    """Return the exit code of two processes that train in a folder."""
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        return launch(_command(folder, given), 2)


def _environment(**more):
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def _torchrun(folder, *options, **given):
    """Start torchrun with a process that trains in a folder."""
    module = ("-m", "torch.distributed.run", *options, "--no-python")
    return subprocess.Popen(
        [sys.executable, *module, *_command(folder, given)],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _alone(folder, workload=None, **options):
    folder.mkdir()
    return train(workload or Toy(), toy_options(folder, **options)).run_folder


def _last(folder):
    return load_checkpoint(folder / "runs/toy/weights/last.pt")


def _results(folder):
    return pd.read_csv(folder / "runs/toy/results.csv")


def _assert_close(one, other):
    for name, weight in _last(one).model.items():
        torch.testing.assert_close(weight, _last(other).model[name], rtol=1e-5, atol=1e-7)
    for name, weight in (_last(one).ema or {}).items():
        torch.testing.assert_close(weight, _last(other).ema[name], rtol=1e-5, atol=1e-7)
    left, right = (_results(folder).drop(columns=["seconds", "images_per_second"]) for folder in
                   (one, other))  # fmt: skip
    both = ["train/error", "metrics/fitness", "x/lr1", "accumulation_steps", "steps"]
    pd.testing.assert_frame_equal(left[both], right[both], rtol=1e-5)


@pytest.mark.parametrize(
    ("batch", "effective"),
    [(1, 4), (4, 8)],
    ids=["accumulated", "uneven-end"],
)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, batch, effective):
    """Weights, average, losses and rates agree; of ten images the last round is uneven."""
    options = {"effective_batch": effective, "epochs": 3}
    _alone(tmp_path / "a", batch=2 * batch, **options)
    code = _together(tmp_path / "b", options={"batch": 2 * batch, **options})

    assert 0 == code
    _assert_close(tmp_path / "a", tmp_path / "b")
    # A thread of the group that lived on into the interpreter's end would abort the process.
    for rank in range(2 if Path("/proc/self/task").exists() else 0):
        names = json.loads((tmp_path / f"b/threads-{rank}.json").read_text())
        assert names
        assert not [name for name in names if "gloo" in name]


def test_a_rank_without_images_takes_part(tmp_path):
    """With a micro-batch of 9, one image is left for two processes."""
    _alone(tmp_path / "a", batch=9, effective_batch=9)
    code = _together(tmp_path / "b", options={"batch_per_device": 5, "effective_batch": 9})

    assert 0 == code
    assert [1] * 2 == _results(tmp_path / "b")["steps"].tolist()


def test_one_process_that_runs_out_makes_all_repeat_smaller(tmp_path):
    """The second finds no room for 4 images; both go on with 2, and nothing is lost."""
    options = {"effective_batch": 8, "epochs": 2}
    _alone(tmp_path / "a", batch=4, **options)
    code = _together(tmp_path / "b", options={"batch": 8, **options}, most_images=2)

    assert 0 == code
    assert 2 == _last(tmp_path / "b").micro_batch_size
    for name, weight in _last(tmp_path / "a").model.items():
        torch.testing.assert_close(weight, _last(tmp_path / "b").model[name], rtol=1e-5, atol=1e-7)


def test_a_stop_asked_of_one_process_stops_all_and_resumes(tmp_path):
    """Both save where they are, each with its own random states, and end as if never stopped."""
    given = {"workload": {"dropout": 0.3}, "options": {"batch": 2, "effective_batch": 2}}
    given["options"]["save_every"] = 1e-9
    assert 0 == _together(tmp_path / "a", **given)
    assert 1 == _together(tmp_path / "b", **given, stop_at=4)
    stopped = _last(tmp_path / "b")
    # One process refuses what two have saved, and names the way.
    with pytest.raises(BadInputError, match=r"of a run with 2 process.*nproc-per-node 2"):
        train(Toy(), TrainOptions(data=tmp_path, resume=tmp_path / "b/runs/toy", device="cpu"))
    assert 0 == _together(tmp_path / "b", resume=True, workload={"dropout": 0.3})

    assert (2, 1, 6) == (
        stopped.ranks,
        len(stopped.other_random_states),
        stopped.position["images_seen"],
    )
    one, other = _last(tmp_path / "a"), _last(tmp_path / "b")
    for name, weight in one.model.items():
        assert torch.equal(weight, other.model[name]), name
    for left, right in zip(one.other_random_states, other.other_random_states, strict=True):
        assert torch.equal(left["torch"], right["torch"])


def test_batch_norm_over_processes_needs_gpus(tmp_path, capfd):
    """--sync-bn on CPUs is refused in one line; the failing process's message is shown."""
    code = _together(tmp_path / "b", workload={"norm": True}, options={"sync_bn": True})

    assert 1 == code
    assert "--sync-bn needs GPUs" in capfd.readouterr().err


def test_batch_norm_over_one_process_is_warned_of(tmp_path):
    """--sync-bn changes nothing where one process trains, and says so."""
    setup = prepare(Toy(norm=True), toy_options(tmp_path, sync_bn=True))

    assert ("--sync-bn has no effect: one process trains.",) == setup.warnings


def test_ctrl_c_reaches_every_process(tmp_path):
    """SIGTERM to the command that launched them stops both, saved, with exit code 143."""
    given = {"options": {"batch": 2, "effective_batch": 2, "epochs": 100000, "patience": 0}}
    code = "import sys; from memplan.training.launch import launch; "
    code += "sys.exit(launch(sys.argv[1:], 2))"
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *_command(tmp_path / "b", given)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    last = tmp_path / "b/runs/toy/weights/last.pt"
    deadline = time.monotonic() + 60
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)

    assert 143 == process.returncode
    assert "Stopped (SIGTERM)" in text
    assert "Continue with: memplan train --resume" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("num_images", [1, 7, 10, 16])
@pytest.mark.parametrize(("size", "ranks"), [(1, 1), (4, 2), (3, 3), (2, 5)])
def test_images_are_dealt_once_each_round_evenly(num_images, size, ranks):
    """Every image goes to one process, and within a round counts differ by one at most."""
    parts = [dealt(num_images, size, rank, ranks) for rank in range(ranks)]
    rounds = -(-num_images // (size * ranks))

    assert list(range(num_images)) == sorted(i for part in parts for batch in part for i in batch)
    for number in range(rounds):
        counts = [len(part[number]) if number < len(part) else 0 for part in parts]
        assert max(counts) - min(counts) <= 1
        assert max(counts) <= size


def test_a_process_alone_agrees_with_itself():
    """Nothing is exchanged where there is nobody else."""
    ranks = Ranks()
    tensor = torch.ones(2)

    assert [True, False] == ranks.agree([True, False])
    assert tensor is ranks.sum(tensor)
    assert ["x"] == ranks.gather("x")


def test_devices_are_matched_with_processes(monkeypatch):
    """Each of two processes takes its own entry; other numbers are refused with torchrun's line."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")

    assert torch.device("cpu") == find_device("cpu,cpu")
    assert torch.device("cpu") == find_device("cpu")
    with pytest.raises(BadInputError, match="names 3 devices, but 2 process"):
        find_device("0,1,2")
    with pytest.raises(BadInputError, match="is one GPU, but 2 processes"):
        find_device("0")


def test_image_weights_are_of_one_process(monkeypatch, tmp_path):
    """They follow the evaluation, which only rank 0 makes."""
    monkeypatch.setattr("memplan.training.setup.join", lambda *_: Ranks(size=2))
    toy = Toy()
    toy.data_options = frozenset({"image_weights"})
    with pytest.raises(UsageError, match="--image-weights follows the evaluation"):
        prepare(toy, toy_options(tmp_path, image_weights=True))

    assert NUM_IMAGES == Toy().open_data(toy_options(tmp_path)).num_training_images


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """Return what rank 0 found in `rank_checks`, by check, of one start of two processes."""
    folder = tmp_path_factory.mktemp("checks")
    names = ("out_of_memory", "unused", "lean", "notices", "waiting")
    script = str(Path(__file__).parent / "rank_checks.py")
    command = [sys.executable, script, str(folder), *names]
    options = ("--standalone", "--nproc-per-node=2", "--no-python")
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *command],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert 0 == finished.returncode, finished.stderr
    return {name: json.loads((folder / f"{name}-0.json").read_text()) for name in names}


def test_memory_may_run_out_anywhere_in_a_step(findings):
    """Wherever it does on one rank, all repeat the step smaller, and no image is lost."""
    for one in findings["out_of_memory"]["found"]:
        assert [["in another process", 1]] == one["told"], one
        assert NUM_IMAGES == one["images"], one
        assert one["same"], one
        assert one["distance"] < 1e-4, one
    assert 6 == len(findings["out_of_memory"]["found"])


def test_all_ranks_try_the_planned_micro_batch_again(findings):
    """From 1 image back to 2, whose next epoch nobody refuses; the ranks' weights stay equal."""
    assert [True, 2, NUM_IMAGES, 1, True] == findings["out_of_memory"]["again"]


def test_buckets_are_as_predicted(findings):
    """DDP's buckets have the predicted bytes, and gradients live in them between steps."""
    found = findings["out_of_memory"]

    assert found["predicted"] == found["buckets"]
    assert 3 == len(found["buckets"])
    assert found["in_buckets"]


def test_a_parameter_without_gradient_is_looked_for(findings):
    """The step is repeated with unused parameters looked for; the layer's weights stay."""
    found = findings["unused"]

    assert found["finds"]
    assert found["stays"]
    assert found["same"]
    assert found["distance"] < 1e-4


def test_lean_blocks_and_recomputation_live_under_ddp(findings):
    """Gradients are those of one process with the same images, for a plain network and a lean."""
    for name in ("plain", "recompute"):
        assert findings["lean"][name]["done"], name
        assert findings["lean"][name]["distance"] < 1e-5, name


def test_what_another_rank_notices_is_told_and_all_act_on_it(findings):
    """A leak on rank 1: events and words name it, all recompute, and its memory has a file."""
    found = findings["notices"]

    assert ["0", "4"] == found["recompute"]
    assert ([1], 1) == (found["leaks"], found["words"])
    assert ["memory.csv", "memory_rank1.csv"] == found["files"]
    assert found["rows"] >= 3


def test_the_others_wait_while_rank_0_works(findings):
    """Twice the time-out passes, and its value reaches all."""
    assert "done" == findings["waiting"]["value"]
    assert findings["waiting"]["seconds"] >= 4


def test_a_killed_run_is_restarted_where_it_was_saved(tmp_path):
    """One rank is killed: the other says so in one line, and torchrun's restart resumes."""
    options = {"batch": 2, "effective_batch": 2, "epochs": 3, "save_every": 1e-9}
    process = _torchrun(
        tmp_path,
        *("--standalone", "--nproc-per-node=2", "--max-restarts=1"),
        options=options,
        ends_at=8,
        signal=signal.SIGKILL,
    )
    text, _ = process.communicate(timeout=180)

    assert 0 == process.returncode, text
    assert "Resuming after 1 of 3 epochs and 4 of 10 images." in text
    assert ["toy"] == [one.name for one in (tmp_path / "runs").iterdir()]
    assert [1, 2, 3] == _results(tmp_path)["epoch"].tolist()
    assert 1 == text.count("rank 0: Another process of this run is gone")


def test_two_hosts_train_together(tmp_path):
    """Two agents on the loopback address, a process each: one run, as of one host."""
    port = _free_port()
    options = {"batch": 4, "effective_batch": 4, "epochs": 1}
    agents = [
        _torchrun(
            tmp_path,
            *("--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}"),
            *("--master-addr=127.0.0.1", f"--master-port={port}"),
            options={**options, "device": "cpu"},
        )
        for number in range(2)
    ]
    texts = [agent.communicate(timeout=180)[0] for agent in agents]

    assert [0, 0] == [agent.returncode for agent in agents], texts
    assert "2 at once on each of 2 devices x 1 = 4 a step" in "".join(texts)
    assert 2 == _last(tmp_path).ranks


def test_a_rank_that_stands_still_ends_the_run_after_the_time_out(tmp_path):
    """The other waits for the minutes that were given, then says so and how to give more."""
    given = {"options": {"batch": 2, "effective_batch": 2, "rank_timeout": 0.05}}
    command = _command(tmp_path, {**given, "ends_at": 3, "signal": signal.SIGSTOP})
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ranks = [
        subprocess.Popen(
            command,
            env=_environment(RANK=str(rank), LOCAL_RANK=str(rank), **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, text = ranks[0].communicate(timeout=120)
    finally:
        for one in ranks:
            one.kill()
            one.communicate()

    assert 1 == ranks[0].returncode, text
    assert "did not answer in time" in text
    assert "--rank-timeout" in text
    assert "Traceback" not in text
