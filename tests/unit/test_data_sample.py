"""The sample set: what is written, that it is the same each time, and what is refused."""

import hashlib

import cv2
import pytest
import yaml
from memplan_models.yolo_data.dataset import read_description
from memplan_models.yolo_data.sample import NUM_IMAGES, SAMPLE_IMAGE_SIZE, write_sample
from memplan_models.yolo_data.scan import scan_split

from memplan.errors import BadInputError


def _digest(directory):
    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(directory).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def test_the_same_bytes_are_written_each_time(tmp_path):
    """Two writings agree in every file."""
    write_sample(tmp_path / "one")
    write_sample(tmp_path / "other")

    assert _digest(tmp_path / "one") == _digest(tmp_path / "other")


def test_the_sample_is_a_clean_data_set(tmp_path):
    """The set reads without a warning; every class is in both splits; boxes lie in the image."""
    description = read_description(write_sample(tmp_path / "sample"))

    assert 10 == description.num_classes
    for split, num_images in NUM_IMAGES.items():
        scanned = scan_split(description, split)
        assert () == scanned.warnings
        assert num_images == len(scanned.images)
        assert {(SAMPLE_IMAGE_SIZE,) * 2} == {(i.height, i.width) for i in scanned.images}
        assert set(range(10)) == {int(row[0]) for i in scanned.images for row in i.labels}
        for labels in (image.labels for image in scanned.images):
            assert len(labels) >= 1
            assert (labels[:, 1:3] - labels[:, 3:] / 2 >= -1e-6).all()
            assert (labels[:, 1:3] + labels[:, 3:] / 2 <= 1 + 1e-6).all()


def test_digits_stand_off_from_what_is_behind_them(tmp_path):
    """Within its box, a digit differs in brightness enough to be seen."""
    root = write_sample(tmp_path / "sample").parent
    for number in range(10):
        grey = cv2.imread(str(root / f"images/train/{number:04d}.jpg"), cv2.IMREAD_GRAYSCALE)
        for line in (root / f"labels/train/{number:04d}.txt").read_text().splitlines():
            x, y, w, h = (float(field) * SAMPLE_IMAGE_SIZE for field in line.split()[1:])
            box = grey[int(y - h / 2) : int(y + h / 2), int(x - w / 2) : int(x + w / 2)]
            assert int(box.max()) - int(box.min()) > 40


def test_the_description_credits_its_sources(tmp_path):
    """data.yaml names the authors and licences of what the images are made from."""
    text = write_sample(tmp_path / "sample").read_text()

    assert all(word in text for word in ("Alpaydin", "danielbuechele", "vultilion", "CC BY"))
    assert 10 == yaml.safe_load(text)["nc"]


def test_a_directory_with_files_is_not_written_to(tmp_path):
    """Only --force writes where something is already; the message names it."""
    (tmp_path / "mine.txt").write_text("keep")

    with pytest.raises(BadInputError, match="--force"):
        write_sample(tmp_path)
    write_sample(tmp_path, force=True)

    assert "keep" == (tmp_path / "mine.txt").read_text()


def test_a_file_is_no_directory(tmp_path):
    """A path that is a file is refused also with force."""
    (tmp_path / "file").write_text("")

    with pytest.raises(BadInputError, match="is a file"):
        write_sample(tmp_path / "file", force=True)
