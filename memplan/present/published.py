"""How far predictions were off on cards of a kind: measurements that others published."""

from __future__ import annotations

import csv
import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from memplan.answers import GpuFacts
from memplan.present.section import Section, Table
from memplan.present.words import count_of, joined
from memplan.units import gib

UNDER_FRACTION = 0.05
"""An under-estimate of more than this part is counted apart: that is the costly error."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A training that somebody measured, beside its prediction; bytes."""

    study: str
    case: str
    card: str
    """Catalogue name."""
    compute_capability: str
    figure: str
    """What was measured: allocated, reserved or device-used."""
    measured_bytes: int
    predicted_bytes: int
    ran_out: bool
    """Whether the run ran out of memory, so that the figure is only how far it got."""
    predicted_to_run_out: bool
    source: str

    @property
    def error(self) -> float:
        """The prediction's signed distance, as a part of the measurement."""
        return self.predicted_bytes / self.measured_bytes - 1


@functools.cache
def published() -> tuple[Published, ...]:
    """Return all rows that the package ships, as `benchmarks.card_truth` wrote them."""
    text = resources.files("memplan.present").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            **{name: cells[name] for name in ("study", "case", "card", "figure", "source")},
            compute_capability=cells["compute_capability"],
            measured_bytes=int(cells["measured_bytes"]),
            predicted_bytes=int(cells["predicted_bytes"]),
            ran_out=cells["ran_out"] == "True",
            predicted_to_run_out=cells["predicted_to_run_out"] == "True",
        )
        for cells in csv.DictReader(text.splitlines())
    )


def rows_like(gpu: GpuFacts) -> tuple[Published, ...]:
    """Return the rows of cards of a kind: of the same compute capability, or the very card's."""
    return tuple(
        row
        for row in published()
        if row.card == gpu.name or row.compute_capability == gpu.compute_capability
    )


def accuracy_section(gpu: GpuFacts) -> Section:
    """Return how far off predictions were on cards of a kind; of all cards where there is none."""
    own = rows_like(gpu)
    rows = own or published()
    compared = [row for row in rows if not row.ran_out]
    names = joined(sorted({row.card for row in rows}))
    errors = [row.error for row in compared]
    middle = statistics.median(map(abs, errors))
    if own:
        lead = f"On cards of the kind of {gpu.name}"
    else:
        lead = f"No published training on a card of the kind of {gpu.name} is known. On others"
    sentences = [
        (
            f"{lead} ({names}), what memplan predicts of {len(compared)} published trainings is "
            f"off by {middle:.1%} in the median and {_worst(errors):+.1%} at worst. Nothing is "
            "fitted to them."
        ),
        *_verdicts(rows),
    ]
    return Section(
        title="How far to trust it", sentences=tuple(sentences), table=_by_study(compared)
    )


def _verdicts(rows: Sequence[Published]) -> list[str]:
    ran_out = [row for row in rows if row.ran_out]
    if not ran_out:
        return []
    right = sum(row.predicted_to_run_out for row in ran_out)
    return [f"{count_of(len(ran_out), 'further run')} ran out of memory, as predicted for {right}."]


def _by_study(rows: Sequence[Published]) -> Table:
    studies: dict[str, list[Published]] = {}
    for row in rows:
        studies.setdefault(row.study, []).append(row)
    return Table(
        header=("Published", "Runs", "Median", "Worst", "Under by > 5 %"),
        rows=tuple(_study_row(study, of_study) for study, of_study in studies.items()),
    )


def _study_row(study: str, rows: Sequence[Published]) -> tuple[str, ...]:
    errors = [row.error for row in rows]
    return (
        study,
        str(len(rows)),
        f"{statistics.median(map(abs, errors)):.1%}",
        f"{_worst(errors):+.1%}",
        str(sum(error < -UNDER_FRACTION for error in errors)),
    )


def _worst(errors: Sequence[float]) -> float:
    return max(errors, key=abs)


def farthest_off(rows: Sequence[Published], count: int) -> Table:
    """Return the trainings that are farthest off as a table, each with its source."""
    worst = sorted((row for row in rows if not row.ran_out), key=lambda row: -abs(row.error))
    return Table(
        caption="Farthest off, GiB",
        header=("Training", "Card", "Figure", "Measured", "Predicted", "Error", "Source"),
        rows=tuple(
            (
                row.case,
                row.card,
                row.figure.partition(",")[0],
                gib(row.measured_bytes),
                gib(row.predicted_bytes),
                f"{row.error:+.1%}",
                row.source.removeprefix("https://"),
            )
            for row in worst[:count]
        ),
        left=3,
    )
