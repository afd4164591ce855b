"""Every option of a run holds when it goes on, as the table of options lists them."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from train_toy import Toy, toy_options

from memplan.advise.run_pages import is_worth_drawing
from memplan.advise.train_request import TrainRequest
from memplan.advise.training import resumed
from memplan.spec import FLAG, LEVERS, spec_of
from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint, save_checkpoint
from memplan.training.command_line import read_train_options
from memplan.training.run import _continued

# What this session says, and where the records go: the folder that the checkpoint stands in.
SESSION = {"resume", "device", "workers", "rank_timeout", "project", "name", "exist_ok", "blocks"}
VALUES = {
    "data": Path("/elsewhere/data.yaml"),
    "cfg": "gelan-t",
    "weights": Path("start.pt"),
    "hyp": "scratch-low.yaml",
    "hyperparameters": {"lr0": 0.5},
    "freeze": (1, 3),
    "cache": "ram",
    "given": ("lean",),
    "label_smoothing": 0.25,
}
LEVER_VALUES = {
    "precision": "fp32", "memory_format": "channels-last", "optimizer": "Lion",
    "allocator": "expandable_segments:True", "recompute": ("model.1",), "model_dtype": "fp16",
}  # fmt: skip
BASE = {"data": Path("/set/data.yaml"), "cfg": "yolov9-t"}
NAMES = [one.name for one in fields(TrainOptions) if one.name not in {"spec", *SESSION}]
OF_TRAIN = [one for one in LEVERS if "train" in one.commands]


def _other(name, default):
    """Return a value that is not the default one."""
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool):
        return not default
    return 4 if default is None else type(default)(default + 4)


def _of_lever(lever):
    if lever.name in LEVER_VALUES:
        return LEVER_VALUES[lever.name]
    return not lever.plain if lever.kind == FLAG else 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The last checkpoint of a run, and a function that gives it options and saves it again."""
    folder = train(Toy(), toy_options(tmp_path_factory.mktemp("run"))).run_folder
    path = folder / "weights/last.pt"
    content = vars(load_checkpoint(path))

    def write(options, *, finished=False):
        changed = {"options": options.as_record(), "finished": finished}
        save_checkpoint(path, type(load_checkpoint(path))(**content | changed))
        return path

    return write


def _gone_on(path):
    """Return the options of `memplan train --resume PATH`: the command's, and the run's."""
    values = read_train_options(["--device", "cpu"]) | {"resume": path}
    _, options = resumed(TrainRequest(values=values, given={"resume", "device"}))
    return options, _continued(options, load_checkpoint(path), path)


@pytest.mark.parametrize("name", NAMES)
def test_an_option_of_the_run_holds_when_it_goes_on(saved, name):
    """Its value is the saved one, not the default; hyperparameters are the run's, by value."""
    default = next(one.default for one in fields(TrainOptions) if one.name == name)
    value = _other(name, default)
    options, in_run = _gone_on(saved(TrainOptions(**BASE | {name: value})))

    assert default != value
    assert value == getattr(options, name)
    if name not in {"hyp", "hyperparameters"}:
        assert value == getattr(in_run, name)


@pytest.mark.parametrize("lever", OF_TRAIN, ids=lambda one: one.name)
def test_a_lever_of_the_run_holds_when_it_goes_on(saved, lever):
    """How a step runs is saved with the rest."""
    spec = replace(spec_of({}), **{lever.name: _of_lever(lever)})
    options, in_run = _gone_on(saved(TrainOptions(**BASE, spec=spec)))

    assert spec != spec_of({})
    assert spec == options.spec == in_run.spec


@pytest.mark.parametrize("noplots", [False, True])
def test_a_run_without_plots_draws_none_when_it_goes_on(saved, noplots):
    """`--noplots` of the first session counts in the next, whether or not anything is left."""
    path = saved(TrainOptions(**BASE, noplots=noplots), finished=True)

    summary = train(Toy(), _gone_on(path)[0])

    assert noplots != is_worth_drawing(summary)
