"""Predicted lives beside measured ones: peaks, events, and our allocator's replay."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.alignment import Alignment, align, measured_events, predicted_events
from benchmarks.gpu.cases import Case
from benchmarks.gpu.predict import PEAKS, PredictedLife
from memplan.device.card import Card
from memplan.present.section import aligned as table
from memplan.trace.history import Recording, ReplayCheck, check_replay
from memplan.units import gib

# Below the measurement by more than this is an under-estimate that is counted.
UNDER_FRACTION = 0.01
_MOST_GROUPS = 12


@dataclass(frozen=True, kw_only=True)
class LifeComparison:
    """One case's life, predicted and measured; bytes."""

    name: str
    before: dict[str, int]
    """Peaks predicted before anything was measured."""
    now: dict[str, int] | None
    """Peaks as predicted by this memplan; None where the case cannot be recorded here."""
    measured: dict[str, int]
    out_of_memory: str
    overflowed: bool
    replay: ReplayCheck | None
    alignment: Alignment | None

    def error(self, peak: str) -> float:
        """Return the latest prediction over the measurement, less 1."""
        return (self.now or self.before)[peak] / self.measured[peak] - 1

    @property
    def is_complete(self) -> bool:
        """Whether the life ended and all peaks were read."""
        return not self.out_of_memory and set(PEAKS) <= self.measured.keys()


def compare_life(
    name: str, recording: Recording, card: Card | None, *, again: bool = True
) -> LifeComparison:
    """Return how a recording compares with its prediction.

    Args:
        name: of the case.
        recording: of a card, or of a CPU, of which only times are known.
        card: what it ran on; None predicts nothing anew.
        again: whether to record and align the case once more with this memplan.
    """
    facts = recording.facts
    measured, prediction = facts["measured"], facts["prediction"]
    life = None
    if again and card is not None and facts["case"]["workload"] != "official:PATH":
        life = PredictedLife.of(Case(**facts["case"]), card)
    alignment = None
    if life is not None and recording.snapshot is not None:
        alignment = align(predicted_events(life), measured_events(recording.snapshot.trace))
    peaks = None if life is None else life.peaks()
    return LifeComparison(
        name=name,
        before={peak: prediction[peak] for peak in PEAKS if peak in prediction},
        now=None if peaks is None else {peak: getattr(peaks, peak) for peak in PEAKS},
        measured={peak: measured[peak] for peak in PEAKS if measured.get(peak) is not None},
        out_of_memory=measured.get("out_of_memory", ""),
        overflowed=bool(measured.get("overflowed")),
        replay=None if recording.snapshot is None else check_replay(recording),
        alignment=alignment,
    )


def peaks_table(found: Sequence[LifeComparison]) -> str:
    """Return measured peaks with the prediction's error, a line a case."""
    rows = []
    for one in found:
        cells = [one.name]
        for peak in PEAKS:
            known = one.is_complete
            cells.append(gib(one.measured[peak]) if peak in one.measured else "-")
            cells.append(f"{one.error(peak):+.2%}" if known else "-")
        events = one.alignment
        cells.append("-" if events is None else f"{events.alike_fraction:.2%}")
        cells.append("-" if one.replay is None else str(one.replay.difference_bytes))
        cells.append("-" if one.replay is None else str(one.replay.num_differing_steps))
        cells.append("OOM" if one.out_of_memory else "overflow" if one.overflowed else "")
        rows.append(cells)
    header = (
        "Case", "Allocated GiB", "error", "Reserved GiB", "error", "Device-used GiB", "error",
        "Events alike", "Replay off, bytes", "Steps off", "Remark",
    )  # fmt: skip
    return table(header, rows)


def summary(found: Sequence[LifeComparison]) -> list[str]:
    """Return medians, worst and counted under-estimates, a line a peak."""
    complete = [one for one in found if one.is_complete]
    if not complete:
        return ["No life of these has been measured on a card."]
    lines = []
    for peak in PEAKS:
        errors = [one.error(peak) for one in complete]
        off = [abs(error) for error in errors]
        under = sum(error < -UNDER_FRACTION for error in errors)
        lines.append(
            f"{peak}: median error {statistics.median(off):.2%}, worst {max(off):.2%}, "
            f"under-estimated by more than {UNDER_FRACTION:.0%} in {under} of {len(errors)}."
        )
    changed = sum(one.now is not None and one.now != one.before for one in complete)
    lines.append(f"{changed} of {len(complete)} are predicted otherwise now than before measuring.")
    replayed = [one.replay for one in found if one.replay is not None]
    exact = sum(check.is_exact for check in replayed)
    lines.append(f"{exact} of {len(replayed)} histories replay through our allocator exactly.")
    return lines


def differences(found: Sequence[LifeComparison]) -> list[str]:
    """Return the first differing operators and sizes of each life, grouped."""
    lines = []
    for one in found:
        if one.alignment is None or not one.alignment.differences:
            continue
        groups = one.alignment.grouped()
        lost = one.alignment.lost_at
        ending = "" if lost is None else f"; never together again after event {lost}"
        lines.append(f"{one.name}: {len(one.alignment.differences)} differences{ending}")
        lines += [
            f"  {count:5} x  from event {first.at}, {first.section or 'end'}, "
            f"{first.operator or 'nothing'}: predicted {_sizes(first.predicted)}, "
            f"measured {_sizes(first.measured)}"
            for first, count in groups[:_MOST_GROUPS]
        ]
        if len(groups) > _MOST_GROUPS:
            lines.append(f"  and {len(groups) - _MOST_GROUPS} other kinds")
    return lines


def _sizes(sizes: Sequence[int]) -> str:
    shown = " ".join(f"{size:+d}" for size in sizes[:6])
    return (shown or "nothing") + (" ..." if len(sizes) > 6 else "")


def rates_table(recordings: dict[str, Recording], cases: Sequence[str]) -> str:
    """Return measured times of steps beside the roofline's, a line a case."""
    rows = []
    for name in cases:
        facts = recordings[name].facts
        seconds = facts["measured"].get("seconds") or {}
        if "step/all" not in seconds:
            continue
        steps = seconds["step/all"]
        median = statistics.median(steps)
        case = facts["case"]
        images = case["micro_batch_size"] * case["accumulation_steps"]
        # A CPU's times say nothing of the card that was predicted for.
        prediction = facts["prediction"] if facts["machine"]["device"] == "cuda" else {}
        predicted = prediction.get("images_per_second")
        cells = [name, f"{images / median:.1f}", f"{(max(steps) - min(steps)) / median:.1%}"]
        cells += [str(len(steps)), "-", "-"]
        if predicted:
            cells[-2:] = [f"{predicted:.1f}", f"{predicted / (images / median) - 1:+.0%}"]
        rows.append([*cells, *_phase_cells(seconds, prediction.get("seconds", {}))])
    header = (
        "Case", "Images/s", "Spread", "Steps", "Roofline images/s", "error",
        "Forward ms", "error", "Backward ms", "error", "Update ms", "error",
    )  # fmt: skip
    return table(header, rows) if rows else ""


def _phase_cells(seconds: dict[str, list[float]], predicted: dict[str, Any]) -> list[str]:
    cells = []
    for name in ("micro_batch/forward", "micro_batch/backward", "update/optimizer_step"):
        if name not in seconds:
            cells += ["-", "-"]
            continue
        median = statistics.median(seconds[name])
        guess = predicted.get(name)
        cells += [f"{median * 1e3:.2f}", f"{guess / median - 1:+.0%}" if guess else "-"]
    return cells
