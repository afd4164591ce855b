"""Checkpoints: official, own and hostile ones, read without running what they carry."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from memplan_models import yolov9
from memplan_models.yolov9.weights import read_checkpoint
from torch import nn

from memplan.errors import BadInputError


@pytest.fixture(scope="module")
def trained():
    """A network whose values are all unlike those of a fresh one."""
    torch.manual_seed(5)
    net = yolov9.build("yolov9-t", nc=2)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(1)
    return net


@pytest.fixture
def official_names(monkeypatch):
    """Modules named as the official code's, holding classes that exist only while saving."""
    made = {}
    for name in ("models", "models.yolo", "models.common"):
        made[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made[name])

    def pickled_as(module, name):
        if not hasattr(made[module], name):
            setattr(made[module], name, type(name, (nn.Module,), {"__module__": module}))
        return getattr(made[module], name)

    return pickled_as


def _as_official(net, pickled_as):
    """Return the network with its own classes replaced by those an official file names."""

    def official(module):
        name = type(module).__name__
        if not type(module).__module__.startswith("torch."):
            where = "models.yolo" if "Detect" in name else "models.common"
            module.__class__ = pickled_as(where, name)

    twin = copy.deepcopy(net).half()
    twin.apply(official)
    return twin


def _training_file(path, net, pickled_as, **slots):
    """Write the slots of an official training checkpoint."""
    other = copy.deepcopy(net)
    for tensor in other.state_dict().values():
        tensor.zero_()
    content = {
        "epoch": 3,
        "best_fitness": np.array([0.25]),
        "model": _as_official(other, pickled_as),
        "ema": _as_official(net, pickled_as),
        "updates": np.int64(12),
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.01), "params": [0]}]},
        "opt": {"cfg": "yolov9-t.yaml", "freeze": [0]},
        "git": None,
        "date": "2024-06-10",
    }
    torch.save(content | slots, path)
    return path


def _equal(expected, actual):
    return all(torch.equal(v.half(), actual[k].half()) for k, v in expected.items())


def test_training_checkpoint_gives_its_ema(tmp_path, trained, official_names):
    """All entries come from `ema`, converted to the network's own precision."""
    path = _training_file(tmp_path / "last.pt", trained, official_names)
    net = yolov9.build("yolov9-t", nc=2)

    report = yolov9.load_weights(net, path)

    assert "ema" == report.slot
    assert len(trained.state_dict()) == len(report.matched)
    assert ((), (), ()) == (report.missing, report.unexpected, report.reshaped)
    assert _equal(trained.state_dict(), net.state_dict())
    assert {torch.float32} == {p.dtype for p in net.parameters()}


def test_training_checkpoint_can_give_its_model(tmp_path, trained, official_names):
    """`prefer="model"` takes what the official --weights takes."""
    path = _training_file(tmp_path / "last.pt", trained, official_names)
    net = yolov9.build("yolov9-t", nc=2)

    assert "model" == yolov9.load_weights(net, path, prefer="model").slot
    assert not any(p.any() for p in net.parameters())


def test_stripped_checkpoint_gives_its_model(tmp_path, trained, official_names):
    """A stripped file has no `ema`; its `model` is taken."""
    slots = {"ema": None, "optimizer": None, "model": _as_official(trained, official_names)}
    path = _training_file(tmp_path / "best.pt", trained, official_names, **slots)
    net = yolov9.build("yolov9-t", nc=2)

    assert "model" == yolov9.load_weights(net, path).slot
    assert _equal(trained.state_dict(), net.state_dict())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 1, "ema": s, "model": s}])
def test_own_files_hold_plain_states(tmp_path, trained, wrap):
    """A bare state_dict, and one under a slot, are read as well."""
    path = tmp_path / "own.pt"
    torch.save(wrap(trained.state_dict()), path)
    net = yolov9.build("yolov9-t", nc=2)

    yolov9.load_weights(net, path)

    assert _equal(trained.state_dict(), net.state_dict())


def test_other_classes_load_all_but_the_class_outputs(tmp_path, trained):
    """Entries of another shape stay as they are and are reported with both shapes."""
    path = tmp_path / "own.pt"
    torch.save(trained.state_dict() | {"extra": torch.zeros(1)}, path)
    net = yolov9.build("yolov9-t", nc=5)
    before = net.head.cv3[0][-1].bias.clone()

    report = yolov9.load_weights(net, path)

    assert ("model.29.cv3.0.2.bias", (2,), (5,)) in report.reshaped
    assert 12 == len(report.reshaped)
    assert ("extra",) == report.unexpected
    assert torch.equal(before, net.head.cv3[0][-1].bias)
    assert "Not matched: 12 of another shape (" in str(report)
    assert "1 unexpected (extra)" in str(report)


def test_a_file_of_another_architecture_is_refused(tmp_path):
    """When nothing fits, the message asks whether the architecture is right."""
    path = tmp_path / "other.pt"
    torch.save(OrderedDict(a=torch.zeros(2)), path)

    with pytest.raises(BadInputError, match=r"None of the 1 entries .* --cfg"):
        yolov9.load_weights(yolov9.build("gelan-t", nc=2), path)


class _Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "__builtin__.eval"), (getattr, "__builtin__.getattr")],
)
def test_hostile_pickle_is_refused_by_name(tmp_path, function, name):
    """A pickle that would call a function is refused, the function named and not called."""
    spy = tmp_path / "ran"
    path = tmp_path / "bad.pt"
    torch.save({"model": _Hostile(function, f"touch {spy}")}, path)

    with pytest.raises(BadInputError, match=f"bad.pt is refused: its pickle names {name}"):
        read_checkpoint(path)

    assert not spy.exists()


@pytest.mark.parametrize("name", ["utils.general.os.system", "numpy.testing.measure"])
def test_permitted_rooms_give_only_inert_stubs(tmp_path, name):
    """A name inside a permitted module is never imported, called or looked up."""
    module, function = name.rsplit(".", 1)
    spy = tmp_path / "ran"
    code = f"c{module}\n{function}\n(Vtouch {spy}\ntR.".encode()
    path = tmp_path / "bad.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", code)

    content = read_checkpoint(path)

    assert function == type(content).__name__
    assert not vars(content)
    assert not spy.exists()


def test_tensor_outside_its_storage_is_refused(tmp_path):
    """A tensor whose size exceeds its storage does not read foreign memory."""
    path = tmp_path / "long.pt"
    torch.save({"w": torch.zeros(8)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    [name] = [n for n in parts if n.endswith("/data/0")]
    parts[name] = parts[name][:8]
    with zipfile.ZipFile(path, "w") as archive:
        for part, data in parts.items():
            archive.writestr(part, data)

    with pytest.raises(BadInputError, match="storage 0 has another size"):
        read_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_file_is_one_line(tmp_path, trained, keep):
    """A truncated file is an error of one line that says what to do."""
    path = tmp_path / "cut.pt"
    torch.save(trained.state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])

    with pytest.raises(
        BadInputError, match=r"cut\.pt cannot be read as a PyTorch checkpoint"
    ) as caught:
        read_checkpoint(path)

    assert "\n" not in str(caught.value)


def test_bare_pickle_and_missing_file(tmp_path):
    """A pickle that is no PyTorch file, and a file that is not there, are told apart."""
    path = tmp_path / "bare.pt"
    path.write_bytes(pickle.dumps({"a": 1}))

    with pytest.raises(BadInputError, match="cannot be read as a PyTorch checkpoint"):
        read_checkpoint(path)
    with pytest.raises(BadInputError, match=r"none\.pt does not exist"):
        read_checkpoint(tmp_path / "none.pt")
