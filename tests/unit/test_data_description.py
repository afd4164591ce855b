"""Reading data.yaml: what is understood, and what each fault is told as."""

import cv2
import numpy as np
import pytest
from memplan_models.yolo_data.dataset import read_description

from memplan.errors import BadInputError


def _write(directory, text):
    (directory / "data.yaml").write_text(text, encoding="utf-8")
    return directory / "data.yaml"


@pytest.fixture
def root(tmp_path):
    """A data set of two training images and one validation image."""
    for split, names in (("train", "ab"), ("val", "c")):
        (tmp_path / "images" / split).mkdir(parents=True)
        for name in names:
            file = tmp_path / "images" / split / f"{name}.png"
            cv2.imwrite(str(file), np.zeros((16, 16, 3), np.uint8))
    return tmp_path


def test_directories_hold_the_images_of_a_split(root):
    """Images below a split's directory are found, sorted."""
    description = read_description(
        _write(root, "path: .\ntrain: images/train\nval: images/val\nnames: [dog, cat]\n")
    )

    assert ["a.png", "b.png"] == [path.name for path in description.find_images("train")[0]]
    assert ("dog", "cat") == description.class_names


def test_a_list_file_names_images_relative_to_itself(root):
    """A list file's lines are paths from the file's own directory; a list of sources is joined."""
    (root / "train.txt").write_text("./images/train/b.png\n\nimages/train/a.png\n")
    description = read_description(
        _write(root, "train: [train.txt, images/val]\nval: images/val\nnames: {0: dog}\n")
    )

    assert ["a.png", "b.png", "c.png"] == [p.name for p in description.find_images("train")[0]]


def test_the_root_may_be_relative_to_the_working_directory(root, tmp_path, monkeypatch):
    """A root that is not beside the file is looked for where the command was started."""
    (tmp_path / "elsewhere").mkdir()
    text = "path: images\ntrain: train\nval: val\nnc: 2\n"
    monkeypatch.chdir(root)

    description = read_description(_write(tmp_path / "elsewhere", text))

    assert (root / "images").resolve() == description.root
    assert ("0", "1") == description.class_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\nval: images/val\nnc: 3\nnames: [a, b]\n", "nc is 3 but there are 2"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "numbered 0 to 1"),
        ("train: images/train\nval: images/val\nnc: many\n", "nc is 'many'"),
        ("train: images/train\nval: images/val\n", "names must be"),
        ("train: images/train\nnames: [a]\n", "no entry 'val'"),
        ("train: images/gone\nval: images/val\nnames: [a]\n", "which does not exist"),
        ("path: gone\ntrain: images/train\nval: images/val\nnames: [a]\n", "path gone is no"),
        ("train: [1]\nval: images/val\nnames: [a]\n", "give a directory"),
        ("[", "it is no YAML"),
        ("- train\n", "holds no mapping"),
        ("!!python/object/apply:os.getcwd []", "it is no YAML"),
    ],
)
def test_a_fault_in_the_description_is_told_in_one_line(root, text, message):
    """Each fault names the file, the value and what is wanted, in one line."""
    with pytest.raises(BadInputError, match=message) as caught:
        read_description(_write(root, text))

    assert "\n" not in str(caught.value)
    assert "data.yaml" in str(caught.value)


def test_a_missing_description_names_the_sample_command(tmp_path):
    """Without a data.yaml the message says how to get one."""
    with pytest.raises(BadInputError, match="memplan data sample DIR"):
        read_description(tmp_path / "data.yaml")


def test_a_directory_without_images_is_refused(root):
    """A split with no image file of a known kind says which kinds are read."""
    (root / "empty").mkdir()
    description = read_description(_write(root, "train: empty\nval: images/val\nnames: [a]\n"))

    with pytest.raises(BadInputError, match=r"No images for 'train'.*\.png"):
        description.find_images("train")
