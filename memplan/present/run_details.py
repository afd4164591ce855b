"""Sections of a run's details: events, accuracy by class, data, settings, and what it is from."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from memplan.answers import PlanAnswer
from memplan.present.run_record import ClassScore, RunEvent, RunRecord
from memplan.present.section import Section, Table
from memplan.units import three_digits

# Events that are worth a row; the others tell of saving and loading.
_TOLD = (
    "out_of_memory",
    "backed_off",
    "micro_batch_tried_again",
    "warning",
    "resumed",
    "interrupted",
    "weights_loaded",
)
# Of options whose names do not say it.
_UNITS = {"image_size": ("px",), "save_every": ("min",), "rank_timeout": ("min",)}
_MOST_EVENTS = 200
_HASHED = ("args.yaml", "hyp.yaml", "plan.json", "results.csv", "memory.csv", "per_class.csv")
_MOST_HASHED_BYTES = 64 << 20


def detail_sections(run: RunRecord, plan: PlanAnswer | None) -> list[Section]:
    """Return what stands behind a run's answer, in the order it is read."""
    return [
        _events(run),
        _classes(run),
        _data(run),
        _settings(run),
        _provenance(run, plan),
    ]


def told_events(run: RunRecord) -> list[RunEvent]:
    """Return the events that are worth telling, oldest first."""
    return [event for event in run.events if event.name in _TOLD]


def events_words(run: RunRecord) -> str:
    """Return how often what happened; `none` where a run has no event worth telling."""
    counts = Counter(event.name for event in told_events(run))
    if not counts:
        return "none" if run.events else ""
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())


def _events(run: RunRecord) -> Section:
    told = told_events(run)
    rows = tuple(
        (
            event.time[:19].replace("T", " "),
            str(event.facts.get("epoch", "")),
            event.name.replace("_", " "),
            event_words(event.facts),
        )
        for event in told[:_MOST_EVENTS]
    )
    if not rows:
        return Section(title="Events")
    rest = len(told) - len(rows)
    after = (f"{rest} more are in events.jsonl.",) if rest else ()
    table = Table(header=("Time (UTC)", "Epoch", "Event", "What"), rows=rows, left=4)
    return Section(title="Events", table=table, after=after)


def event_words(facts: Mapping[str, Any]) -> str:
    """Return an event's facts in a few words: its message, else its numbers by name."""
    if "message" in facts:
        return " ".join(str(facts["message"]).split())
    wanted = ("micro_batch_size", "accumulation", "phase", "images", "signal")
    known = [name for name in wanted if facts.get(name) is not None]
    return ", ".join(f"{name.replace('_', ' ')} {facts[name]}" for name in known)


def _classes(run: RunRecord) -> Section:
    if not run.classes:
        return Section(title="Accuracy by class")
    header = ("Class", "Images", "Objects", "Precision", "Recall", "mAP@0.5", "mAP@0.5:0.95")
    rows = tuple(_class_row(one) for one in run.classes)
    caption = "Validation of the best epoch (measured)"
    return Section(
        title="Accuracy by class", table=Table(caption=caption, header=header, rows=rows)
    )


def _class_row(one: ClassScore) -> tuple[str, ...]:
    scores = (one.precision, one.recall, one.map50, one.map50_95)
    cells = ("-" if math.isnan(score) else f"{score:.3f}" for score in scores)
    return (one.name, f"{one.images:,}", f"{one.objects:,}", *cells)


def _data(run: RunRecord) -> Section:
    facts = run.facts_of("started", "resumed")
    rows = [
        ("Data set", str(run.settings.get("data") or "")),
        ("Image side", f"{run.settings['image_size']} px" if "image_size" in run.settings else ""),
        ("Training images", _count(facts.get("training_images"))),
        ("Validation images", _count(facts.get("validation_images"))),
    ]
    if len(run.classes) > 1:
        everything, *classes = run.classes
        mean = everything.objects / max(everything.images, 1)
        fewest = min(classes, key=lambda one: one.objects)
        most = max(classes, key=lambda one: one.objects)
        rows += [
            ("Classes", _count(len(classes))),
            ("Validation objects", f"{everything.objects:,}, {three_digits(mean)} an image"),
            ("Most objects", f"{most.name}: {most.objects:,}"),
            ("Fewest objects", f"{fewest.name}: {fewest.objects:,}"),
        ]
    rows = [row for row in rows if row[1]]
    if not rows:
        return Section(title="Data")
    return Section(title="Data", table=Table(header=("", ""), rows=tuple(rows), left=2))


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else ""


def _settings(run: RunRecord) -> Section:
    """Return the run's options that say something: those empty, off or zero are left out."""
    said = [
        (name.replace("_", " "), " ".join([_value(value), *_UNITS.get(name, ())]))
        for name, value in run.settings.items()
        if value not in (None, "", False, [], {}) and name not in ("hyperparameters", "project")
    ]
    if not said:
        return Section(title="Settings")
    height = -(-len(said) // 3)
    columns: Sequence[Sequence[tuple[str, str]]] = [
        said[i * height : (i + 1) * height] for i in range(3)
    ]
    rows = tuple(
        tuple(cell for column in columns for cell in (column[i] if i < len(column) else ("", "")))
        for i in range(height)
    )
    return Section(title="Settings", table=Table(header=("",) * 6, rows=rows, left=6))


def _value(value: object) -> str:
    if value is True:
        return "yes"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 36 else f"{text[:16]}...{text[-17:]}"


def _provenance(run: RunRecord, plan: PlanAnswer | None) -> Section:
    """Return versions, and the files that the report was made from with their hashes."""
    rows = [] if plan is None else [("versions", _versions(plan))]
    for name in _HASHED:
        path = run.folder / name
        if path.is_file() and path.stat().st_size <= _MOST_HASHED_BYTES:
            rows.append((name, f"SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"))
    if not rows:
        return Section(title="Made from")
    return Section(title="Made from", table=Table(header=("", ""), rows=tuple(rows), left=2))


def _versions(plan: PlanAnswer) -> str:
    return ", ".join(f"{name} {version}" for name, version in plan.versions.items())
