"""Names that mean a file in a checkout mean the same here, in one and without one."""

from pathlib import Path

import pytest
from memplan_models.yolo_data.dataset import read_description
from memplan_models.yolo_data.hyperparameters import load_hyperparameters

from memplan.acceptance import check_weights
from memplan.errors import BadInputError
from memplan.files import in_checkout
from memplan.registry import make_workload

ROW = "[[-1, 1, Conv, [8, 3, 2]]]"
DESCRIPTION = f"nc: 1\nbackbone: {ROW}\nhead: [[[-1], 1, DDetect, [nc]]]\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory laid out as the official repository is."""
    for folder in ("data/hyps", "models/detect", "utils"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_found_where_the_official_tool_looks(checkout):
    """Files of `data`, `models` and `utils` are found by name, those of the directory first."""
    (checkout / "data/mine.yaml").touch()

    assert Path("data/mine.yaml") == in_checkout(Path("mine.yaml"))
    (checkout / "mine.yaml").touch()
    assert Path("mine.yaml") == in_checkout(Path("mine.yaml"))
    assert Path("other.yaml") == in_checkout(Path("other.yaml"))


def test_a_name_of_several_files_is_refused(checkout):
    """Which is meant is not guessed."""
    (checkout / "data/a.yaml").touch()
    (checkout / "models/detect/a.yaml").touch()

    with pytest.raises(BadInputError, match=r"a\.yaml is several files: data/a\.yaml, models"):
        in_checkout(Path("a.yaml"))


def test_a_checkouts_own_files_come_before_those_that_ship(checkout):
    """An edited configuration or hyperparameter file of a checkout is the one that counts."""
    (checkout / "models/detect/yolov9-s.yaml").write_text(DESCRIPTION)
    (checkout / "data/hyps/hyp.scratch-high.yaml").write_text("lr0: 0.5\n")

    assert "models/detect/yolov9-s.yaml" == make_workload("yolov9-s.yaml").cfg
    assert 0.5 == load_hyperparameters("hyp.scratch-high.yaml")["lr0"]


@pytest.mark.parametrize("name", ["coco.yaml", "data/coco.yaml"])
def test_coco_is_known_without_a_checkout(tmp_path, monkeypatch, name):
    """Its description ships; images lie in `../datasets/coco` of the working directory."""
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    root = tmp_path / "datasets/coco"
    root.mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / f"{split}.txt").touch()

    found = read_description(Path(name))

    assert (80, "person", "toothbrush") == (found.num_classes, *found.class_names[::79])
    assert root == found.root
    (root / "val2017.txt").unlink()
    with pytest.raises(BadInputError, match=r"coco\. memplan downloads no data: put it there"):
        read_description(Path(name))


def test_official_weights_that_are_not_there_name_their_place(tmp_path):
    """Nothing is downloaded; the message says where the file is."""
    with pytest.raises(BadInputError, match=r"downloads nothing: .*WongKinYiu/yolov9/releases"):
        check_weights(tmp_path / "yolov9-c.pt")
    with pytest.raises(BadInputError, match=r"best\.pt\. Check the path"):
        check_weights(tmp_path / "best.pt")
