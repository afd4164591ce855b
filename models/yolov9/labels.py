"""Label files: one text file an image, one row an object."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from memplan.errors import BadInputError

# Coordinates written with six decimals may round to just above 1.
_ROUNDING = 1e-6

Row = tuple[int, float, float, float, float]


@dataclass(frozen=True)
class Labels:
    """The usable rows of one label file, and what was left out."""

    rows: tuple[Row, ...]
    """Class, centre x, centre y, width, height; normalised to the image."""
    num_duplicates: int = 0
    """Rows that repeated an earlier one."""
    num_without_area: int = 0
    """Rows of zero width or height."""
    num_polygons: int = 0
    """Rows that were polygons; each became its bounding box."""


def label_path(image_path: Path) -> Path:
    """Return where an image's labels are: the last `images` directory becomes `labels`."""
    directories = list(image_path.parent.parts)
    for position in range(len(directories) - 1, -1, -1):
        if directories[position] == "images":
            directories[position] = "labels"
            break
    return Path(*directories, image_path.stem + ".txt")


def read_labels(path: Path, num_classes: int) -> Labels:
    """Return the checked rows of a label file.

    Raises:
        BadInputError: a row is malformed, its class is not below `num_classes`, or a coordinate is
            outside 0 to 1; the message names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as labels: {error}.") from None
    rows: dict[Row, None] = {}
    num_rows = num_without_area = num_polygons = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        row = _parse_row(fields, f"{path}:{number}", num_classes)
        num_polygons += len(fields) > 5
        if row[3] <= 0 or row[4] <= 0:
            num_without_area += 1
            continue
        num_rows += 1
        rows[row] = None
    return Labels(tuple(rows), num_rows - len(rows), num_without_area, num_polygons)


def _parse_row(fields: list[str], where: str, num_classes: int) -> Row:
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        raise BadInputError(
            f"{where} has {len(fields)} columns. A box has 5 (class x y width height), a polygon "
            "a class and 3 or more points."
        )
    try:
        values = [float(field) for field in fields]
    except ValueError:
        raise BadInputError(f"{where} is not made of numbers: {' '.join(fields)[:80]!r}.") from None
    label = values[0]
    if not math.isfinite(label) or label != int(label) or not 0 <= label < num_classes:
        raise BadInputError(
            f"{where} has class {fields[0]}, but data.yaml has {num_classes} classes, "
            f"0 to {num_classes - 1}. Correct the row, or nc and names."
        )
    for value, field in zip(values[1:], fields[1:], strict=True):
        if not 0 <= value <= 1 + _ROUNDING:  # also false for NaN
            raise BadInputError(
                f"{where} has coordinate {field} outside 0 to 1. Divide by the image's width and "
                "height."
            )
    coordinates = [min(value, 1.0) for value in values[1:]]
    if len(coordinates) > 4:
        coordinates = _bounding_box(coordinates)
    x, y, width, height = coordinates
    return int(label), x, y, width, height


def _bounding_box(points: list[float]) -> list[float]:
    xs, ys = points[0::2], points[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return size in bytes and modification time in nanoseconds, None when there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat over 100,000 files
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
