"""Checkpoints: read back whole, written atomically, refused where unsafe."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_toy import Toy, toy_options

from memplan.errors import BadInputError
from memplan.training import train
from memplan.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture(name="run")
def _run(tmp_path):
    return train(Toy(), toy_options(tmp_path)).run_folder


def test_a_checkpoint_holds_tensors_and_plain_values_only(run):
    """PyTorch's own safe loader reads the file."""
    content = torch.load(run / "weights/last.pt", weights_only=True)

    assert "memplan.checkpoint/2" == content["schema"]
    assert 2 == content["epoch"]
    assert content["finished"]


def test_weights_and_average_are_full_precision(run):
    """Neither the model nor its average is rounded to half precision."""
    checkpoint = load_checkpoint(run / "weights/last.pt")

    tensors = [*checkpoint.model.values(), *checkpoint.ema.values()]
    assert {torch.float32} == {tensor.dtype for tensor in tensors}


def test_a_failed_save_keeps_the_previous_file(run, monkeypatch):
    """When the disk is full halfway, the old checkpoint is untouched and nothing else is left."""
    path = run / "weights/last.pt"
    before = path.read_bytes()
    checkpoint = load_checkpoint(path)

    def fill_the_disk(_content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(BadInputError, match=r"No space left on device\. The previous file is kept"):
        save_checkpoint(path, checkpoint)

    assert before == path.read_bytes()
    assert ["best.pt", "last.pt", "previous.pt"] == sorted(
        file.name for file in path.parent.iterdir()
    )


class _Version(str):
    """As `torch.__version__` is: text of a type of its own."""

    __slots__ = ()


def test_numbers_and_texts_of_other_types_are_saved_as_plain_ones(run):
    """What an evaluator or a library hands over does not make a file that is then refused."""
    path = run / "weights/last.pt"
    odd = replace(
        load_checkpoint(path),
        metrics={"fitness": np.float64(0.5), "count": np.int64(3)},
        versions={"torch": _Version("2.11.0")},
    )
    save_checkpoint(path, odd)
    found = load_checkpoint(path)

    assert ({"fitness": 0.5, "count": 3}, {"torch": "2.11.0"}) == (found.metrics, found.versions)
    assert str is type(found.versions["torch"])


def test_what_could_not_be_read_again_is_not_saved(run):
    """An object of some class is named, and the previous file stays."""
    path = run / "weights/last.pt"
    before = path.read_bytes()
    odd = replace(load_checkpoint(path), data={"order": [range(3)]})
    with pytest.raises(BadInputError, match=r"data\.order\[0\] is a range"):
        save_checkpoint(path, odd)

    assert before == path.read_bytes()


class _Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    """The code in a malicious pickle does not run, and the error is one line."""
    path = tmp_path / "evil.pt"
    torch.save({"schema": _Evil()}, path)

    with pytest.raises(BadInputError, match="is refused") as caught:
        load_checkpoint(path)

    assert "\n" not in str(caught.value)
    assert "" == capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"schema": 1})])
def test_damaged_files_are_one_line_errors(tmp_path, content):
    """An empty file, text and a bare pickle are refused, without a traceback's lines."""
    path = tmp_path / "last.pt"
    path.write_bytes(content)

    with pytest.raises(BadInputError) as caught:
        load_checkpoint(path)

    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_a_one_line_error(run):
    """A file cut in half cannot be read, and the message says so."""
    path = run / "weights/last.pt"
    path.write_bytes(path.read_bytes()[:2000])

    with pytest.raises(BadInputError, match="cannot be read"):
        load_checkpoint(path)


def test_a_foreign_checkpoint_cannot_be_resumed(tmp_path):
    """A bare state dict is not a run; the way out is --weights."""
    path = tmp_path / "x.pt"
    torch.save({"model": {"a": torch.zeros(1)}}, path)

    with pytest.raises(BadInputError, match="give it as --weights"):
        load_checkpoint(path)


def test_resume_finds_the_file_from_file_folder_or_parent(run):
    """A checkpoint, its run folder and a folder above it all mean the same file."""
    expected = run / "weights/last.pt"

    assert expected == find_checkpoint(expected)
    assert expected == find_checkpoint(run)
    assert expected == find_checkpoint(run.parent)


def test_resuming_nothing_is_an_error(tmp_path):
    """A missing path and an empty folder name what to give instead."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(BadInputError, match=r"Give a run folder or its weights/last\.pt"):
            find_checkpoint(path)
