"""Label files: one text file an image, one row an object, a box or a polygon."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from memplan.errors import BadInputError
from memplan.files import MIB, Source

# Coordinates written with six decimals may round to just above 1.
_ROUNDING = 1e-6
_MOST_BYTES = 64 * MIB  # one image's

Row = tuple[int, float, float, float, float]


@dataclass(frozen=True)
class Labels:
    """The usable rows of one label file, and what was left out."""

    rows: tuple[Row, ...]
    """Class, centre x, centre y, width, height; normalised to the image. A polygon's is its box."""
    polygons: tuple[tuple[float, ...], ...] = ()
    """x, y, x, y, ... of each row's polygon, normalised; empty for a row that is a box."""
    num_duplicates: int = 0
    """Rows that repeated an earlier one."""
    num_without_area: int = 0
    """Rows of zero width or height."""
    num_bad: int = 0
    """Rows that are no object: malformed, or with a coordinate outside 0 to 1."""
    first_bad: str = ""
    """The first of those, with file, line and what is wrong; empty where there is none."""

    @property
    def num_polygons(self) -> int:
        """Rows that are polygons."""
        return sum(bool(points) for points in self.polygons)


class UnreadableLabelsError(BadInputError):
    """A label file that cannot be read as text; its image is left out."""


class _BadRowError(ValueError):
    """A row that is left out; its text says why."""


def label_path(image_path: Path) -> Path:
    """Return where an image's labels are: the last `images` directory becomes `labels`."""
    directories = list(image_path.parent.parts)
    for position in range(len(directories) - 1, -1, -1):
        if directories[position] == "images":
            directories[position] = "labels"
            break
    return Path(*directories, image_path.stem + ".txt")


def read_labels(path: Path, num_classes: int) -> Labels:
    """Return the usable rows of a label file; unusable ones are counted and the first is told.

    A row of five columns is a box, one of seven or more a polygon, also side by side in a file.
    (The official scan reads the boxes of such a file as polygons of two points.)

    Raises:
        UnreadableLabelsError: the file is no text.
        BadInputError: a class is not below `num_classes`, which says that labels and `data.yaml`
            do not belong together; the message names file and line.
    """
    text = Source(
        path=path, what="labels", most_bytes=_MOST_BYTES, error=UnreadableLabelsError
    ).text()
    found: dict[tuple[Row, tuple[float, ...]], None] = {}
    num_rows = num_without_area = num_bad = 0
    first_bad = ""
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            row, polygon = _parse_row(fields, f"{path}:{number}", num_classes)
        except _BadRowError as error:
            num_bad += 1
            first_bad = first_bad or str(error)
            continue
        if row[3] <= 0 or row[4] <= 0:
            num_without_area += 1
            continue
        num_rows += 1
        found[row, polygon] = None
    rows = tuple(row for row, _ in found)
    polygons = tuple(polygon for _, polygon in found)
    return Labels(rows, polygons, num_rows - len(rows), num_without_area, num_bad, first_bad)


def _parse_row(fields: list[str], where: str, num_classes: int) -> tuple[Row, tuple[float, ...]]:
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        raise _BadRowError(_wrong_columns(fields, where))
    try:
        values = [float(field) for field in fields]
    except ValueError:
        raise _BadRowError(f"{where} is not made of numbers: {' '.join(fields)[:80]!r}") from None
    label = values[0]
    if not math.isfinite(label) or label != int(label) or label < 0:
        raise _BadRowError(f"{where} has class {fields[0]}, which is no whole number from 0")
    if label >= num_classes:
        raise BadInputError(
            f"{where} has class {fields[0]}, but data.yaml has {num_classes} classes, "
            f"0 to {num_classes - 1}. Correct the row, or nc and names."
        )
    for value, field in zip(values[1:], fields[1:], strict=True):
        if not 0 <= value <= 1 + _ROUNDING:  # also false for NaN
            raise _BadRowError(
                f"{where} has coordinate {field} outside 0 to 1; divide by the image's width and "
                "height"
            )
    coordinates = tuple(min(value, 1.0) for value in values[1:])
    if len(coordinates) == 4:
        return (int(label), *coordinates), ()
    return (int(label), *_bounding_box(coordinates)), coordinates


def _wrong_columns(fields: list[str], where: str) -> str:
    """Return what is likely wrong with a row that is neither a box nor a polygon."""
    if any("," in field or ";" in field for field in fields):
        return f"{where} has commas or semicolons between its numbers; put spaces there"
    count = len(fields)
    if count > 5 and (count - 5) % 3 == 0:
        return (
            f"{where} has {count} columns, as a pose row of a box and {(count - 5) // 3} keypoints "
            "has; boxes are trained here: keep the first five"
        )
    return (
        f"{where} has {count} columns; a box has 5 (class x y width height), a polygon "
        "a class and 3 or more points"
    )


def _bounding_box(points: tuple[float, ...]) -> tuple[float, float, float, float]:
    xs, ys = points[0::2], points[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return size in bytes and modification time in nanoseconds, None when there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat over 100,000 files
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
