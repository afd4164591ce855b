"""`memplan data sample`: what is written and said, and what is refused."""

import pytest
from cli_set import memplan


@pytest.fixture(name="written", scope="module")
def _written(tmp_path_factory):
    """Return the folder and the finished command that wrote the set."""
    folder = tmp_path_factory.mktemp("data")
    return folder, memplan("data", "sample", "digits", cwd=folder)


def test_the_set_is_written_and_the_next_command_said(written):
    """Standard output is the counts and the train line; standard error says where it went."""
    folder, finished = written
    expected = (
        "digits/images/train: 400 images with labels\n"
        "digits/images/val: 60 images with labels\n"
        "Next: memplan train --auto-batch --cfg yolov9-t --device cpu "
        "--data digits/data.yaml --img 160 --epochs 2\n"
    )

    assert (0, expected) == (finished.returncode, finished.stdout)
    assert finished.stderr == "Wrote digits/data.yaml\n"
    assert 460 == len(list((folder / "digits").glob("images/*/*.jpg")))
    assert 460 == len(list((folder / "digits").glob("labels/*/*.txt")))


def test_a_folder_with_files_needs_force(written):
    """Without --force nothing is touched and the error is one line; with it the set is written."""
    folder, _ = written
    before = (folder / "digits/data.yaml").read_bytes()
    refused = memplan("data", "sample", "digits", cwd=folder)
    forced = memplan("data", "sample", "digits", "--force", cwd=folder)

    assert 1 == refused.returncode
    assert "Error: digits is not empty. Give another directory, or add --force.\n" == refused.stderr
    assert (0, before) == (forced.returncode, (folder / "digits/data.yaml").read_bytes())


def test_a_workload_without_a_sample_is_refused(tmp_path):
    """A torchvision model brings no data set."""
    finished = memplan("data", "sample", "x", "--workload", "torchvision:resnet18", cwd=tmp_path)

    assert 1 == finished.returncode
    assert "Error: Workload 'torchvision:resnet18' brings no sample set. Use yolov9-t.\n" == (
        finished.stderr
    )
    assert [] == list(tmp_path.iterdir())
