"""What an answer says of versions that are not the installed ones."""

import pytest

from memplan.advise.notes import notes_on
from memplan.advise.question import Question, gpu_facts
from memplan.device import catalogue
from memplan.device.cudnn import installed_version
from memplan.device.replay import Simulator
from memplan.errors import UsageError


def _notes(**asked):
    question = Question(workload="torchvision:resnet18", **{"gpus": ("t4",), **asked})
    (simulator,) = question.simulators()
    return notes_on(simulator, question), gpu_facts(simulator)


def test_nothing_is_said_where_nothing_differs():
    """The installed cuDNN, named in full or in part, is what was asked."""
    version = installed_version()
    for named in (None, version, version.rpartition(".")[0]):
        assert () == _notes(cudnn_version=named)[0]


@pytest.mark.parametrize("version", ["8.9.2", "9.1", "9.190"])
def test_another_cudnn_is_named(version):
    """The answer names the version that was asked and the one that was meant."""
    (note,), _ = _notes(cudnn_version=version)

    assert f"cuDNN {installed_version()} was asked for workspaces, not {version};" in note


def test_a_card_that_the_installed_cudnn_left_behind_is_named():
    """Volta runs an older cuDNN than the one that answers for it."""
    (note,), _ = _notes(gpus=("v100-32gb",))

    assert "does not support the NVIDIA Tesla V100 32 GB (7.0): that card runs an older one" in note


def test_the_context_under_a_cuda_version_is_named():
    """Old CUDA has its own figure and an old cuDNN; new CUDA has the card's own figure."""
    (on_cudnn, on_context), gpu = _notes(cuda_version="11.3")
    (lazy,), own = _notes(cuda_version="12.1")

    assert "CUDA 11.3 has cuDNN 8 or older" in on_cudnn
    assert "Context taken as 1.23 GiB +- 154 MiB: " in on_context
    assert gpu.source in on_context
    assert "kernels are loaded when first used" in lazy
    assert own.context_bytes < gpu.context_bytes


def test_what_is_no_cudnn_version_is_refused():
    """The message shows how one is written."""
    with pytest.raises(
        UsageError, match=r"--cudnn 'v9' is no version of cuDNN, nor a folder. Write it as 9.12"
    ):
        Question(cudnn_version="v9")


@pytest.mark.parametrize(("version", "named"), [("2.11.1", ""), ("2.12.0+cu130", "2.12")])
def test_another_torch_than_the_rules_are_of_is_noted(version, named):
    """Answers under the release that operators' rules were read from carry no such note."""
    simulator = Simulator(catalogue.card("t4"), torch_version=version)
    told = [note for note in notes_on(simulator, Question(gpus=("t4",))) if "PyTorch 2.11" in note]

    assert ([f"torch {named} is installed" in note for note in told]) == [True] * bool(named)
