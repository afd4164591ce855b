"""What grew between two answers, recordings or snapshots: by category, module, operator, line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memplan.answers import PlanAnswer, ProbeAnswer
from memplan.errors import BadInputError
from memplan.present.probe import operator_words
from memplan.present.section import Number, Section, Table
from memplan.script_answer import ScriptAnswer
from memplan.units import format_bytes

_MOST_ROWS = 15
_KINDS = {
    "category": "By category",
    "module": "By module",
    "operator": "By operator",
    "line": "By line of the user's files",
    "pool": "By pool",
}


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What one answer, recording or snapshot holds, by several ways of counting; bytes."""

    name: str
    """As people tell it from the other, such as its file."""
    about: str
    """What was looked at, such as `yolov9-s at 640 px, batch 16, rtx-3090`."""
    peaks: Mapping[str, int]
    """By quantity, such as `reserved`."""
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By kind (`category`, `module`, `operator`, `line`, `pool`) and name."""
    notes: tuple[str, ...] = ()


def holdings_of(answer: object, name: str) -> Holdings:
    """Return what a saved answer holds at its peak.

    Args:
        answer: of a probe, a plan or a script.
        name: of its file.

    Raises:
        BadInputError: it is an answer of another kind.
    """
    if isinstance(answer, ProbeAnswer):
        return _of_probe(answer, name)
    if isinstance(answer, ScriptAnswer):
        return _of_script(answer, name)
    if isinstance(answer, PlanAnswer):
        return _of_plan(answer, name)
    raise BadInputError(f"{name} holds nothing that can be compared. Give probes, plans or runs.")


def _of_probe(answer: ProbeAnswer, name: str) -> Holdings:
    rows = [row for row in answer.batches if row.micro_batch_size == answer.reference_batch]
    operators: dict[str, int] = {}
    for one in answer.tensors_at_peak:
        name_of = operator_words(one.operator)
        operators[name_of] = operators.get(name_of, 0) + one.num_bytes
    modules = {m.path or "(network)": m.activation_bytes for m in answer.modules}
    workload = answer.workload
    return Holdings(
        name=name,
        about=(
            f"{workload.name} at {workload.img} px, {workload.spec.words()}, batch "
            f"{answer.reference_batch}, {answer.gpu.name}"
        ),
        peaks={} if not rows else _peaks(rows[0]),
        groups={
            "category": _categories(answer.categories_at_peak),
            "module": {path: num for path, num in modules.items() if num},
            "operator": operators,
        },
        notes=("Operators are those of the largest tensors alone.",) if operators else (),
    )


def _of_script(answer: ScriptAnswer, name: str) -> Holdings:
    modules = {str(row["path"]) or "(network)": int(row["bytes"]) for row in answer.modules}
    return Holdings(
        name=name,
        about=f"{answer.command} on {answer.title}",
        peaks=_peaks(answer),
        groups={"category": _categories(answer.categories_at_peak), "module": modules},
    )


def _categories(categories: Mapping[str, int]) -> dict[str, int]:
    return {name.replace("_", " "): num_bytes for name, num_bytes in categories.items()}


def _of_plan(answer: PlanAnswer, name: str) -> Holdings:
    workload = answer.workload
    phases = {
        f"{peak.period}, {peak.phase}".replace("_", " "): peak.allocated_peak_bytes
        for peak in answer.phase_peaks
    }
    return Holdings(
        name=name,
        about=f"{workload.name} at {workload.img} px, {answer.spec.words()}, {answer.gpu.name}",
        peaks=_peaks(answer.predicted),
        groups={"phase": phases} if phases else {},
    )


def _peaks(source: object) -> dict[str, int]:
    names = ("allocated", "reserved", "device_used")
    return {name.replace("_", "-"): getattr(source, f"{name}_peak_bytes") for name in names}


def change_words(one: int, other: int) -> str:
    """Return a change with its sign, and its share where there was something before."""
    change = other - one
    sign = "+" if change > 0 else "-" if change < 0 else ""
    text = f"{sign}{format_bytes(abs(change))}"
    return f"{text} ({change / one:+.1%})" if one and change else text


def diff_numbers(one: Holdings, other: Holdings) -> list[Number]:
    """Return each peak that both have, with its change."""
    return [
        Number(
            value=change_words(one.peaks[name], other.peaks[name]).split(" (")[0],
            label=f"{name} at the peak",
            detail=f"{format_bytes(one.peaks[name])} before, {format_bytes(other.peaks[name])} now",
        )
        for name in one.peaks
        if name in other.peaks
    ]


def diff_headline(one: Holdings, other: Holdings) -> str:
    """Return by how much the second holds more than the first, in a few words."""
    names = [name for name in one.peaks if name in other.peaks]
    if not names:
        return "What grew"
    before, now = one.peaks[names[-1]], other.peaks[names[-1]]
    if before == now:
        return f"As much {names[-1]}: {format_bytes(now)}"
    more = "more" if now > before else "less"
    return (
        f"{format_bytes(abs(now - before))} {more} {names[-1]}: {format_bytes(before)} before, "
        f"{format_bytes(now)} now"
    )


def diff_sections(one: Holdings, other: Holdings) -> list[Section]:
    """Return what grew from one to the other, the largest changes first."""
    lines = (
        f"{diff_headline(one, other)}.",
        f"Before: {one.name}, {one.about}.",
        f"Now: {other.name}, {other.about}.",
        *dict.fromkeys((*one.notes, *other.notes)),
    )
    peaks = [(n, one.peaks[n], other.peaks[n]) for n in one.peaks if n in other.peaks]
    sections = [Section(title="What grew", sentences=lines, table=_table("Peak", peaks, ""))]
    for kind in one.groups:
        if kind in other.groups:
            sections += _group(kind, one.groups[kind], other.groups[kind])
    return sections


def diff_json(one: Holdings, other: Holdings) -> dict[str, object]:
    """Return the same facts in bytes, as `memplan.diff/1`."""
    shared = {kind: names for kind, names in one.groups.items() if kind in other.groups}
    return {
        "schema": "memplan.diff/1",
        "before": {"name": one.name, "about": one.about, "peaks": dict(one.peaks)},
        "now": {"name": other.name, "about": other.about, "peaks": dict(other.peaks)},
        "changes": {
            kind: [
                {"name": name, "before_bytes": before, "now_bytes": now}
                for name, before, now in changes(names, other.groups[kind])
            ]
            for kind, names in shared.items()
        },
    }


def changes(one: Mapping[str, int], other: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Return name, before and now of all that changed, the largest change first."""
    rows = [(n, one.get(n, 0), other.get(n, 0)) for n in dict.fromkeys((*one, *other))]
    return sorted((r for r in rows if r[1] != r[2]), key=lambda row: -abs(row[2] - row[1]))


def _group(kind: str, one: Mapping[str, int], other: Mapping[str, int]) -> list[Section]:
    rows = changes(one, other)
    title = _KINDS.get(kind, f"By {kind}")
    if not rows:
        return [Section(title=title, sentences=(f"{title}: nothing changed.",))]
    rest = len(rows) - _MOST_ROWS
    after = (f"{rest} more changed by less.",) if rest > 0 else ()
    table = _table(kind.capitalize(), rows[:_MOST_ROWS], f"{title}, largest change first")
    return [Section(title=title, table=table, after=after)]


def _table(what: str, rows: Sequence[tuple[str, int, int]], caption: str) -> Table | None:
    if not rows:
        return None
    cells = tuple(
        (name, format_bytes(a), format_bytes(b), change_words(a, b)) for name, a, b in rows
    )
    return Table(header=(what, "Before", "Now", "Change"), rows=cells, caption=caption)
