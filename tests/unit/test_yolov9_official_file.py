"""Checkpoints for the official code: its class names, its attributes, and our numbers."""

import pickletools
import sys
import types
import zipfile

import pytest
import torch
from memplan_models import yolov9
from memplan_models.yolov9 import official_file, parser
from memplan_models.yolov9.arguments import CFG_FOLDER
from memplan_models.yolov9.network import DetectionModel
from memplan_models.yolov9.trained import read_trained

from memplan.errors import BadInputError
from memplan.workload import ExportOptions

OPTIONS = ExportOptions(weights=None, output=None)
NAMES = ("cat", "dog")


def _written(name, folder):
    net = yolov9.build(name, len(NAMES)).eval()
    path = folder / f"{name}.pt"
    official_file.write(path, net, NAMES, OPTIONS)
    return net, path


def _names_in(path):
    """Return what the file's pickle names, as (module, name), without running it."""
    with zipfile.ZipFile(path) as archive:
        [inside] = [name for name in archive.namelist() if name.endswith("data.pkl")]
        operations = pickletools.genops(archive.read(inside))
        return {tuple(arg.split(" ")) for code, arg, _ in operations if code.name == "GLOBAL"}


@pytest.mark.parametrize("name", ["yolov9-t", "yolov9-c", "yolov7-af"])
def test_only_official_and_pytorch_classes_are_named(name, tmp_path):
    """No name of memplan's is in the file, so that nobody needs memplan to read it."""
    description = parser.read_description(CFG_FOLDER / f"{name}.yaml")
    net = DetectionModel({**description, "width_multiple": 0.125}, 2).eval()
    official_file.write(tmp_path / "net.pt", net, NAMES, OPTIONS)
    found = _names_in(tmp_path / "net.pt")

    assert ("models.yolo", "DetectionModel") in found
    assert {"models", "torch", "collections"} == {
        module.partition(".")[0] for module, _ in found - {("__builtin__", "set")}
    }


def test_what_is_read_back_is_the_network(tmp_path):
    """Entries, description, names and strides, through the reader that runs no pickled code."""
    net, path = _written("yolov9-t", tmp_path)
    trained = read_trained(path)

    assert NAMES == trained.class_names
    assert net.yaml["head"] == trained.net.yaml["head"]
    assert all(torch.equal(net.state_dict()[k], v) for k, v in trained.net.state_dict().items())


@pytest.fixture
def official_classes(monkeypatch):
    """Classes under the official names, empty, as a reader of the file finds them."""
    for module in ("models", "models.common", "models.yolo"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))

    def define(path):
        for module, name in _names_in(path):
            if module.startswith("models."):
                made = type(name, (torch.nn.Module,), {"__module__": module})
                setattr(sys.modules[module], name, made)

    return define


def test_a_reader_finds_layers_with_places_and_sources(official_classes, tmp_path):
    """What the official forward reads of each layer, and of the model itself."""
    net, path = _written("gelan-t", tmp_path)
    official_classes(path)

    content = torch.load(path, weights_only=False)
    model = content["model"]

    assert -1 == content["epoch"]
    assert isinstance(model, torch.nn.Module)
    assert list(range(len(net.model))) == [layer.i for layer in model.model]
    rows = [*net.yaml["backbone"], *net.yaml["head"]]
    assert [row[0] for row in rows] == [layer.f for layer in model.model]
    assert "models.common.ELAN1" == model.model[2].type
    assert 16 == model.model[2].c
    assert [8.0, 16.0, 32.0] == model.stride.tolist() == model.model[-1].stride.tolist()
    assert dict(enumerate(NAMES)) == model.names
    assert net.state_dict().keys() == model.state_dict().keys()
    assert sum(p.numel() for p in net.parameters()) == sum(layer.np for layer in model.model)


def test_a_block_that_the_official_code_lacks_is_refused(tmp_path):
    """By its name, with the format that takes it."""

    class Own(torch.nn.Identity):
        pass

    net = yolov9.build("gelan-t", 2).eval()
    net.model[1] = Own()

    with pytest.raises(BadInputError, match="has the block Own"):
        official_file.write(tmp_path / "net.pt", net, NAMES, OPTIONS)
