"""A section: one fact in sentences and a table, shown alike in the terminal and in the PDF."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memplan.answers import GpuFacts


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, units in the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    """How many leading columns are aligned to the left."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Number:
    """One of the few numbers that an answer is known by; the PDF draws it large."""

    value: str
    """With its unit, unless `label` names it."""
    label: str
    detail: str = ""
    """What it compares with, a few words."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is known about one question."""

    title: str
    """A few words, the heading in the PDF; the terminal's sentences stand without it."""
    sentences: tuple[str, ...] = ()
    table: Table | None = None
    after: tuple[str, ...] = ()
    """Sentences that follow the table."""
    bar: tuple[str, ...] = ()
    """Lines that draw the table in the terminal; the PDF has figures."""

    @property
    def text(self) -> str:
        """The section as the terminal shows it."""
        parts = ["\n".join(self.sentences)] if self.sentences else []
        if self.table is not None:
            cells = aligned(self.table.header, self.table.rows, left=self.table.left)
            lines = [*([self.table.caption] if self.table.caption else []), *self.bar]
            parts.append("\n".join([*lines, cells, *self.after]))
        elif self.after:
            parts.append("\n".join(self.after))
        apart = "\n\n" if self.table is not None and self.table.caption else "\n"
        return apart.join(parts)


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return an aligned table, units in the header, numbers to the right.

    Args:
        header: column titles; left out where all are empty.
        rows: cells as text.
        left: how many leading columns are aligned to the left.
    """
    lines = [list(header)] * any(header) + [list(row) for row in rows]
    widths = [
        max((len(line[column]) for line in lines), default=0) for column in range(len(header))
    ]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def rate_origin(gpu: GpuFacts) -> str:
    """Return where a card's images a second come from, as people read it."""
    return f"predicted, {'calibrated' if gpu.calibrated else 'uncalibrated'}"


def percent(chance: float) -> str:
    """Return a chance as people read it, never as a false 0 or 1."""
    if chance in (0.0, 1.0):
        return f"{chance:.0%}"
    if chance < 0.0001:
        return "below 0.01%"
    if chance > 0.9999:
        return "above 99.99%"
    return f"{100 * chance:.2g}%"
