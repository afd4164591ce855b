"""Every option of probe, plan and train against every kind of workload: taken, or told in a line.

The options are those that click knows, so a new one is covered from its first day. Acceptance is
looked at up to where recording or training would begin; a slice of it is really run.
"""

import re
import shlex
import sys

import click
import cv2
import numpy as np
import official_checkout
import pytest

import memplan
from memplan.advise.inference import check_mode, check_mode_options
from memplan.advise.plans import known_calibrations, prepared
from memplan.advise.subject import with_data
from memplan.cli import cli
from memplan.cli.common import given_parameters
from memplan.cli.plan import request_from
from memplan.cli.question import question_from
from memplan.cli.train import request_from as train_request_from
from memplan.errors import MemplanError
from memplan.registry import make_workload
from memplan.training.setup import prepare

OWN = """
import numpy as np
import torch
from memplan.workload import Workload

class Mine(Workload):
    name = "mine"
    image_size = 32

    def build_model(self):
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))

    def make_batch(self, micro_batch_size):
        return {"pictures": torch.zeros(micro_batch_size, 3, self.image_size, self.image_size)}

    def compute_loss(self, model, batch):
        loss = model(batch["pictures"]).sum()
        return loss, loss.detach()[None]

    def predict(self, model, batch):
        return model(batch["pictures"])

class Reading(Mine):
    name = "reading"

    def open_data(self, options):
        return Data()

class Data:
    num_classes = 1
    class_names = ("thing",)
    warnings = ()
    num_training_images = 4
    num_validation_images = 0
    objects_per_image = np.ones(4, np.int64)

    def training_batches(self, **_):
        yield {"pictures": torch.zeros(4, 3, 32, 32)}

class Sized(Mine):
    name = "sized"

    def __init__(self, image_size=32):
        self.image_size = image_size

def factory():
    return Mine()

ready = Mine()
"""

KINDS = {
    "yolov9": "--cfg yolov9-t",
    "classifier": "--workload torchvision:resnet18",
    "detector": "--workload torchvision:ssdlite320_mobilenet_v3_large",
    "official": "--workload official:checkout",
    "own function": "--workload own_matrix:factory",
    "own class": "--workload own_matrix:Sized",
    "own data": "--workload own_matrix:Reading",
    "own object": "--workload own_matrix:ready",
}
# What an option is tried with, where its type does not tell.
VALUES = {
    "blocks": "own_matrix",
    "allocator": "expandable_segments:True",
    "batches": "2",
    "cache": "ram",
    "calibration": "calibration.json",
    "capacity": "8GiB",
    "cfg": "yolov9-c",
    "cuda_version": "13.0",
    "cudnn_version": "9.19",
    "data": "data.yaml",
    "data_path": "data.yaml",
    "device": "cpu",
    "fit_command": "memplan train {} --batch 4 --data data.yaml",
    "freeze": "1",
    "gpu": "t4",
    "gpus": "t4",
    "hyp": "hyp.scratch-high",
    "img": "64",
    "memory_format": "channels-last",
    "mode": "predict",
    "name": "other",
    "optimizer": "Adam",
    "plan_file": "plan.json",
    "precision": "fp32",
    "prices": "t4=3",
    "quad": "",
    "recompute": "all",
    "settings": "num_classes=3",
    "weights": "weights.pt",
    "workload": "torchvision:resnet18",
}
# What an option is for goes with it, so that what is refused is not that.
BESIDE = {
    "prices": "--cards",
    "worker_rate": "--workers 2",
    "epochs": "--data data.yaml",
    "save_period": "--epochs 1",
    "gpu": "--auto-batch",
    "safety": "--auto-batch",
    "calibration": "--auto-batch",
    "objects_per_image": "--auto-batch",
}
COMMANDS = {"probe": "--gpu t4", "plan": "--gpu t4", "train": "--data data.yaml --device cpu"}


# The kind is what --workload says, and --resume takes that and all else from its run.
NOT_BESIDE_A_KIND = {"workload", "resume"}


def _options(name):
    """Return the options of a command that a user may type beside a workload."""
    command = cli.get_command(click.Context(cli), name)
    return [
        one
        for one in command.params
        if isinstance(one, click.Option) and one.expose_value and one.name not in NOT_BESIDE_A_KIND
    ]


def _typed(parameter):
    """Return an option with a value, as it is typed."""
    if parameter.is_flag and parameter.type.name != "text":
        return [parameter.opts[0]]
    value = VALUES.get(parameter.name)
    if value is None:
        kinds = {"integer": "2", "integer range": "2", "float": "0.5", "float range": "0.5"}
        value = kinds.get(parameter.type.name)
    if value is None and parameter.type.name == "path":
        # Pages are PDF, and any other ending is refused.
        value = f"{parameter.name}.{'pdf' if parameter.name == 'report' else 'file'}"
    assert value is not None, f"give a value for {parameter.opts[0]} in VALUES"
    return [parameter.opts[0], value]


def _accept(name, arguments):
    """Do what a command does before it records or trains."""
    command = cli.get_command(click.Context(cli), name)
    context = command.make_context(name, list(arguments))
    values = dict(context.params)
    if name == "probe":
        mode = {"mode": values["mode"], "half": values["half"]}
        check_mode_options(**mode, given=given_parameters(context))
        question, _ = with_data(question_from(values), values["data_path"])
        known_calibrations(question).check()
        check_mode(question, **mode)
    elif name == "plan":
        prepared(request_from(context, values))
    else:
        workload, data, options, _ = train_request_from(context, values).opened()
        if values["workload"]:  # a network of YOLOv9's takes its time to be built
            prepare(workload, options, data=data)


def _refusal(name, kind, parameter):
    """Return the error with which an option is refused; empty where it is taken."""
    beside = BESIDE.get(parameter.name, "") if name != "probe" else ""
    if name == "plan" and beside == "--auto-batch":
        beside = ""
    typed = [one.format(KINDS[kind]) for one in _typed(parameter)]
    named = "" if parameter.name == "fit_command" else KINDS[kind]
    arguments = [*shlex.split(f"{named} {COMMANDS[name]} {beside}"), *typed]
    try:
        _accept(name, arguments)
    except MemplanError as error:
        return str(error)
    except click.ClickException as error:
        return error.format_message()
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with data, a checkout, and workloads of the user's own."""
    path = tmp_path_factory.mktemp("matrix")
    (path / "own_matrix.py").write_text(OWN)
    official_checkout.write(path / "checkout")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (path / kind / split).mkdir(parents=True)
        cv2.imwrite(str(path / "images" / split / "a.png"), np.zeros((32, 32, 3), np.uint8))
        (path / "labels" / split / "a.txt").write_text("0 .5 .5 .2 .2\n" * 3)
    (path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [thing]\n")
    return path


@pytest.fixture(autouse=True)
def _in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_matrix", None)


def _names(kind):
    """Return how a workload may be called in a line."""
    name = KINDS[kind].split()[1]
    return {name, name.partition(":")[2], *{"own_matrix:factory": ["'mine'"]}.get(name, [])} | (
        {"'mine'", "'sized'", "'reading'", "official:"} if ":" in name else set()
    )


# torch.compile imports what warns of itself.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_is_taken_or_refused_in_one_line(command, kind):
    """The line names the option and the workload, but where it is so for any workload."""
    wrong = []
    for parameter in _options(command):
        text = _refusal(command, kind, parameter)
        spellings = [*parameter.opts, *parameter.secondary_opts]
        if not text:
            continue
        names_option = any(one in text for one in spellings) or "--data" in text
        names_workload = any(name in text for name in _names(kind))
        if "\n" in text or not (
            (names_option and names_workload) or text == _refusal(command, "yolov9", parameter)
        ):
            wrong.append((parameter.opts[0], text))

    assert [] == wrong, wrong


def _run(capsys, arguments):
    """Run a command in this process and return what it prints, or the line that it ends with."""
    try:
        cli.main(arguments, standalone_mode=False)
    except MemplanError as error:
        return str(error)
    return capsys.readouterr().out


@pytest.fixture
def _one_process(monkeypatch):
    monkeypatch.setenv("MEMPLAN_PROCESSES", "1")


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("parameter", _options("probe"), ids=lambda one: one.opts[0])
def test_what_is_taken_runs(parameter, capsys, tmp_path):
    """Each option of probe, really run with a workload of the user's own: as was said before."""
    typed = [one if "/" in one else one.replace(".file", ".pdf") for one in _typed(parameter)]
    if parameter.type.name == "path" and parameter.name in {"output", "report", "tape_path"}:
        typed[1] = str(tmp_path / typed[1])
    arguments = shlex.split(f"probe {KINDS['own class']} {COMMANDS['probe']}")
    printed = _run(capsys, [*arguments, *typed])
    refused = _refusal("probe", "own class", parameter)

    assert refused in printed
    assert bool(refused) != ("largest" in printed), printed


RUNS = {
    "yolov9": "--val-batch 4 --multi-scale --lean --fused --assigner-parts 2 --set num_classes=2",
    "classifier": "--val-batch 64 --fused --set num_classes=10",
    "detector": "--objects-per-image 2 --fused",
    "official": "--val-batch 7 --objects-per-image 2 --set num_classes=3",
    "own function": "--fused",
}


def _recorded(kind, options, batch=2):
    """Return the tape of a kind of workload under options of probe."""
    arguments = shlex.split(f"{KINDS[kind]} --gpu t4 {options}")
    context = cli.get_command(click.Context(cli), "probe").make_context("probe", arguments)
    question = question_from(dict(context.params))
    question.check()
    return question.record(batch, question.step_spec)


@pytest.mark.parametrize("kind", RUNS)
def test_what_a_kind_takes_runs_together(kind):
    """Each kind of workload, really recorded with the options that only some take."""
    size = "" if kind == "own function" else "--img 64"

    assert 0 < _recorded(kind, f"{size} {RUNS[kind]}").events.kind.size


@pytest.mark.parametrize("kind", ["classifier", "official"])
def test_more_images_validated_take_more(kind):
    """`--val-batch` counts where it is taken: of a large one validation is the peak."""
    few, many = (
        memplan.replay(_recorded(kind, f"--img 64 --val-batch {count}"), gpu="t4")
        for count in (2, 512)
    )

    assert "validation" == many.peak_period
    assert few.allocated_peak_bytes < many.allocated_peak_bytes


def test_python_refuses_as_the_commands_do():
    """An option of no meaning, or one that the workload does not take, is refused by name."""
    for error, call in (
        ("Unknown option 'val_bach'. Did you mean 'val_batch'?", {"val_bach": 3}),
        ("--val-batch: workload 'own_matrix:factory' takes no", {"val_batch": 3}),
    ):
        with pytest.raises(MemplanError, match=re.escape(error)):
            memplan.record("own_matrix:factory", 1, **call)
    with pytest.raises(MemplanError, match="--img: workload 'mine' is an object"):
        memplan.probe(make_workload("own_matrix:ready"), gpu="t4", batch=1, img=64)
