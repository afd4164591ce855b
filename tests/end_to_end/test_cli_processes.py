"""Commands of several processes answer where this one has computed, and end where another ends.

The models here run real convolutions and batch norm while they are built, as the official detectors
do to find their strides, so that OpenMP's threads exist in the process that records.
"""

import json
import os
import subprocess
import sys

import official_checkout
import pytest

OWN = """
import os, signal, time
import torch
from memplan.workload import Workload

class Mine(Workload):
    name = "mine"
    image_size = 64

    def __init__(self, ends="", computes=lambda: torch.zeros(2, 3, 256, 256)):
        self.ends = ends
        self.computes = computes
        self.main = os.environ["OWN_PARENT"] = os.environ.get("OWN_PARENT", str(os.getpid()))

    def build_model(self):
        if self.ends and self.main != str(os.getpid()):
            os.kill(os.getpid(), signal.SIGKILL) if self.ends == "killed" else time.sleep(300)
        model = torch.nn.Sequential(
            *(
                torch.nn.Sequential(
                    torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.BatchNorm2d(after)
                )
                for before, after in ((3, 32), (32, 32))
            )
        )
        model(self.computes())
        return model

    def make_batch(self, micro_batch_size):
        return {"images": torch.zeros(micro_batch_size, 3, 64, 64)}

    def compute_loss(self, model, batch):
        loss = model(batch["images"]).sum()
        return loss, loss.detach()[None]

def factory(**arguments):
    torch.set_num_threads(4)
    return Mine(**arguments)
"""

SCRIPT = """
import memplan
print("top level")
exec(open("mine.py").read())
torch.set_num_threads(4)
answer = memplan.probe(Mine(), gpu="rtx-3090", batch=[2, 4], recompute="all")
print([row.allocated_peak_bytes for row in answer.batches])
"""


@pytest.fixture
def folder(tmp_path):
    """A working directory with a workload of the user's own."""
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


def _run(folder, *arguments, **variables):
    """Run a command with OpenMP's threads and two processes, three minutes at most."""
    environment = os.environ | {"OMP_NUM_THREADS": "4", "MEMPLAN_PROCESSES": "2"} | variables
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=folder,
        env=environment,
    )


def _probe(folder, *arguments, **variables):
    command = ("-m", "memplan", "probe", "--gpu", "rtx-3090", "--batch", "2", "--batch", "4")
    return _run(folder, *command, "--recompute", "all", *arguments, **variables)


def _peaks(done):
    assert "" == done.stderr
    return [row["allocated_peak_bytes"] for row in json.loads(done.stdout)["batches"]]


def test_a_workload_that_computes_is_answered_as_by_one_process(folder):
    """`--recompute all` builds the model here first; children then record, and answers agree."""
    several = _probe(folder, "--workload", "mine:factory", "--json")
    alone = _probe(folder, "--workload", "mine:factory", "--json", MEMPLAN_PROCESSES="1")

    assert _peaks(alone) == _peaks(several)


def test_a_checkout_is_imported_by_each_process(folder):
    """A workload named by the path of a checkout is made in children too."""
    path = official_checkout.write(folder / "yolov9")
    arguments = ("--workload", f"official:{path}", "--cfg", "yolov9-c", "--img", "64")
    arguments += ("--objects-per-image", "2", "--set", "num_classes=3", "--capacity", "414MiB")
    several = _probe(folder, *arguments, "--json")
    alone = _probe(folder, *arguments, "--json", MEMPLAN_PROCESSES="1")

    assert _peaks(alone) == _peaks(several)


def test_a_script_with_a_workload_of_its_own_needs_no_guard(folder):
    """A class of the main module travels by value, lambda included; the top level runs once."""
    (folder / "script.py").write_text(SCRIPT)
    several = _run(folder, "script.py")

    assert "" == several.stderr
    lines = several.stdout.splitlines()
    assert "top level" == lines[0]
    assert _peaks(_probe(folder, "--workload", "mine:factory", "--json")) == json.loads(lines[1])


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ("killed", "was recording steps when it was ended by SIGKILL"),
        ("stuck", "No process recording steps has answered for 3 s"),
    ],
)
def test_a_process_that_is_gone_or_stuck_ends_the_command_in_one_line(folder, ends, told):
    """Exit code 1, one line that names the way out, no traceback."""
    # The first answer takes an import; what is bounded here is the stall.
    arguments = ("--workload", "mine:factory", "--set", f"ends={ends}")
    done = _probe(folder, *arguments, MEMPLAN_PROCESS_SECONDS="3")

    assert (1, "") == (done.returncode, done.stdout)
    assert told in done.stderr
    assert "MEMPLAN_PROCESSES=1" in done.stderr
    assert 1 == done.stderr.count("\n")
