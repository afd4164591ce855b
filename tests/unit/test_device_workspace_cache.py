"""cuDNN's answers on disk."""

import json

import pytest

from memplan.device import cudnn
from memplan.device.catalogue import card
from memplan.device.cudnn import ConvolutionProblem, WorkspaceOracle
from memplan.device.workspace_cache import WorkspaceCache, cache_folder

PROBLEM = ConvolutionProblem(
    kind="forward",
    dtype="float16",
    input=(2, 16, 32, 32),
    weight=(16, 16, 3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Return the folder of caches, empty, under a home of the test's own."""
    monkeypatch.delenv("MEMPLAN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memplan"


def cache(**changes):
    """Return the cache of an RTX 3090, its description changed as asked."""
    description = card("rtx-3090").cudnn_description() | changes
    return WorkspaceCache.of(description, "9.19.0", "1.32.0")


def test_a_second_run_asks_nothing(folder, monkeypatch):
    """Answers outlive the process: a new oracle has them without asking cuDNN."""
    first = WorkspaceOracle(card("rtx-3090")).bytes(PROBLEM)
    monkeypatch.setattr(cudnn, "_plans", lambda *_: pytest.fail("cuDNN was asked again"))

    assert first == WorkspaceOracle(card("rtx-3090")).bytes(PROBLEM)
    assert 1 == len(list(folder.iterdir()))


def test_answers_come_back_as_written(folder):
    """What is written is read, and merged with what was there."""
    cache().write({"a": 1})
    cache().write({"b": 2})

    assert {"a": 1, "b": 2} == cache().read()
    assert ["cudnn-9.19.0-"] == [path.name[:13] for path in folder.iterdir()]


def test_cards_and_versions_do_not_mix(folder):
    """Another architecture, cuDNN or front end reads nothing; another capacity reads the same."""
    cache().write({"a": 1})

    assert {} == cache(deviceVer=890).read()
    assert {} == WorkspaceCache.of(card("rtx-3090").cudnn_description(), "9.20.0", "1.32.0").read()
    assert {} == WorkspaceCache.of(card("rtx-3090").cudnn_description(), "9.19.0", "1.33.0").read()
    assert {"a": 1} == cache(totalGlobalMem=1, deviceName="mine").read()
    assert folder.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"workspaces": 3}', '{"workspaces": {"a": "x"}}', "\x00"]
)
def test_a_damaged_file_is_as_good_as_none(folder, text):
    """A damaged file is read as empty, and the next answers replace it."""
    cache().write({"a": 1})
    path = next(folder.iterdir())
    path.write_text(text)

    assert {} == cache().read()
    cache().write({"b": 2})
    assert {"b": 2} == cache().read()


def test_a_damaged_answer_is_not_believed(folder):
    """A number that is none makes the whole file void."""
    cache().write({"a": 1})
    path = next(folder.iterdir())
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"workspaces": {"a": "many"}}))

    assert {} == cache().read()


def test_an_unwritable_home_is_no_failure(folder):
    """Where the folder cannot be made, answers are just not kept."""
    folder.write_text("a file where the folder would be")
    cache().write({"a": 1})

    assert {} == cache().read()
    assert WorkspaceOracle(card("rtx-3090")).bytes(PROBLEM) >= 0


def test_off_means_off(folder, monkeypatch):
    """With MEMPLAN_CACHE=off nothing is written or read."""
    cache().write({"a": 1})
    monkeypatch.setenv("MEMPLAN_CACHE", "off")

    assert cache_folder() is None
    assert {} == cache().read()
    cache().write({"b": 2})
    assert 1 == len(list(folder.iterdir()))


def test_the_folder_follows_the_base_directory_rules(monkeypatch, tmp_path):
    """A relative XDG_CACHE_HOME is ignored, as the specification asks; the default is ~/.cache."""
    monkeypatch.delenv("MEMPLAN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    assert tmp_path / ".cache" / "memplan" == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tmp_path / ".cache" / "memplan" == cache_folder()
