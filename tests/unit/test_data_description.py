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
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "numbered 0 to 1"),
        ("train: images/train\nval: images/val\nnc: many\n", "nc is 'many'"),
        ("train: images/train\nval: images/val\n", "names must be"),
        ("train: images/train\nnames: [a]\n", "no entry 'val'"),
        ("train: images/gone\nval: images/val\nnames: [a]\n", "something does not exist"),
        ("path: gone\ntrain: images/train\nval: images/val\nnames: [a]\n", "looked for in .*gone"),
        ("train: [1]\nval: images/val\nnames: [a]\n", "give a directory"),
        ("train: ''\nval: images/val\nnames: [a]\n", "train is ''; give a directory"),
        ("train: images/train\nval: 0\nnames: [a]\n", "val is 0; give a directory"),
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


def _taken(description):
    return [description.splits[split][0] for split in ("train", "val")]


def test_one_parent_too_many_is_left_out(root, tmp_path_factory, monkeypatch):
    """Roboflow writes `../train/images` beside `data.yaml`; started from anywhere, it is found."""
    monkeypatch.chdir(tmp_path_factory.mktemp("anywhere"))
    text = "train: ../images/train\nval: ../images/val\ntest: ../images/test\nnames: [a]\n"

    description = read_description(_write(root, text))

    assert [root / "images/train", root / "images/val"] == _taken(description)
    assert f"training images are taken from {root / 'images/train'}." in description.warnings[0]
    assert "test does not exist and is passed over" in description.warnings[1]


def test_entries_may_name_the_project_from_its_parent(root, tmp_path, monkeypatch):
    """`proj/images/train` in `proj/data.yaml` is found from the parent and from elsewhere."""
    project = tmp_path / "proj"
    project.mkdir()
    (root / "images").rename(project / "images")
    file = _write(project, "train: proj/images/train\nval: proj/images/val\nnames: [a]\n")
    for place in (tmp_path, project):
        monkeypatch.chdir(place)

        assert project / "images/train" == _taken(read_description(file))[0]


def test_a_root_beside_the_checkout_is_found(root, tmp_path, monkeypatch):
    """Ultralytics' `path: ../datasets/x` is looked for from the working directory."""
    (tmp_path / "datasets").mkdir()
    (root / "images").rename(tmp_path / "datasets/images")
    (tmp_path / "code/data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "code")
    text = "path: ../datasets\ntrain: images/train\nval: images/val\nnames: [a]\n"

    description = read_description(_write(tmp_path / "code/data", text))

    assert tmp_path / "datasets" == description.root


def test_the_working_directory_goes_first_and_the_other_is_named(root, tmp_path, monkeypatch):
    """Where both exist the official place is taken, and a warning names both."""
    here = tmp_path / "other"
    for split in ("train", "val"):
        (here / "images" / split).mkdir(parents=True)
    monkeypatch.chdir(root)

    description = read_description(
        _write(here, "train: images/train\nval: images/val\nnames: [a]\n")
    )

    assert root / "images/train" == _taken(description)[0]
    assert f"There is {here / 'images/train'} too" in description.warnings[0]


def test_names_are_trusted_over_their_number(root):
    """`nc` that disagrees with `names` is told and passed over, as officially."""
    description = read_description(
        _write(root, "train: images/train\nval: images/val\nnc: 1\nnames: [a, b]\n")
    )

    assert ("a", "b") == description.class_names
    assert "nc is 1 but there are 2 names" in description.warnings[0]


@pytest.mark.parametrize("encoding", ["gb18030", "cp1252", "utf-16"])
def test_a_description_in_another_encoding_is_read(root, encoding):
    """A legacy encoding is guessed and told; what is ASCII in it is as it was."""
    text = (
        "# 数据集的说明文件 训练图像和验证图像\n"
        if encoding != "cp1252"
        else "# für Bäume à côté\n"
    )
    text += "train: images/train\nval: images/val\nnames: [dog, cat]\n"
    (root / "data.yaml").write_bytes(text.encode(encoding))

    description = read_description(root / "data.yaml")

    assert ("dog", "cat") == description.class_names
    assert "is not in UTF-8; it was read as" in description.warnings[0]
