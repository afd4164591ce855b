"""What a run folder says: curves, memory, events, accuracy by class, settings, pictures."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.answers import MEASURED, PREDICTED
from memplan.errors import BadInputError, MemplanError
from memplan.files import Source, is_file, is_there
from memplan.present.tables import cells_of, columns_of, number

DEVICE_QUANTITIES = ("allocated", "reserved", "device_used")
HOST_RESIDENT = "host_resident"
QUANTITIES = (*DEVICE_QUANTITIES, HOST_RESIDENT)

# Pictures that memplan's own data and evaluation leave, and what they show.
_PICTURES = {
    "validation_batch.png": "Predictions beside labels, first validation images",
    "labels.png": "Training labels: objects by class, where they lie, how large they are",
    "train_batch_1.png": "First training batch, as the network sees it",
}
_MOST_EVENT_BYTES = 64 << 20
_MOST_CLASSES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened: out of memory, backed off, resumed, warned."""

    name: str
    time: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class of the best epoch's validation; scores are 0 to 1, nan where there are none."""

    name: str
    images: int
    objects: int
    precision: float
    recall: float
    map50: float
    map50_95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Counts: rows are what was predicted, columns what was there; background is last."""

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    terms: str
    """Confidence and overlap that count, as the file has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCurves:
    """One quantity of all classes against a common x; nan where not defined."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    by_class: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run's records; what the files lack is absent, never zero."""

    folder: Path
    epochs: tuple[float, ...] = ()
    training_losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    validation_losses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """mAP by its column name, 0 to 1."""
    rates: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Learning rates by column name, at each epoch's end."""
    images_per_second: tuple[float, ...] = ()
    """Of each epoch's training."""
    seconds: tuple[float, ...] = ()
    """Of each epoch."""
    steps: tuple[float, ...] = ()
    step_epochs: tuple[float, ...] = ()
    """The epoch of each of `steps`; empty where the table does not say."""
    memory: dict[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    """Bytes by origin (`predicted`, `measured`) and quantity; nan where a row has none."""
    events: tuple[RunEvent, ...] = ()
    classes: tuple[ClassScore, ...] = ()
    """The first is of all classes."""
    confusion: Confusion | None = None
    precision_recall: ClassCurves | None = None
    f1: ClassCurves | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `args.yaml`."""
    pictures: tuple[tuple[Path, str], ...] = ()
    """PNG files and what they show."""

    def facts_of(self, *names: str) -> Mapping[str, Any]:
        """Return the facts of the newest event of these names, empty where there is none."""
        return next((e.facts for e in reversed(self.events) if e.name in names), {})

    @property
    def host_baseline_bytes(self) -> int | None:
        """What the process held in host memory before its first step, where it was recorded."""
        found = self.facts_of("started", "resumed").get("host_resident_bytes")
        return found if isinstance(found, int) and found > 0 else None


def read_run(folder: Path) -> RunRecord:
    """Return what the files in a run folder say.

    Raises:
        BadInputError: the folder is missing, or a file in it cannot be read as a table.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder} is no run folder. Give the folder that memplan train made.")
    results = columns_of(folder / "results.csv")
    memory = columns_of(folder / "memory.csv")
    losses = {name: values for name, values in results.items() if "loss" in name.lower()}
    plots = folder / "plots"
    return RunRecord(
        folder=folder,
        epochs=_counter(results, ("epoch",)),
        training_losses={n: v for n, v in losses.items() if "val" not in n.lower()},
        validation_losses={n: v for n, v in losses.items() if "val" in n.lower()},
        scores={n: v for n, v in results.items() if "map" in n.lower()},
        rates={n: v for n, v in results.items() if n.startswith("x/lr")},
        images_per_second=results.get("images_per_second", ()),
        seconds=results.get("seconds", ()),
        steps=_counter(memory, ("global_step", "step", "iteration", "batch")),
        step_epochs=memory.get("epoch", ()),
        memory=_memory_columns(memory),
        events=_events(folder / "events.jsonl"),
        classes=_classes(folder / "per_class.csv"),
        confusion=_confusion(plots / "confusion_matrix.csv"),
        precision_recall=_curves(plots / "precision_recall.csv"),
        f1=_curves(plots / "f1.csv"),
        settings=_settings(folder / "args.yaml"),
        pictures=tuple((plots / n, what) for n, what in _PICTURES.items() if is_file(plots / n)),
    )


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


def _events(path: Path) -> tuple[RunEvent, ...]:
    """Return the events; a line that a crash left half-written is passed over."""
    if not is_there(path):
        return ()
    text = Source(path=path, what="a run's events", most_bytes=_MOST_EVENT_BYTES).text()
    return tuple(event for line in text.splitlines() if (event := _event(line)) is not None)


def _event(line: str) -> RunEvent | None:
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get("event"), str):
        return None
    rest = {name: value for name, value in facts.items() if name not in ("event", "time")}
    return RunEvent(name=facts["event"], time=str(facts.get("time", "")), facts=rest)


def _classes(path: Path) -> tuple[ClassScore, ...]:
    """Return the rows of `per_class.csv`; those of another shape are passed over."""
    rows = [row for row in cells_of(path)[1 : _MOST_CLASSES + 2] if len(row) == 7]
    return tuple(one for row in rows if (one := _class_score(row)) is not None)


def _class_score(row: Sequence[str]) -> ClassScore | None:
    images, objects, *scores = map(number, row[1:])
    if math.isnan(images + objects):
        return None
    precision, recall, map50, map50_95 = scores
    return ClassScore(
        name=row[0], images=int(images), objects=int(objects),
        precision=precision, recall=recall, map50=map50, map50_95=map50_95,
    )  # fmt: skip


def _confusion(path: Path) -> Confusion | None:
    """Return a confusion matrix; None where there is none, or one that is not square."""
    rows = cells_of(path)[: _MOST_CLASSES + 2]
    counts = [[number(cell) for cell in row[1:]] for row in rows[1:]]
    is_square = bool(counts) and all(len(row) == len(counts) for row in counts)
    if not is_square or any(math.isnan(count) for row in counts for count in row):
        return None
    return Confusion(
        names=tuple(row[0] for row in rows[1:]),
        counts=tuple(tuple(int(count) for count in row) for row in counts),
        terms=rows[0][0].removeprefix("predicted").strip(" ()"),
    )


def _curves(path: Path) -> ClassCurves | None:
    """Return a table of x, mean and a column a class; None where the file is none."""
    rows = cells_of(path)
    if len(rows) < 2 or len(rows[0]) < 2:
        return None
    width = len(rows[0])
    numbers = [[number(cell) for cell in row] for row in rows[1:] if len(row) == width]
    if not numbers:
        return None
    x, mean, *classes = zip(*numbers, strict=True)
    return ClassCurves(x=x, mean=mean, by_class=dict(zip(rows[0][2:], classes, strict=True)))


def _settings(path: Path) -> Mapping[str, Any]:
    """Return the run's options; empty where the file holds none that can be read."""
    if not is_file(path):
        return {}
    try:
        found = Source(path=path, what="a run's options", most_bytes=1 << 20).yaml()
    except MemplanError:
        return {}
    return found if isinstance(found, dict) else {}
