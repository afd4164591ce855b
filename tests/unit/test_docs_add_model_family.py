"""The page on adding a model family is true: its package is installed here and used."""

import re
import sys
from pathlib import Path

import pytest

from memplan import capabilities, lean
from memplan.errors import UsageError
from memplan.registry import make_workload
from memplan.trace.record import record

PAGE = (Path(__file__).parents[2] / "docs/add_model_family.md").read_text()


@pytest.fixture(autouse=True)
def _installed(tmp_path, monkeypatch):
    """The page's package and its registration, installed in a folder of their own."""
    code, registration = re.findall(r"```(?:python|ini)\n(.*?)```", PAGE, re.DOTALL)
    group, point = re.search(r"(memplan\.workloads) =\n +(.*)\n", registration).groups()
    info = tmp_path / "towers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: towers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{point}\n")
    (tmp_path / "towers").mkdir()
    (tmp_path / "towers/__init__.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("towers", None)


def test_the_family_makes_what_users_type(tmp_path):
    """By name, by `family:name` with a setting, and from a description that it alone reads."""
    (tmp_path / "mine.yaml").write_text("tower: 4\n")

    assert 9 == make_workload("tower-9").height
    assert 5 == make_workload("towers:tower-3", {"height": 5}).height
    assert 4 == make_workload("mine.yaml").height
    with pytest.raises(UsageError, match="takes no 'width'"):
        make_workload("tower-9", {"width": 5})


def test_its_step_is_recorded():
    """Three layers of 16 x 16 and their biases; validation is there because it has the method."""
    workload = make_workload("tower-3")
    tape = record(workload, 2)

    assert 3 * (16 * 16 + 16) == tape.description.parameters
    assert isinstance(workload, capabilities.Validates)


def _members(kind):
    """Return the names that a protocol asks for, those of the protocols it extends with it."""
    ours = [one for one in kind.__mro__ if one.__module__ == kind.__module__]
    named = [name for one in ours for name in (*vars(one), *one.__annotations__)]
    return {name for name in named if not name.startswith("_")}


def test_the_table_of_capabilities_is_complete():
    """Each capability named exists, with the methods beside it."""
    rows = re.findall(r"^\|[^|]+\| (`[A-Z].*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    known = vars(capabilities) | vars(lean)
    for kinds, methods in rows:
        found = [known[kind] for kind in re.findall(r"`(\w+)`", kinds)]
        assert set(re.findall(r"`(\w+)`", methods)) == set().union(*map(_members, found))

    assert 9 == len(rows)
