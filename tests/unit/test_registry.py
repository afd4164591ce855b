"""Workloads are found by the names users type, and what is not one is refused."""

import sys

import pytest

from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.registry import make_workload, parse_settings
from memplan.trace.record import record

MODULE = """
from memplan.workload import Workload

class Toy(Workload):
    name = "toy"
    image_size = 8
    def __init__(self, width=4):
        self.width = width
    def build_model(self): ...
    def make_batch(self, micro_batch_size): ...
    def compute_loss(self, model, batch): ...

class Stating(Toy):
    states_sizes = True
    objects_per_image = 3

    def __init__(self, returned=5):
        super().__init__()
        self.returned = returned

    def build_model(self):
        import torch
        return torch.nn.Linear(4, 2)

    def make_batch(self, micro_batch_size):
        import torch
        return {"images": torch.ones(micro_batch_size, 4)}

    def compute_loss(self, model, batch):
        outputs = model(batch["images"])
        loss = outputs[outputs > 0].sum()
        return loss, loss.detach()[None]

    def num_chosen(self, choice):
        if self.returned == "default":
            return super().num_chosen(choice)
        return self.returned

def any_keyword(**arguments):
    return Toy(**arguments)

def needs_one(width):
    return Toy(width)

def gives_text():
    return "toy"

ready = Toy(7)
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's module, in which the command is run."""
    (tmp_path / "own_trainings.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("raise ZeroDivisionError('by design')\n")
    (tmp_path / "own_unreadable.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_trainings"
    sys.modules.pop("own_trainings", None)


@pytest.mark.parametrize(
    ("pair", "settings"),
    [
        ("num_classes=10", {"num_classes": 10}),
        ("rate=0.5", {"rate": 0.5}),
        ("name=resnet", {"name": "resnet"}),
        ("deep=true", {"deep": True}),
        ("sizes=[1, 2]", {"sizes": [1, 2]}),
        ("empty=", {"empty": ""}),
        ("text=a=b", {"text": "a=b"}),
    ],
)
def test_settings_are_yaml_values(pair, settings):
    """The text after the first `=` is read as YAML."""
    assert settings == parse_settings([pair])


@pytest.mark.parametrize("pair", ["num_classes", "=3", "1x=3", "a b=3", "", "a=[1", "a=!!python/x"])
def test_settings_that_are_none_are_wrong_usage(pair):
    """A text without a name and `=`, or with a value that YAML cannot read, is refused."""
    with pytest.raises(UsageError, match="--set"):
        parse_settings([pair])


def test_yaml_cannot_make_objects():
    """A tag that names a function is not obeyed."""
    with pytest.raises(UsageError):
        parse_settings(["a=!!python/object/apply:os.getcwd []"])


def test_last_of_two_equal_names_wins():
    """A setting given twice has its last value."""
    assert {"a": 2} == parse_settings(["a=1", "a=2"])


def test_registered_families_answer_to_their_names():
    """`yolov9-s`, its path inside the official checkout, and `torchvision:NAME` are known."""
    assert "yolov9-s" == make_workload("yolov9-s").name
    assert "yolov9-t" == make_workload("models/detect/yolov9-t.yaml").name
    made = make_workload("torchvision:resnet18", {"image_size": 32, "num_classes": 5})
    assert ("torchvision:resnet18", 32, 5) == (made.name, made.image_size, made.num_classes)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("yolov9-x", "yolov9-"), ("torchvision:resnet19", "'resnet18'"), ("", "torchvision:NAME")],
)
def test_unknown_names_suggest_the_nearest(name, nearest):
    """A name nobody registered is refused with what comes closest."""
    with pytest.raises(UnknownNameError, match=nearest):
        make_workload(name)


def test_argument_that_a_family_does_not_take_is_wrong_usage():
    """The factory's refusal comes out as wrong usage."""
    with pytest.raises(UsageError, match="depth"):
        make_workload("torchvision:resnet18", {"depth": 3})


def test_own_class_function_and_object_are_workloads(own):
    """A class, a function and a finished object can be named."""
    assert 9 == make_workload(f"{own}:Toy", {"width": 9}).width
    assert 5 == make_workload(f"{own}:any_keyword", {"width": 5}).width
    assert 7 == make_workload(f"{own}:ready").width


@pytest.mark.parametrize(
    ("attribute", "arguments", "kind", "words"),
    [
        ("Toy", {"depth": 1}, UsageError, "takes no 'depth'. It takes: width"),
        ("any_keyword", {"depth": 1}, UsageError, "unexpected keyword argument 'depth'"),
        ("needs_one", {}, UsageError, "missing 1 required"),
        ("ready", {"width": 1}, UsageError, "is an object"),
        ("number", {}, BadInputError, "neither a Workload nor a function"),
        ("gives_text", {}, BadInputError, "gave a str"),
        ("Toyy", {}, UnknownNameError, "'Toy'"),
        ("", {}, UnknownNameError, "Unknown name"),
    ],
)
def test_what_is_no_workload_is_refused(own, attribute, arguments, kind, words):
    """Each way to miss is said in one line."""
    with pytest.raises(kind, match=words) as caught:
        make_workload(f"{own}:{attribute}", arguments)

    assert 1 == len(str(caught.value).splitlines())


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_missing:x", "No module named"),
        ("own_broken:x", "by design"),
        ("own_unreadable:x", "invalid syntax"),
        (":x", "cannot be imported"),
        (".relative:x", "cannot be imported"),
    ],
)
def test_modules_that_do_not_load_are_refused(name, words):
    """Whatever a module raises while it loads is told in one line, its cause attached."""
    with pytest.raises(BadInputError, match=words) as caught:
        make_workload(name)

    assert 1 == len(str(caught.value).splitlines())
    assert caught.value.__cause__ is not None


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("returned", [0, 5, "default"])
def test_a_workload_of_ones_own_states_its_sizes(returned):
    """`states_sizes` and `num_chosen` let a step with a mask as an index be recorded."""
    workload = make_workload("own_trainings:Stating", {"returned": returned})

    assert 2 == record(workload, 2).description.micro_batch_size


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, r"aten\.nonzero on values of shape \[2, 2\].*num_chosen method of toy"),
        (-1, "num_chosen method of toy returned -1 for aten.nonzero"),
        (0.5, "num_chosen method of toy returned 0.5"),
    ],
)
def test_a_size_that_is_none_is_refused_in_one_line(returned, words):
    """The workload, the operator and the way out are named."""
    workload = make_workload("own_trainings:Stating", {"returned": returned})

    with pytest.raises(BadInputError, match=words) as caught:
        record(workload, 2)

    assert 1 == len(str(caught.value).splitlines())
