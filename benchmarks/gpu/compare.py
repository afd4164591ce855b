"""`python -m benchmarks.gpu.compare [DIR]`: predicted against measured, at every level.

Writes `benchmarks/results/gpu_CARD.md` for each card that has recordings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.common import RESULTS
from benchmarks.gpu.battery import RECORDINGS, recordings_in
from benchmarks.gpu.lives import (
    LifeComparison,
    compare_life,
    differences,
    peaks_table,
    rates_table,
    summary,
)
from memplan.device.card import Card
from memplan.device.chosen import calibrated_card
from memplan.errors import MemplanError
from memplan.present.section import aligned as table
from memplan.trace.history import Recording
from memplan.units import gib

_MOST_ROWS = 40


def report(recordings: dict[str, Recording], *, again: bool = True) -> str:
    """Return the page about one card's recordings.

    Args:
        recordings: of one card, by name.
        again: whether each life is recorded once more with this memplan and aligned.
    """
    machine = next(iter(recordings.values())).facts["machine"]
    card = _card(machine)
    kinds: dict[str, list[str]] = {}
    for name, one in recordings.items():
        kinds.setdefault(one.facts["case"]["kind"], []).append(name)
    lives = kinds.get("life", [])
    found = [
        compare_life(name, recordings[name], card, again=again)
        for name in lives
        if not recordings[name].facts.get("failure")
    ]
    title = machine.get("device_name", "a CPU: no memory of a card was measured")
    parts = [f"# Predicted against measured on {title}", *_about(recordings)]
    parts += _section("Lives: peaks (measured; error of the prediction)", peaks_table(found))
    parts += ["", *[f"- {line}" for line in summary(found)]]
    parts += _section("Events that differ", "\n".join(differences(found)))
    parts += _section("Times (measured median; error of the roofline)",
                      rates_table(recordings, lives))  # fmt: skip
    parts += _section("Smaller cards: does the predicted largest batch run, and one more fail?",
                      _verdicts(_facts(recordings, kinds.get("budget", []))))  # fmt: skip
    parts += _section("cuDNN: workspace by convolution beside the oracle",
                      _convolutions(_facts(recordings, kinds.get("convolutions", []))))  # fmt: skip
    parts += _section("cuDNN: batch norm",
                      _norms(_facts(recordings, kinds.get("batch_norm", []))))  # fmt: skip
    parts += _section("Outside the allocator, by first use (measured)",
                      _context(_facts(recordings, kinds.get("context", [])), found))  # fmt: skip
    parts += _section("Other batch finders", _peers(_facts(recordings, kinds.get("peer", []))))
    failures = [f"{name}: {one.facts['failure']}" for name, one in recordings.items()
                if one.facts.get("failure")]  # fmt: skip
    parts += _section("Cases that failed", "\n".join(failures))
    return "\n".join([*parts, ""])


def _card(machine: dict[str, Any]) -> Card | None:
    """Return the card, as calibrated here, with the memory it had; None where it is not known."""
    if "card" not in machine or not machine["in_catalogue"]:
        return None
    card = calibrated_card(machine["card"])
    return replace(card, capacity_bytes=int(machine["capacity_bytes"]))


def _facts(recordings: dict[str, Recording], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        name: recordings[name].facts for name in names if not recordings[name].facts.get("failure")
    }


def _about(recordings: dict[str, Recording]) -> list[str]:
    """Return on what and when everything ran; more than one line where that differs."""
    lines = []
    for one in recordings.values():
        machine = one.facts["machine"]
        versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
        driver = f"driver {machine['driver']}, " if "driver" in machine else ""
        line = f"- {machine['date']}: {driver}{versions}."
        if line not in lines:
            lines.append(line)
    remark = "- Each prediction was written before its case was measured, in a process that sees "
    return ["", *lines, remark + "no card."]


def _section(title: str, text: str) -> list[str]:
    return ["", f"## {title}", "", "```", text, "```"] if text else []


def _verdicts(facts: dict[str, dict[str, Any]]) -> str:
    if not facts:
        return ""
    rows, right = [], 0
    for name, one in facts.items():
        largest = int(one["prediction"]["largest_batch"])
        runs = {run["micro_batch_size"]: bool(run.get("ran")) for run in one["measured"]["runs"]}
        fits, more = runs.get(largest, largest == 0), runs.get(largest + 1, False)
        right += fits and not more
        verdict = "right" if fits and not more else "too low" if fits else "too high"
        rows.append((name, str(largest), _yes(fits), _yes(more), verdict))
    header = ("Case", "Largest (predicted)", "Ran", "One more ran", "Verdict")
    return f"{table(header, rows)}\n{right} of {len(rows)} verdicts right."


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _convolutions(facts: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, one in facts.items():
        rows = []
        # Windows of one position apart: no driver tells there which engine a card will take.
        counts = {True: [0, 0], False: [0, 0]}
        answers = one["prediction"]["workspace_bytes"]
        for predicted, row in zip(answers, one["measured"]["rows"], strict=True):
            heard = row["heard"]
            if heard is None:
                continue
            back = heard["given_back_bytes"]
            alike = predicted in back if predicted else not back
            of_kind = counts[all(side == 1 for side in row["problem"]["weight"][2:])]
            of_kind[0] += alike
            of_kind[1] += 1
            if not alike:
                problem = row["problem"]
                shape = "x".join(map(str, problem["input"]))
                weight = "x".join(map(str, problem["weight"]))
                rows.append((problem["kind"], problem["dtype"], shape, weight,
                             str(predicted), " ".join(map(str, back)) or "0"))  # fmt: skip
        (equal, asked), (ordinary, others) = counts[True], counts[False]
        lines.append(
            f"{name}: {equal + ordinary} of {asked + others} convolutions as predicted, "
            f"{equal} of {asked} with windows of one position."
        )
        if rows:
            header = ("Kind", "Type", "Input", "Weight", "Predicted bytes", "Taken, given back")
            lines.append(table(header, rows[:_MOST_ROWS], left=4))
    return "\n".join(lines)


def _norms(facts: dict[str, dict[str, Any]]) -> str:
    rows = []
    for one in facts.values():
        for row in one["measured"]["rows"]:
            taken = [_heard(row[phase]) for phase in ("forward", "backward")]
            layout = "channels-last" if row["channels_last"] else "contiguous"
            reserve = "-" if row["reserve_bytes"] is None else str(row["reserve_bytes"])
            shape = "x".join(map(str, row["shape"]))
            rows.append((shape, row["dtype"], layout, reserve, *taken))
    header = ("Shape", "Type", "Layout", "Reserve bytes", "Forward", "Backward")
    return table(header, rows, left=3) if rows else ""


def _heard(heard: dict[str, list[int]] | None) -> str:
    if heard is None:
        return "-"
    kept, back = (" ".join(map(str, heard[key])) for key in ("kept_bytes", "given_back_bytes"))
    return f"kept {kept or 0}; back {back or 0}"


def _context(facts: dict[str, dict[str, Any]], lives: Sequence[LifeComparison]) -> str:
    rows = []
    for one in facts.values():
        rows += [(phase, gib(value)) for phase, value in one["measured"]["outside_bytes"].items()]
        if rows:
            rows.append(("predicted for training", gib(one["prediction"]["context_bytes"])))
    outside = [
        one.measured[peak] - one.measured["reserved_peak_bytes"]
        for one in lives
        if one.is_complete
        for peak in ("device_used_peak_bytes",)
    ]
    if outside:
        rows += [("least after a life", gib(min(outside))), ("most", gib(max(outside)))]
    return table(("After", "GiB"), rows) if rows else ""


def _peers(facts: dict[str, dict[str, Any]]) -> str:
    rows = []
    for one in facts.values():
        found, mine = one["measured"], one["prediction"]
        if not found.get("present") or "reason" in found:
            reason = found.get("reason", "")
            rows.append((one["case"]["peer"], f"not run: {reason}", "", "", "", ""))
            continue
        run = found.get("run", {})
        chosen = found.get("chosen_batch")
        steps = (run.get("seconds") or {}).get("step/all") or []
        rate = f"{chosen * len(steps) / sum(steps):.1f}" if steps and chosen else "-"
        peak = found.get("peak_bytes") or run.get("reserved_peak_bytes")
        rows.append((
            one["case"]["peer"], str(chosen if chosen is not None else "-"),
            str(mine["largest_batch"]), gib(peak) if peak else "-",
            _yes(bool(run["ran"])) if "ran" in run else "-",
            f"{found['seconds']:.1f}, {rate}",
        ))  # fmt: skip
    header = ("Finder", "Chosen", "memplan's largest", "Peak GiB", "Ran", "Seconds, images/s")
    return table(header, rows, left=2) if rows else ""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True), default=RECORDINGS)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, hidden=True)
@click.option("--stored", is_flag=True, help="Use the stored predictions only: seconds, no events.")
def command(folder: Path, results: Path, *, stored: bool) -> None:
    """Compare a folder's recordings with predictions and write a page a card."""
    by_card: dict[str, dict[str, Recording]] = {}
    for name, one in recordings_in(folder).items():
        card = one.facts["machine"].get("card", "cpu")
        by_card.setdefault(card, {})[name.removeprefix(f"{card}_")] = one
    if not by_card:
        print(f"{folder} has no recordings: no card has run the battery yet.")
        return
    results.mkdir(parents=True, exist_ok=True)
    for card, recordings in by_card.items():
        text = report(recordings, again=not stored)
        path = results / f"gpu_{card}.md"
        path.write_text(text)
        print(f"{text}\nWrote {path}")


if __name__ == "__main__":
    try:
        command.main(standalone_mode=False)
    except (MemplanError, click.ClickException) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
