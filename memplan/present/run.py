"""Sections of a run: what it reached, what memory it took, what happened, on which data."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from memplan.answers import MEASURED, PREDICTED, PlanAnswer
from memplan.present.run_details import detail_sections, events_words
from memplan.present.run_record import DEVICE_QUANTITIES, HOST_RESIDENT, RunRecord
from memplan.present.section import Number, Section, Table
from memplan.present.words import nominal_words
from memplan.spec import Split
from memplan.units import format_bytes, format_seconds, three_digits


@dataclass(frozen=True, kw_only=True)
class MemoryAgreement:
    """One quantity of memory: measured beside what compares with it."""

    quantity: str
    measured_bytes: float
    predicted_bytes: float | None
    """None where nothing was predicted that compares."""
    note: str = ""

    @property
    def error_fraction(self) -> float | None:
        """Predicted minus measured, over measured; None where that is not known."""
        if self.predicted_bytes is None or not self.measured_bytes:
            return None
        return (self.predicted_bytes - self.measured_bytes) / self.measured_bytes


def run_sections(run: RunRecord, plan: PlanAnswer | None = None) -> list[Section]:
    """Return all that a run says, in the order it is read.

    Args:
        run: read from its folder.
        plan: that the run followed, for what was predicted.
    """
    sections = [
        Section(title="The run", sentences=(run_headline(run),), table=_facts(run, plan)),
        memory_section(run),
        *detail_sections(run, plan),
    ]
    return [one for one in sections if one.text]


def main_score(run: RunRecord) -> str | None:
    """Return the column of the score that training is judged by; None where there is none."""
    strict = (name for name in run.scores if "95" in name)
    return next(strict, next(iter(run.scores), None))


def best_of(run: RunRecord, column: str) -> tuple[float, float] | None:
    """Return a column's epoch and value where it is highest; None where it holds no number."""
    rows = zip(run.epochs, run.scores[column], strict=False)
    known = [(value, -epoch) for epoch, value in rows if not math.isnan(value)]
    if not known:
        return None
    value, epoch = max(known)
    return -epoch, value


def score_name(column: str) -> str:
    """Return a score as papers write it, such as `mAP@0.5:0.95`."""
    return column.rsplit("/", 1)[-1].replace("_", "@", 1)


def run_headline(run: RunRecord) -> str:
    """Return what the run reached, in a few words."""
    epochs = epochs_words(run)
    column = main_score(run)
    best = None if column is None else best_of(run, column)
    if column is None or best is None:
        return f"{epochs} trained, not evaluated"
    rest = f" ({epochs} trained)" if " of " in epochs else ""
    return (
        f"best {score_name(column)} {best[1]:.3f}, epoch {best[0]:.0f} of {len(run.epochs)}{rest}"
    )


def epochs_words(run: RunRecord) -> str:
    """Return how many epochs were trained, and of how many."""
    done, asked = len(run.epochs), run.settings.get("epochs")
    if isinstance(asked, int) and asked > done:
        return f"{done} of {asked} epochs"
    return f"{done} epoch{'' if done == 1 else 's'}"


def run_numbers(run: RunRecord, plan: PlanAnswer | None = None) -> list[Number]:
    """Return the few numbers that a run is known by."""
    column = main_score(run)
    best = None if column is None else best_of(run, column)
    numbers = []
    if column is not None and best is not None:
        label = f"best {score_name(column)}, epoch {best[0]:.0f} (measured)"
        numbers.append(Number(value=f"{best[1]:.3f}", label=label, detail=_other_scores(run)))
    if (rate := _rate(run)) is not None:
        detail = "" if plan is None else f"{_planned_rate(plan)} predicted"
        numbers.append(
            Number(value=three_digits(rate), label="images/s in training (measured)", detail=detail)
        )
    numbers += [_memory_number(one) for one in agreements(run)[-1:]]
    return numbers


def _memory_number(one: MemoryAgreement) -> Number:
    if one.predicted_bytes is None:
        detail = one.note
    else:
        error = one.error_fraction
        off = "" if error is None else f" ({error:+.1%})"
        detail = f"{format_bytes(one.predicted_bytes)} predicted{off}"
    label = f"peak, {one.quantity} (measured)"
    return Number(value=format_bytes(one.measured_bytes), label=label, detail=detail)


def _other_scores(run: RunRecord) -> str:
    main = main_score(run)
    bests = [(name, best_of(run, name)) for name in run.scores if name != main]
    return ", ".join(f"{score_name(n)} {best[1]:.3f}" for n, best in bests if best is not None)


def _rate(run: RunRecord) -> float | None:
    known = [rate for rate in run.images_per_second if not math.isnan(rate)]
    return statistics.median(known) if known else None


def _planned_rate(plan: PlanAnswer) -> str:
    return f"{three_digits(plan.predicted.images_per_second)} images/s"


def batch_line(run: RunRecord) -> str:
    """Return how the images of a step come together, in plain words; empty where unknown."""
    facts = run.facts_of("started", "resumed")
    names = ("micro_batch_size", "accumulation_steps", "devices", "effective_batch_size")
    if not all(isinstance(facts.get(name), int) for name in names):
        return ""
    micro, steps, devices, effective = (facts[name] for name in names)
    # Among unequal cards the others' images are what is missing.
    others = None if micro * devices * steps == effective else effective // max(steps, 1) - micro
    split = Split(
        micro_batch_size=micro, accumulation_steps=steps, devices=devices, others_batch_size=others
    )
    nominal = facts.get("nominal_batch_size")
    return nominal_words(split, nominal if isinstance(nominal, int) else effective)


def _facts(run: RunRecord, plan: PlanAnswer | None) -> Table | None:
    facts = run.facts_of("started", "resumed")
    column = main_score(run)
    best = None if column is None else best_of(run, column)
    rate = _rate(run)
    seconds = [value for value in run.seconds if not math.isnan(value)]
    planned = "" if plan is None else f", {_planned_rate(plan)} predicted"
    rows = [
        ("Network", str(facts.get("workload", ""))),
        ("Device", str(facts.get("device", ""))),
        ("Precision", str(facts.get("precision", ""))),
        ("Epochs", epochs_words(run) if run.epochs else ""),
        ("Batch", batch_line(run)),
        ("Best epoch", "" if best is None else f"{best[0]:.0f}"),
        *((score_name(n), f"{b[1]:.3f} at best, {_last(run, n):.3f} last (measured)")
          for n in run.scores if (b := best_of(run, n)) is not None),
        ("Images/s", "" if rate is None else f"{three_digits(rate)} (measured){planned}"),
        ("Time", f"{format_seconds(sum(seconds))} (measured)" if seconds else ""),
        ("Events", events_words(run)),
    ]  # fmt: skip
    known = tuple(row for row in rows if row[1])
    return Table(header=("", ""), rows=known, left=2) if known else None


def _last(run: RunRecord, column: str) -> float:
    return [value for value in run.scores[column] if not math.isnan(value)][-1]


def agreements(run: RunRecord) -> list[MemoryAgreement]:
    """Return each measured quantity of memory beside what was predicted of the same.

    Host memory compares with a prediction only above what the process held before its first step:
    no plan contains the interpreter and its libraries.
    """
    found = []
    for quantity in DEVICE_QUANTITIES:
        measured = highest(run, MEASURED, quantity)
        if measured is not None:
            found.append(
                MemoryAgreement(
                    quantity=quantity.replace("_", "-"),
                    measured_bytes=measured,
                    predicted_bytes=highest(run, PREDICTED, quantity),
                )
            )
    return found or _host_agreement(run)


def _host_agreement(run: RunRecord) -> list[MemoryAgreement]:
    measured = highest(run, MEASURED, HOST_RESIDENT)
    if measured is None:
        return []
    before = run.host_baseline_bytes
    if before is None:
        note = "holds Python and torch, which no prediction contains, so none compares"
        return [
            MemoryAgreement(
                quantity="host memory of the process", measured_bytes=measured,
                predicted_bytes=None, note=note,
            )
        ]  # fmt: skip
    return [
        MemoryAgreement(
            quantity="host memory above the start",
            measured_bytes=max(0, measured - before),
            predicted_bytes=highest(run, PREDICTED, "allocated"),
            note=(
                f"the process held {format_bytes(before)} before its first step (Python, torch, "
                "network, data), which is subtracted. Measured is what the process grew by since: "
                "tensors, and what libraries load, keep or leave unreturned. Predicted are tensors "
                "alone"
            ),
        )
    ]


def highest(run: RunRecord, origin: str, quantity: str) -> float | None:
    """Return the highest figure of a column, bytes; None where there is none."""
    values = [v for v in run.memory.get((origin, quantity), ()) if not math.isnan(v)]
    return max(values, default=None)


def memory_section(run: RunRecord) -> Section:
    """Return each measured quantity of memory beside what was predicted of it."""
    rows, after = [], []
    for one in agreements(run):
        predicted, error = one.predicted_bytes, one.error_fraction
        rows.append(
            (
                one.quantity,
                format_bytes(one.measured_bytes),
                "-" if predicted is None else format_bytes(predicted),
                "-" if error is None else f"{error:+.1%}",
            )
        )
        after += [f"{one.quantity[0].upper()}{one.quantity[1:]}: {one.note}."] if one.note else []
    if not rows:
        return Section(title="Memory")
    if all(highest(run, MEASURED, quantity) is None for quantity in DEVICE_QUANTITIES):
        after.append("No device memory was measured: the run was not on a GPU.")
    table = Table(header=("Peak", "Measured", "Predicted", "Predicted is off by"), rows=tuple(rows))
    return Section(title="Memory", table=table, after=tuple(after))
