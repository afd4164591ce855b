"""Label files: rows, polygons, duplicates, and the line that is at fault."""

from pathlib import Path

import pytest
from memplan_models.yolov9.labels import label_path, read_labels

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
        ("3 .5 .5 .1 .1", r"a\.txt:2 has class 3, but data\.yaml has 3 classes, 0 to 2"),
        ("-1 .5 .5 .1 .1", "class -1"),
        ("0.5 .5 .5 .1 .1", "class 0.5"),
        ("nan .5 .5 .1 .1", "class nan"),
        ("0 1.5 .5 .1 .1", "coordinate 1.5 outside 0 to 1"),
        ("0 .5 -.5 .1 .1", "coordinate -.5 outside 0 to 1"),
        ("0 .5 .5 nan .1", "coordinate nan outside 0 to 1"),
        ("0 .5 .5 .1", "has 4 columns"),
        ("0 .5 .5 .1 .1 .1", "has 6 columns"),
        ("0 .5 .5 .1 x", "not made of numbers"),
    ],
)
def test_a_bad_row_is_told_with_file_line_and_value(tmp_path, row, message):
    """The message names file and line, the value, and the bound."""
    with pytest.raises(BadInputError, match=message) as caught:
        _read(tmp_path, f"0 .5 .5 .1 .1\n{row}\n")

    assert "a.txt:2" in str(caught.value)
    assert "\n" not in str(caught.value)
