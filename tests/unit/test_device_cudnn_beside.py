"""Another cuDNN: found in a folder beside the installed one, and asked in its place."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest
from memplan_models.torchvision import FAMILY

from memplan.advise import Question
from memplan.device import catalogue, cudnn_asking, cudnn_beside
from memplan.device.cudnn import WorkspaceOracle, installed_version
from memplan.device.cudnn_beside import CudnnBeside, beside
from memplan.device.cudnn_descriptors import WHEELS
from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.phantom.installed import cuda_major


def _installed_library():
    for wheel in WHEELS:
        try:
            return Path(str(metadata.distribution(wheel).locate_file("nvidia/cudnn/lib")))
        except metadata.PackageNotFoundError:
            continue
    raise AssertionError("no cuDNN wheel is installed")


def _folder(base, version, major=None):
    """Return a folder as pip fills it, the libraries those of the installed wheel."""
    name = f"nvidia_cudnn_cu{major or cuda_major()}-{version}.46.dist-info"
    (base / name).mkdir(parents=True)
    (base / "nvidia" / "cudnn").mkdir(parents=True)
    (base / "nvidia" / "cudnn" / "lib").symlink_to(_installed_library())
    return base


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of memplan's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "memplan" / "cudnn"


def test_a_version_is_looked_for_in_the_cache(cache):
    """In part it names the newest; the installed one, and one that is not there, name none."""
    _folder(cache / "one", "9.90.0")
    newest = _folder(cache / "other", "9.90.10")

    assert CudnnBeside(newest, "9.90.10") == beside("9.90")
    assert "9.90.0" == beside("9.90.0").version
    assert beside("9.91") is None
    assert beside(installed_version()) is None


def test_a_folder_is_named_itself(tmp_path):
    """Its version is that of the wheel in it."""
    folder = _folder(tmp_path / "mine", "9.90.0")

    assert CudnnBeside(folder, "9.90.0") == beside(str(folder))


@pytest.mark.parametrize(
    ("version", "major", "words"),
    [("9.7.1", None, "cuDNN 9.7.1 in .* cannot be asked"), ("9.90.0", 11, "holds no cuDNN 9 for")],
)
def test_what_cannot_be_asked_is_refused(tmp_path, version, major, words):
    """Too old, or for another CUDA."""
    folder = _folder(tmp_path / "mine", version, major)

    with pytest.raises(BadInputError, match=words):
        beside(str(folder))


def test_neither_version_nor_folder_is_refused(tmp_path):
    """So is a folder without a wheel."""
    with pytest.raises(UsageError, match="no version of cuDNN, nor a folder"):
        beside("newest")
    with pytest.raises(BadInputError, match="pip install --no-deps --target"):
        beside(str(tmp_path))
    with pytest.raises(UsageError, match="no version of cuDNN, nor a folder"):
        Question(workload="yolov9-t", cudnn_version="newest")


def test_only_versions_that_read_descriptions_can_be_asked():
    """9.8 was the first; of a part that may be it, it may."""
    answers = [cudnn_beside.can_be_asked(one) for one in ("8.9.2", "9.7", "9", "9.8", "10.0")]

    assert [False, False, True, True, True] == answers


def test_the_library_in_the_folder_is_the_one_that_answers(tmp_path, monkeypatch):
    """A copy of the installed one answers alike; once it is broken, nothing answers."""
    monkeypatch.setenv("MEMPLAN_CACHE", "off")
    folder = _folder(tmp_path / "copy", "9.90.0")
    question = Question(
        workload=FAMILY.make("resnet18", image_size=64),
        gpus=(catalogue.card("rtx-3090"),),
        cudnn_version=str(folder),
    )
    tape = question.record(2, question.step_spec)
    (simulator,) = question.simulators()
    mine = WorkspaceOracle(simulator.card).bytes_many(tape.convolutions)

    assert "9.90.0" == simulator.oracle.cudnn_version == question.versions["cudnn"]
    assert mine == simulator.oracle.bytes_many(tape.convolutions)

    library = folder / "nvidia" / "cudnn" / "lib"
    library.unlink()
    shutil.copytree(_installed_library(), library, ignore=lambda *_: ["libcudnn_graph.so.9"])
    cudnn_asking._children.pop(folder).close()
    with pytest.raises(MemplanError, match=r"libcudnn_graph\.so\.9"):
        WorkspaceOracle(simulator.card, question.cudnn).bytes_many(tape.convolutions)
