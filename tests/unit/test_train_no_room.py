"""Out of memory before and after training: read again, and never taken for damage."""

import io
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train_toy import Toy, toy_options

from memplan.errors import DeviceOutOfMemoryError
from memplan.training import train
from memplan.training.checkpoint import load_checkpoint


class _FailsAt(TorchDispatchMode):
    """Finds no room for the so-many-th operator, and for each after it where that lasts."""

    def __init__(self, at, error=MemoryError, *, lasts=False):
        super().__init__()
        self.left = at
        self.error = error
        self.lasts = lasts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        self.left -= 1
        if self.left == -1 or (self.lasts and self.left < 0):
            raise self.error()
        return func(*args, **(kwargs or {}))


def _cannot_allocate():
    return RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after the first of two epochs."""
    folder = tmp_path_factory.mktemp("run")

    def stop(name, facts):
        del facts
        if name == "saved":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Toy(norm=True), toy_options(folder), on_event=stop, stream=io.StringIO())
    return folder / "runs/toy"


@pytest.mark.parametrize("error", [MemoryError, _cannot_allocate])
@pytest.mark.parametrize("at", range(0, 160, 40))
def test_a_resumed_run_reads_again_what_found_no_room(stopped, tmp_path, at, error):
    """The checkpoint is not set aside as damaged, and the run ends as it does undisturbed."""
    ends = []
    for name, mode in (("a", _FailsAt(-2)), ("b", _FailsAt(at, error))):
        folder = tmp_path / name / "toy"
        shutil.copytree(stopped, folder)
        with mode:
            train(Toy(norm=True), toy_options(tmp_path, resume=folder), stream=io.StringIO())
        ends.append(load_checkpoint(folder / "weights/last.pt"))
        assert not (folder / "weights/last.pt.damaged").exists()

    assert ends[0].steps == ends[1].steps
    for name, weight in ends[0].model.items():
        assert torch.equal(weight, ends[1].model[name]), name


def test_a_checkpoint_that_never_finds_room_is_left_alone(stopped, tmp_path):
    """One line, and the file stays where it is."""
    options = toy_options(tmp_path, resume=stopped)
    refused = pytest.raises(DeviceOutOfMemoryError, match=r"last\.pt finds no room in host memory")
    with refused, _FailsAt(0, lasts=True):
        train(Toy(norm=True), options, stream=io.StringIO())

    assert load_checkpoint(stopped / "weights/last.pt").epoch == 1


def test_a_finished_run_stays_finished_where_its_best_cannot_be_stripped(tmp_path):
    """The file is only larger; a warning says so."""
    said = io.StringIO()
    failing = _FailsAt(0, lasts=True)

    def on_event(name, facts):
        del facts
        if name == "finished":
            failing.__enter__()

    try:
        summary = train(Toy(), toy_options(tmp_path), on_event=on_event, stream=said)
    finally:
        failing.__exit__(None, None, None)

    assert 2 == summary.epochs_done
    assert "best.pt stays as large as it is" in said.getvalue()
