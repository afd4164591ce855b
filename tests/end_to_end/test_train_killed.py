"""A YOLOv9 run killed in the middle of an epoch goes on bit for bit, and stops when it is asked."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest
import torch
from cli_set import memplan, memplan_started, write_set
from memplan_models.yolov9.workload import YoloV9

from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint

# What both the straight run and the killed one train: loader processes, mosaics, many sizes.
_SETTINGS = {
    "image_size": 64,
    "batch": 2,
    "epochs": 2,
    "workers": 1,
    "device": "cpu",
    "effective_batch": 4,
    "multi_scale": True,
    "name": "run",
}

_KILLED = """
import json, os, signal, sys
from functools import partial
from pathlib import Path
from memplan.training import TrainOptions, train
from memplan_models.yolov9.workload import YoloV9

kill = int(sys.argv[3])
saves = []

def die(name, facts):
    saves.append(name) if name == "saved" else None
    if len(saves) == kill:
        os.kill(os.getpid(), signal.SIGKILL)

options = TrainOptions(
    data=Path(sys.argv[1]), project=Path(sys.argv[2]), save_every=1e-9, **json.loads(sys.argv[4])
)
train(partial(YoloV9, "yolov9-t"), options, on_event=die)
"""


@pytest.fixture(name="data", scope="module")
def _data(tmp_path_factory):
    """Return a data.yaml of 8 training and 4 validation images."""
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(name="straight", scope="module")
def _straight(data, tmp_path_factory):
    """Return the folder of a run that nothing stopped."""
    project = tmp_path_factory.mktemp("straight")
    options = TrainOptions(data=data, project=project, save_every=0, **_SETTINGS)
    return train(partial(YoloV9, "yolov9-t"), options).run_folder


# In warm-up a step is one micro-batch of 2 images: an epoch saves at 2, 4, 6, 8 and at its end.
@pytest.mark.parametrize("kill", [1, 4, 7])
def test_a_run_killed_within_an_epoch_ends_as_if_it_was_not(straight, data, tmp_path, kill):
    """SIGKILL after a save; another process resumes; weights, average and results are equal."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    arguments = [str(data), str(tmp_path), str(kill), json.dumps(_SETTINGS)]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, *arguments],
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,  # its output ends with its last loader process
    )
    assert -signal.SIGKILL == killed.returncode, killed.stderr.decode()
    folder = tmp_path / "run"
    position = load_checkpoint(folder / "weights/last.pt").position
    resumed = TrainOptions(data=data, resume=folder, device="cpu", workers=0)
    train(partial(YoloV9, "yolov9-t"), resumed)

    assert {1: 2, 4: 8, 7: 4}[kill] == position["images_seen"]
    expected = load_checkpoint(straight / "weights/last.pt")
    actual = load_checkpoint(folder / "weights/last.pt")
    for slot in ("model", "ema"):
        for name, tensor in getattr(expected, slot).items():
            assert torch.equal(tensor, getattr(actual, slot)[name]), name
    assert expected.ema_updates == actual.ema_updates
    times = ["seconds", "images_per_second"]
    tables = [pd.read_csv(run / "results.csv").drop(columns=times) for run in (straight, folder)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_cluster_s_notice_saves_and_says_how_to_go_on(data, tmp_path):
    """SIGTERM to every process of the run: one line, exit code 1, no traceback; then --resume."""
    arguments = ("--cfg", "yolov9-t", "--data", data, "--img", "64", "--batch", "2", "--noplots")
    process = memplan_started(
        "train", *arguments, "--device", "cpu", "--workers", "2", "--epochs", "1000", cwd=tmp_path
    )
    last = tmp_path / "runs/train/exp/weights/last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    )
    for pid in [*children.stdout.split(), process.pid]:
        os.kill(int(pid), signal.SIGTERM)
    _, text = process.communicate(timeout=120)

    assert 143 == process.returncode
    assert "Continue with: memplan train --resume runs/train/exp" in text.splitlines()[-1]
    assert "Stopped (SIGTERM)" in text
    assert "Traceback" not in text
    assert load_checkpoint(last).epoch >= 1


def test_two_devices_are_two_processes(data, tmp_path):
    """--device cpu,cpu starts both itself; the records are of one run."""
    arguments = ("--cfg", "yolov9-t", "--data", data, "--img", "64", "--batch", "64", "--noplots")
    finished = memplan(
        "train",
        *arguments,
        "--device",
        "cpu,cpu",
        "--workers",
        "0",
        "--epochs",
        "1",
        *("--effective-batch", "64"),
        cwd=tmp_path,
    )

    assert 0 == finished.returncode, finished.stderr
    # The official --batch is of both, and its weight decay that of the nominal batch.
    assert "32 at once on each of 2 devices x 1 = 64 a step (nominal 64), " in finished.stderr
    assert "weight decay 0.0005, learning rate 0.01, " in finished.stderr
    assert 1 == finished.stderr.count("\nepoch 1/1: ")
    assert 1 == finished.stdout.count("Trained 1 epoch")
    assert 2 == load_checkpoint(tmp_path / "runs/train/exp/weights/last.pt").ranks
