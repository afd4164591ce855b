"""`memplan.train` does what `memplan train` does: it plans, trains, draws, goes on and refuses."""

import shlex
from dataclasses import fields
from typing import get_type_hints

import click
import pytest
from train_toy import NUM_IMAGES, Toy

import memplan
from memplan.advise.train_function import TrainArguments, _request
from memplan.answers import load_answers
from memplan.cli import cli
from memplan.cli.train import request_from
from memplan.errors import UnknownNameError, UsageError
from memplan.spec import Levers
from memplan.training import TrainOptions


@pytest.fixture(name="toy")
def _toy(tmp_path):
    """Return a function that trains the toy, in a temporary folder."""
    data = tmp_path / "data.yaml"
    data.touch()

    def run(workload=None, **options):
        return memplan.train(
            Toy() if workload is None else workload,
            **{"data": data, "device": "cpu", "epochs": 1, "noplots": True} | options,
            project=tmp_path / "runs",
        )

    return run


def test_a_planned_batch_is_trained_with(toy):
    """The whole run is planned for host memory, and the plan is among its records."""
    summary = toy(auto_batch=True, effective_batch=4, recompute="none")
    (plan,) = load_answers(summary.run_folder / "plan.json")

    assert (4, 1) == (summary.micro_batch_size, summary.epochs_done)
    assert (4, ()) == (plan.split.micro_batch_size, plan.spec.recompute)
    assert "memplan.train" == plan.command


def test_a_plan_may_be_handed_over_or_read(toy):
    """The object and its file give the same run."""
    first = toy(auto_batch=True, effective_batch=2)
    path = first.run_folder / "plan.json"
    (plan,) = load_answers(path)

    assert 2 == toy(plan=plan).micro_batch_size == toy(plan=path).micro_batch_size
    with pytest.raises(UsageError, match="--plan sets what --batch sets"):
        toy(plan=plan, batch=4)
    with pytest.raises(UsageError, match="--auto-batch makes a plan and --plan brings one"):
        toy(plan=plan, auto_batch=True)


def test_an_interrupted_run_goes_on(toy, tmp_path):
    """With the workload again, since that is an object and no name."""

    def stop(name, facts):
        if name == "saved" and facts["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy(epochs=2, noplots=False, on_event=stop)
    folder = tmp_path / "runs/exp"
    summary = memplan.train(Toy(), resume=folder)

    assert (2, folder) == (summary.epochs_done, summary.run_folder)
    assert (folder / "report.pdf").exists()
    with pytest.raises(UsageError, match="--batch cannot be given with it"):
        memplan.train(Toy(), resume=folder, batch=2)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"auto_batch": True, "batch": 4}, UsageError, "--auto-batch chooses what --batch sets"),
        ({"safety": 0.1}, UsageError, "--safety is for planning"),
        ({"data": None}, UsageError, "--data is missing"),
        ({"auto_batch": True, "gpu": "t4"}, UsageError, "this run is on the CPU"),
        ({"batches": 4}, UnknownNameError, "batch"),
    ],
)
def test_what_the_command_line_refuses_is_refused(toy, options, error, reason):
    """Nothing that is given is ignored."""
    with pytest.raises(error, match=reason):
        toy(**options)


def test_a_batch_of_minus_one_is_planned(toy):
    """As in the official recipe, by either door."""
    assert NUM_IMAGES >= toy(batch=-1, effective_batch=2).micro_batch_size == 2


def test_keyword_arguments_are_the_options_with_their_types():
    """A field of the options that no keyword sets would not be reached from Python."""
    hints = get_type_hints(TrainOptions)
    keywords = get_type_hints(TrainArguments)
    names = {one.name for one in fields(TrainOptions)} - {"data", "cfg", "resume", "spec", "given"}
    expected = (names - {"image_size"}) | {"img"}

    assert expected == keywords.keys() - Levers.__annotations__.keys()
    for name in expected - {"img", "weights", "project"}:
        assert hints[name] == keywords[name]


def test_both_doors_ask_the_same():
    """The options of a command line and the same keyword arguments make the same run."""
    line = (
        "--cfg yolov9-t --data d.yaml --batch 8 --img 320 --lean --no-guard --freeze 1 2 "
        "--cache ram --weights w.pt --epochs 3 --optimizer Adam --recompute model.1,model.2"
    )
    context = cli.get_command(click.Context(cli), "train").make_context("train", shlex.split(line))
    typed = request_from(context, context.params).options("yolov9-t")
    called = _request(
        "yolov9-t",
        None,
        {
            "batch": 8, "img": 320, "lean": True, "guard": False, "freeze": (1, 2), "cache": "ram",
            "weights": "w.pt", "epochs": 3, "optimizer": "Adam",
            "recompute": ("model.1", "model.2"),
        },
        {"data": typed.data},
    )  # fmt: skip

    assert typed == called.options("yolov9-t")
