"""What a run folder's CSV files say, as columns of numbers."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memplan.answers import MEASURED, PREDICTED
from memplan.errors import BadInputError
from memplan.files import Source, is_there

DEVICE_QUANTITIES = ("allocated", "reserved", "device_used")
QUANTITIES = (*DEVICE_QUANTITIES, "host_resident")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run's curves; columns that the files lack are absent, never zero."""

    folder: Path
    epochs: tuple[float, ...] = ()
    training_losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    validation_losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """mAP by its column name, 0 to 1."""
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Learning rates by column name, at each epoch's end."""
    steps: tuple[float, ...] = ()
    memory: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    """Bytes by origin (`predicted`, `measured`) and quantity; nan where a row has none."""


def read_run(folder: Path) -> RunRecord:
    """Return what `results.csv` and `memory.csv` in the folder say.

    Raises:
        BadInputError: the folder is missing, or a file in it cannot be read as a table.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder} is no run folder. Give the folder that memplan train made.")
    results = _columns(folder / "results.csv")
    memory = _columns(folder / "memory.csv")
    losses = {name: values for name, values in results.items() if "loss" in name.lower()}
    return RunRecord(
        folder=folder,
        epochs=_counter(results, ("epoch",)),
        training_losses={n: v for n, v in losses.items() if "val" not in n.lower()},
        validation_losses={n: v for n, v in losses.items() if "val" in n.lower()},
        scores={n: v for n, v in results.items() if "map" in n.lower()},
        rates={n: v for n, v in results.items() if n.startswith("x/lr")},
        steps=_counter(memory, ("global_step", "step", "iteration", "batch")),
        memory=_memory_columns(memory),
    )


_MOST_BYTES = 256 << 20


def _columns(path: Path) -> dict[str, tuple[float, ...]]:
    """Return a table's numeric columns by name; a missing or empty file has none."""
    if not is_there(path):
        return {}
    source = Source(path=path, what="a table", most_bytes=_MOST_BYTES)
    try:
        lines = io.StringIO(source.text(), newline="")
        rows = [row for row in csv.reader(lines) if row and not row[0].startswith("#")]
    except csv.Error as error:
        raise source.bad(error) from None
    if not rows:
        return {}
    names = [name.strip() for name in rows[0]]
    columns = {
        name: tuple(_number(row[i]) if i < len(row) else math.nan for row in rows[1:])
        for i, name in enumerate(names)
    }
    return {name: values for name, values in columns.items() if not all(map(math.isnan, values))}


def _number(text: str) -> float:
    """Return a cell as a number, nan where it is none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _counter(columns: dict[str, tuple[float, ...]], names: Sequence[str]) -> tuple[float, ...]:
    """Return the first of the named columns that never falls, else 0, 1, 2, ..."""
    for name in names:
        values = columns.get(name, ())
        if values and all(a <= b for a, b in itertools.pairwise(values)):
            return values
    longest = max((len(values) for values in columns.values()), default=0)
    return tuple(float(i) for i in range(longest))


def _memory_columns(
    columns: dict[str, tuple[float, ...]],
) -> dict[tuple[str, str], tuple[float, ...]]:
    """Return bytes by origin and quantity, recognised by the words in the column's name."""
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for name, values in columns.items():
        for quantity in QUANTITIES:
            if quantity in name.lower().replace("-", "_"):
                origin = PREDICTED if PREDICTED in name.lower() else MEASURED
                found.setdefault((origin, quantity), values)
    return found
