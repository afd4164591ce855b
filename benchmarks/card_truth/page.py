"""The tables of the result, its csv, and the part of the documentation made from them."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.card_truth import cards
from benchmarks.card_truth.reasons import reason
from benchmarks.card_truth.row import TOLERANCE, Row
from benchmarks.card_truth.versions import same_as_ours
from benchmarks.common import RESULTS, machine
from memplan.advise import versions
from memplan.device import catalogue, context
from memplan.present.section import aligned as table
from memplan.units import MIB, gib

NAME = "card_truth"
DOCUMENT = Path(__file__).parents[2] / "docs" / f"{NAME}.md"
_SMALL = 64 * MIB  # tables whose figures are all below this are in bytes
_BEGIN, _END = "<!-- {} begins: written by the benchmark -->", "<!-- {} ends -->"


def by_kind(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return rows by table, in the order in which tables first appear."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    return kinds


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write every row with its errors, bytes as integers."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0].cells()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.cells() for row in rows)


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a file that `write_csv` wrote."""
    with path.open(encoding="utf-8") as file:
        return [_row(cells) for cells in csv.DictReader(file)]


def _row(cells: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for field in fields(Row):
        text = cells[field.name]
        if "bool" in str(field.type):
            values[field.name] = {"True": True, "False": False}.get(text)
        elif "int" in str(field.type):
            values[field.name] = int(text) if text else None
        else:
            values[field.name] = text
    return Row(**values)


def write_results(rows: Sequence[Row], seconds: float) -> None:
    """Write the tables with machine, versions and spread, and the csv beside them."""
    lines = ["# Published measurements beside predictions", ""]
    lines += ["Nothing is fitted to these rows. Errors are of predictions against measurements;"]
    lines += ["a range is what a prediction leaves open, and its error is 0 where the measurement"]
    lines += ["lies inside.", "", *summary(rows), ""]
    for kind, of_kind in by_kind(rows).items():
        lines += [f"## {kind}", "", "```", _table(of_kind), "```", ""]
    about = ", ".join(f"{key} {value}" for key, value in versions().items())
    lines += ["## How", "", f"- {seconds:.0f} s for all {len(rows)} rows.", f"- {machine()}."]
    lines += [f"- Versions: {about}.", "- Sources and remarks of each row: card_truth.csv."]
    lines += ["- Command: `python -m benchmarks.card_truth [--snapshots DIR]`.", ""]
    (RESULTS / f"{NAME}.md").write_text("\n".join(lines), encoding="utf-8")
    write_csv(RESULTS / f"{NAME}.csv", rows)


def _table(rows: Sequence[Row]) -> str:
    unit = _unit(rows)
    header = ("Case", "Card", "Figure", f"Measured {unit[0]}", "Predicted", "Error", "Low", "High",
              "Range error", "torch", "cuDNN", "As ours")  # fmt: skip
    return table(header, [_cells(row, unit[1]) for row in rows], left=3)


def _unit(rows: Sequence[Row]) -> tuple[str, int]:
    return ("bytes", 1) if all(row.measured_bytes < _SMALL for row in rows) else ("MiB", MIB)


def _cells(row: Row, unit: int) -> tuple[str, ...]:
    def size(number: int | None) -> str:
        return "-" if number is None else f"{number / unit:.0f}"

    measured = size(row.measured_bytes)
    if row.ran_out:
        said = "so predicted" if row.predicted_to_run_out else "NOT predicted"
        measured = f"ran out, {said}"
    return (
        row.case, row.card, row.figure, measured,
        size(row.predicted_bytes) if row.predicted_bytes is not None else "not predicted",
        percent(row.error), size(row.low_bytes), size(row.high_bytes),
        percent(row.range_error),
        row.torch or "not stated", row.cudnn or "not stated", same_as_ours(row.torch, row.cudnn),
    )  # fmt: skip


def percent(fraction: float | None) -> str:
    """Return a signed percentage, or a dash."""
    return "-" if fraction is None else f"{fraction:+.1%}"


def summary(rows: Sequence[Row]) -> list[str]:
    """Return a table of tables in Markdown."""
    titles = ("table", "figure", "rows", "median error", "worst", "over by more than 5 %",
              "under by more than 5 %", "inside the range", "not compared")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", f"|---|---|{'---:|' * (len(titles) - 2)}"]
    for kind, of_kind in by_kind(rows).items():
        compared = [row for row in of_kind if row.error is not None]
        cells = [kind, ", ".join(sorted({row.figure for row in of_kind})), str(len(compared))]
        if compared:
            errors = [row.error for row in compared if row.error is not None]
            worst = max(errors, key=abs)
            inside = sum(row.range_error == 0 for row in compared)
            cells += [f"{statistics.median(abs(error) for error in errors):.1%}", percent(worst)]
            cells += [str(sum(error > TOLERANCE for error in errors))]
            cells += [str(sum(error < -TOLERANCE for error in errors)), str(inside)]
        else:
            cells += ["-"] * 5
        lines.append(f"| {' | '.join([*cells, str(len(of_kind) - len(compared))])} |")
    return lines


def misses(rows: Sequence[Row]) -> list[str]:
    """Return a table in Markdown of every miss above 5 %, with its mechanism."""
    lines = ["| table | case | error | why |", "|---|---|---:|---|"]
    lines += [
        f"| {row.kind} | {row.case}, {row.card} | "
        f"{percent(row.range_error if row.is_bound else row.error)} | {reason(row)} |"
        for row in rows
        if row.is_miss
    ]
    return lines


def contexts() -> list[str]:
    """Return a table in Markdown of what processes hold outside the allocator, by card."""
    titles = ("card", "lazy, since CUDA 11.7 (GiB)", "eager, before (GiB)", "read off", "from")
    lines = [f"| {' | '.join(titles)} |", "|---|---:|---:|---|---|"]
    for name, entry in context.document()["eager"].items():
        card = catalogue.card(name)
        lazy = f"{gib(card.context_bytes)} +- {gib(card.context_uncertainty_bytes)}"
        eager = f"{entry['gib']:.2f} +- {entry['uncertainty_gib']:.2f}"
        samples = ", ".join(f"{one:.2f}" for one in entry["samples_gib"])
        lines.append(f"| {card.title} | {lazy} | {eager} | {samples} | {entry['sources']} |")
    return lines


def other_cudnn(rows: Sequence[Row]) -> list[str]:
    """Return a table in Markdown of the plain scripts beside those of another cuDNN.

    Errors at batches 32, 64 and 128; the other cuDNN's are of the csv file of `card_truth_cudnn`.
    """
    with (RESULTS / f"{NAME}_cudnn.csv").open(encoding="utf-8") as file:
        other = {row["Case"]: row["Error"] for row in csv.DictReader(file)}
    titles = ("device-used, A100 40 GB", "as predicted", "under cuDNN 9.10.2")
    lines = [f"| {' | '.join(titles)} |", "|---|---:|---:|"]
    networks: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        network, side = (*row.case.split(", "), "")[:2]
        if row.kind == cards.PLAIN and side in {"224 px", "299 px"}:
            errors = (percent(row.error), other[row.case])
            networks.setdefault(f"{network}, {side}", []).append(errors)
    for network, batches in networks.items():
        columns = (" / ".join(column) for column in zip(*batches, strict=True))
        lines.append(f"| {network} | {' | '.join(columns)} |")
    return lines


def written_parts(rows: Sequence[Row]) -> dict[str, str]:
    """Return the parts of the document that are made from rows and tables, by name."""
    parts = {
        "summary": summary(rows),
        "cudnn": other_cudnn(rows),
        "contexts": contexts(),
        "misses": misses(rows),
    }
    return {name: "\n".join(lines) for name, lines in parts.items()}


def with_parts(text: str, parts: dict[str, str]) -> str:
    """Return a document with its marked parts replaced."""
    for name, part in parts.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        head, _, rest = text.partition(begin)
        tail = rest.partition(end)[2]
        text = f"{head}{begin}\n\n{part}\n\n{end}{tail}"
    return text
