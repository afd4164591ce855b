"""Label files: rows, polygons, duplicates, and the line that is at fault."""

from pathlib import Path

import pytest
from memplan_models.yolo_data.labels import UnreadableLabelsError, label_path, read_labels

from memplan.errors import BadInputError


def _read(tmp_path, text, num_classes=3):
    file = tmp_path / "a.txt"
    file.write_text(text, encoding="utf-8")
    return read_labels(file, num_classes)


def test_the_last_images_directory_becomes_labels():
    """Only the last directory called images is replaced, and the suffix."""
    assert Path("images/set/labels/train/a.txt") == label_path(
        Path("images/set/images/train/a.jpg")
    )
    assert Path("photos/a.txt") == label_path(Path("photos/a.jpg"))


def test_rows_are_class_and_box(tmp_path):
    """A row of five columns is class, centre and size; blank lines do not count."""
    labels = _read(tmp_path, "2 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.1 0.2\n")

    assert ((2, 0.5, 0.5, 0.25, 0.5), (0, 0.1, 0.2, 0.1, 0.2)) == labels.rows


def test_a_polygon_becomes_its_bounding_box(tmp_path):
    """A row of more columns is a polygon; its box spans the points."""
    labels = _read(tmp_path, "1 0.25 0.25 0.75 0.25 0.5 0.75\n")

    assert ((1, 0.5, 0.5, 0.5, 0.5),) == labels.rows
    assert 1 == labels.num_polygons


def test_duplicates_and_empty_boxes_are_counted(tmp_path):
    """A repeated row is kept once; a row of no area is left out; both are counted."""
    labels = _read(tmp_path, "0 .5 .5 .2 .2\n0 0.5 0.5 0.2 0.2\n0 .5 .5 0 .2\n")

    assert 1 == len(labels.rows)
    assert (1, 1) == (labels.num_duplicates, labels.num_without_area)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("-1 .5 .5 .1 .1", "class -1"),
        ("0.5 .5 .5 .1 .1", "class 0.5"),
        ("nan .5 .5 .1 .1", "class nan"),
        ("0 1.5 .5 .1 .1", "coordinate 1.5 outside 0 to 1"),
        ("0 .5 -.5 .1 .1", "coordinate -.5 outside 0 to 1"),
        ("0 .5 .5 nan .1", "coordinate nan outside 0 to 1"),
        ("0 .5 .5 .1", "has 4 columns"),
        ("0 .5 .5 .1 .1 .1", "has 6 columns"),
        ("0,.5,.5,.1,.1", "has commas or semicolons between"),
        ("0 " + ".5 " * 55, "pose row of a box and 17 keypoints"),
        ("0 .5 .5 .1 x", "not made of numbers"),
    ],
)
def test_a_bad_row_is_left_out_and_told_with_file_line_and_value(tmp_path, row, message):
    """The others stay; the message names file and line, the value, and the bound."""
    labels = _read(tmp_path, f"0 .5 .5 .1 .1\n{row}\n{row}\n")

    assert ((0, 0.5, 0.5, 0.1, 0.1),) == labels.rows
    assert 2 == labels.num_bad
    assert "a.txt:2" in labels.first_bad
    assert message in labels.first_bad
    assert "\n" not in labels.first_bad


def test_a_class_beyond_the_description_is_refused(tmp_path):
    """A class that data.yaml does not have stops everything: labels and names do not fit."""
    with pytest.raises(BadInputError, match=r"a\.txt:2 has class 3, but data\.yaml has 3 classes"):
        _read(tmp_path, "0 .5 .5 .1 .1\n3 .5 .5 .1 .1\n")


def test_polygons_and_boxes_may_share_a_file(tmp_path):
    """Each row says by its columns what it is; the polygon's points are kept beside its box."""
    labels = _read(tmp_path, "0 .5 .5 .2 .2\n1 0.25 0.25 0.75 0.25 0.5 0.75\n")

    assert ((), (0.25, 0.25, 0.75, 0.25, 0.5, 0.75)) == labels.polygons
    assert (0, 0.5, 0.5, 0.2, 0.2) == labels.rows[0]


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path):
    """Bytes that are not UTF-8 are no labels."""
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe0 .5")

    with pytest.raises(UnreadableLabelsError, match=r"a\.txt cannot be read as labels"):
        read_labels(tmp_path / "a.txt", 3)
