"""Families that other packages register beside ours, and which of them a name or file is for."""

import sys
from importlib.metadata import entry_points

import pytest

from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.family import Family
from memplan.registry import GROUP, SavedName, families, make_workload, runs_code, takes

MODULE = """
from memplan.family import Family
from memplan.files import Source
from memplan.workload import Workload

class Toy(Workload):
    name = "toy"
    image_size = 8
    def __init__(self, name, *, width=4):
        self.name, self.width = name, width
    def build_model(self): ...
    def make_batch(self, micro_batch_size): ...
    def compute_loss(self, model, batch): ...

class ToyFamily(Family):
    def names(self):
        return ["toy-small", "toy-large"]
    def reads(self, path):
        content = Source(path=path, what="a toy").yaml()
        return isinstance(content, dict) and "toy" in content
    def made_by(self, name):
        return Toy
    def make(self, name, **arguments):
        return Toy(name, **arguments)

class Greedy(ToyFamily):
    def names(self):
        return ["toy-small"]

class WithoutMake:
    def names(self):
        return []

def function(name, width=4):
    return Toy(name, width=width)

FAMILY, GREEDY, LACKING, TEXT = ToyFamily(), Greedy(), WithoutMake(), "text"
"""
TOY = "toy: 1\n"
YOLO = "nc: 80\nbackbone: []\nhead: []\n"


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Install a package beside ours that registers what is given, by the entry point's name."""
    site = tmp_path / "site"
    info = site / "toy_models-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "toy_models.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-models\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)

    def registered(**points):
        lines = [f"{name} = toy_models:{attribute}" for name, attribute in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))

    yield registered
    sys.modules.pop("toy_models", None)


def _line(kind, name):
    """Return the one line with which a name is refused."""
    with pytest.raises(kind) as caught:
        make_workload(name)
    assert 1 == len(str(caught.value).splitlines())
    return str(caught.value)


def test_ours_are_families():
    """Each entry point of this package names an object with every member."""
    ours = {point.name for point in entry_points(group=GROUP) if "memplan_models" in point.value}

    assert {"official", "torchvision", "yolov9"} == ours
    assert all(isinstance(families()[name], Family) for name in ours)


def test_a_description_goes_to_the_family_that_reads_it(register, tmp_path):
    """A family whose name is sorted first, and which lists names, takes its own files only."""
    register(aardvark="FAMILY")
    (tmp_path / "mine.yaml").write_text(TOY)
    (tmp_path / "yolo.yaml").write_text(YOLO)

    assert "Toy" == type(make_workload("mine.yaml", {"width": 9})).__name__
    assert "YoloV9" == type(make_workload("yolo.yaml")).__name__
    assert (True, False) == (takes("mine.yaml", "width"), takes("yolo.yaml", "width"))


def test_a_file_that_two_families_read_is_for_the_one_typed(register, tmp_path):
    """Both are named, with what to type."""
    register(aardvark="FAMILY", zebra="GREEDY")
    (tmp_path / "mine.yaml").write_text(TOY)

    said = _line(BadInputError, "mine.yaml")

    assert "aardvark, zebra" in said
    assert "--workload aardvark:mine.yaml or --workload zebra:mine.yaml" in said
    assert "mine.yaml" == make_workload("zebra:mine.yaml").name


def test_a_file_that_no_family_reads_is_refused(register, tmp_path):
    """The families are listed, with how to choose one."""
    register(aardvark="FAMILY")
    (tmp_path / "other.yaml").write_text("layers: 3\n")

    said = _line(BadInputError, "other.yaml")

    assert "No model family reads 'other.yaml'" in said
    assert "aardvark, official, torchvision, yolov9" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a: [1", "it is no YAML"), (b"\xff\xfe\xff", "no text in UTF-8"), (None, "it is a folder")],
)
def test_a_file_that_nobody_can_read_says_why(register, tmp_path, content, words):
    """No family is asked."""
    register(aardvark="FAMILY")
    path = tmp_path / "broken.yaml"
    path.mkdir() if content is None else path.write_bytes(content)

    assert words in _line(BadInputError, "broken.yaml")


def test_a_name_of_two_families_is_for_the_one_typed(register):
    """A name that both list is refused without a family before it; others stay what they were."""
    register(aardvark="FAMILY", zebra="GREEDY")

    assert "--workload aardvark:toy-small or --workload zebra:toy-small" in _line(
        BadInputError, "toy-small"
    )
    assert "toy-large" == make_workload("toy-large").name
    assert "toy-small" == make_workload("zebra:toy-small").name
    assert "'toy-large'" in _line(UnknownNameError, "toy-larg")


def test_a_function_is_a_family_that_only_makes(register):
    """It is reached by `family:name`, with its arguments checked."""
    register(plain="function")

    assert ("x", 7) == ((made := make_workload("plain:x", {"width": 7})).name, made.width)
    with pytest.raises(UsageError, match=r"takes no 'depth'\. It takes: width"):
        make_workload("plain:x", {"depth": 1})


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("LACKING", "it has no reads, make"),
        ("ToyFamily", "it is a class, not an object"),
        ("TEXT", "it has no names, reads, make"),
        ("missing", "cannot be loaded"),
    ],
)
def test_what_is_no_family_is_refused_when_it_is_loaded(register, attribute, words):
    """The entry point is named, with what it lacks."""
    register(wrong=attribute)

    said = _line(BadInputError, "yolov9-t")

    assert f"The family 'wrong' (toy_models:{attribute})" in said
    assert words in said


def test_two_packages_cannot_share_a_familys_name(register):
    """Neither silently replaces the other."""
    register(yolov9="FAMILY")

    assert "Two installed packages register the family 'yolov9'" in _line(BadInputError, "yolov9-t")


def test_a_file_names_no_family_that_does_not_say_its_names_are_plain(register):
    """A family of another package runs code until it says otherwise."""
    register(aardvark="FAMILY")

    assert runs_code("aardvark:toy-small")
    with pytest.raises(BadInputError, match="so a file cannot choose it"):
        SavedName("aardvark:toy-small", "evil.pt")
