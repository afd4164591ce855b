"""cuDNN's answers on disk."""

import pytest

from memplan.convolution import ConvolutionProblem
from memplan.device import cudnn_asking
from memplan.device.catalogue import card
from memplan.device.cudnn import WorkspaceOracle
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
    return WorkspaceCache.of(card("rtx-3090").cudnn_description() | changes, "9.19.0")


def test_a_second_run_asks_nothing(folder, monkeypatch):
    """Answers outlive the process: a new oracle has them without asking cuDNN."""
    first = WorkspaceOracle(card("rtx-3090"))
    expected = (first.bytes(PROBLEM), first.benchmark_many([PROBLEM]))
    again = "cuDNN was asked again"
    monkeypatch.setattr(cudnn_asking, "workspaces", lambda *_, **__: pytest.fail(again))
    second = WorkspaceOracle(card("rtx-3090"))

    assert expected == (second.bytes(PROBLEM), second.benchmark_many([PROBLEM]))
    assert 2 == len(list(folder.glob("cudnn-*")))


def test_answers_come_back_as_written(folder):
    """What is added is read with what was there, and the last word counts."""
    cache().add({"a": (1,), "b": (1,)})
    cache().add({"b": (2, 3)})
    cache().add({})

    assert {"a": (1,), "b": (2, 3)} == cache().read()
    assert ["cudnn-9.19.0-"] == [path.name[:13] for path in folder.iterdir()]
    assert 3 == len(next(folder.iterdir()).read_text().split("\n"))


def test_cards_and_versions_do_not_mix(folder):
    """Another architecture, cuDNN or mode reads nothing; another capacity reads the same."""
    cache().add({"a": (1,)})
    description = card("rtx-3090").cudnn_description()

    assert {} == cache(deviceVer=890).read()
    assert {} == WorkspaceCache.of(description, "9.20.0").read()
    assert {} == WorkspaceCache.of(description, "9.19.0", benchmark=True).read()
    assert {"a": (1,)} == cache(totalGlobalMem=1, deviceName="mine").read()
    assert folder.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": [3]}', "\x00", "\udcff", "[" * 9999]
)
def test_a_damaged_file_is_as_good_as_none(folder, text):
    """A damaged file is read as empty, and the next answers replace it."""
    cache().add({"a": (1,)})
    path = next(folder.iterdir())
    path.write_text(text, errors="surrogateescape")

    assert {} == cache().read()
    cache().add({"b": (2,)})
    assert {"b": (2,)} == cache().read()


@pytest.mark.parametrize(
    "line",
    [
        *("[1]", '{"a": [1', "[" * 9999),
        *(f'{{"a": {value}}}' for value in ("1", "[]", '["x"]', "[-1]", "[1e3]", "[true]")),
        f'{{"a": [{2**63}]}}',
    ],
)
def test_a_damaged_line_is_not_believed(folder, line):
    """What a crash cut short, or nobody could have written, counts for nothing; the rest does."""
    cache().add({"b": (2,)})
    with next(folder.iterdir()).open("a") as file:
        file.write(f"\n{line}")
    cache().add({"c": (0,)})

    assert {"b": (2,), "c": (0,)} == cache().read()


def test_an_unwritable_home_is_no_failure(folder):
    """Where the folder cannot be made, answers are just not kept."""
    folder.write_text("a file where the folder would be")
    cache().add({"a": (1,)})

    assert {} == cache().read()
    assert WorkspaceOracle(card("rtx-3090")).bytes(PROBLEM) >= 0


def test_off_means_off(folder, monkeypatch):
    """With MEMPLAN_CACHE=off nothing is written or read."""
    cache().add({"a": (1,)})
    monkeypatch.setenv("MEMPLAN_CACHE", "off")

    assert cache_folder() is None
    assert {} == cache().read()
    cache().add({"b": (2,)})
    assert 1 == len(list(folder.iterdir()))


def test_the_folder_follows_the_base_directory_rules(monkeypatch, tmp_path):
    """A relative XDG_CACHE_HOME is ignored, as the specification asks; the default is ~/.cache."""
    monkeypatch.delenv("MEMPLAN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")

    assert tmp_path / ".cache" / "memplan" == cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tmp_path / ".cache" / "memplan" == cache_folder()


def test_what_was_asked_on_has_a_file_of_its_own(monkeypatch, tmp_path):
    """Answers that another phantom's libraries led to are not taken for those of this one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MEMPLAN_CACHE", raising=False)
    one, other = (WorkspaceCache.of({"sms": 1}, "9.19.0", asked_by=word) for word in ("a", "b"))
    one.add({"forward": (5,)})

    assert {"forward": (5,)} == one.read()
    assert {} == other.read()
