"""Tables of numbers that a run left as CSV files: columns by name, within bounds."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from memplan.files import Source, is_there

_MOST_BYTES = 256 << 20


def cells_of(path: Path, *, most_bytes: int = _MOST_BYTES) -> list[list[str]]:
    """Return a table's rows, header first; a missing or empty file has none.

    Raises:
        BadInputError: the file is no table, or larger than `most_bytes`.
    """
    if not is_there(path):
        return []
    source = Source(path=path, what="a table", most_bytes=most_bytes)
    try:
        lines = io.StringIO(source.text(), newline="")
        return [row for row in csv.reader(lines) if row and not row[0].startswith("#")]
    except csv.Error as error:
        raise source.bad(error) from None


def columns_of(path: Path) -> dict[str, tuple[float, ...]]:
    """Return a table's numeric columns by name, nan where a cell holds no number.

    Columns without any number are left out; a missing or empty file has none.

    Raises:
        BadInputError: the file cannot be read as a table.
    """
    rows = cells_of(path)
    if not rows:
        return {}
    names = [name.strip() for name in rows[0]]
    columns = {
        name: tuple(number(row[i]) if i < len(row) else math.nan for row in rows[1:])
        for i, name in enumerate(names)
    }
    return {name: values for name, values in columns.items() if not all(map(math.isnan, values))}


def number(text: str) -> float:
    """Return a cell as a number, nan where it is none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
