"""The same faults of memory under other people's remedies and memplan's: who survives, and how.

    PYTHONPATH=.:COMPOSER SIDE/bin/python -m benchmarks.guard_others

SIDE is an environment of its own with memplan's dependencies and lightning, transformers,
accelerate and ultralytics; COMPOSER a folder with mosaicml and what it needs beside those
(`pip install --target`). None is a dependency of memplan. Composer's automatic micro-batching asks
for a card and gets a phantom one, on which nothing is computed; all others run on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.common import publish
from benchmarks.guard_others_faults import BATCH, KINDS, NOTHING, SAMPLES, STEPS, Kind, Log, Outcome
from benchmarks.guard_others_runs import COMPOSER, RUNS, run

_PACKAGES = ("lightning", "accelerate", "ultralytics", "mosaicml")
_HEADER = (
    "Trainer",
    "Out of memory in",
    "Ended",
    "Steps lost or repeated",
    "Effective batch",
    "Largest change of a weight",
    "Recovery s",
)
_PATIENCE = 300.0


def main() -> None:
    """Run the trainers and write the table."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    found = _packages()
    summary, details = [], []
    for name in RUNS:
        make = _on_card if name == COMPOSER else lambda kind, name=name: run(kind, name)
        unhit = make(NOTHING)
        outcomes = [make(kind) for kind in KINDS]
        summary.append(_summed(name, unhit, outcomes))
        details += [_row(name, kind, unhit, one) for kind, one in zip(KINDS, outcomes, strict=True)]
    publish(
        "guard_others",
        "Out of memory beside the remedies of others",
        _HEADER,
        [*summary, *details],
        [
            f"Every run is {STEPS} steps of the optimizer of {BATCH} samples, over 3 epochs; from "
            "the fault on more than 4 find no room. Rows of all 8 faults come first.",
            "Steps lost or repeated: of a run that died, what it had done, since nothing was saved "
            "(a checkpoint an epoch would keep the epochs before); else what it trained beyond the "
            "recipe's samples, started anew or an epoch again.",
            "Effective batch: samples a step in the last epoch. Largest change of a weight: "
            "against the trainer's own run that nothing hit, at the end.",
            "Recovery: from the error until training is past the batch that it came at.",
            "Lightning's finder tries batches before training, by doubling; here up to the wanted "
            "one. Its trials are no lost steps.",
            "Composer runs on a phantom card, which computes nothing, and watched by `memplan "
            "run`: no weights, and its seconds are an upper bound. After one in the optimizer's "
            "step it clears the gradients and repeats the batch (trainer.py, "
            "`_adjust_device_train_microbatch_size`); the weights, half changed, stay.",
            "Ultralytics keeps its effective batch by accumulation (nbs); its own retry works in "
            "the first epoch only. Its loss is normalized by each piece's own positive anchors.",
            "Validation of Ultralytics is not its callback's to repeat.",
            f"Packages: {found}.",
        ],
    )


def _packages() -> str:
    """Return the packages with their versions; ends where one is missing, whose rows would lack."""
    try:
        return ", ".join(f"{one} {importlib.metadata.version(one)}" for one in _PACKAGES)
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed here; see the head of {__file__}.")


def _on_card(kind: Kind) -> Outcome:
    """Return Composer's run on a phantom card."""
    number = KINDS.index(kind) if kind in KINDS else -1
    command = [sys.executable, "-m", "memplan", "run", "--gpu", "rtx-3090", "--steps", "1000", "--"]
    command += [sys.executable, "-m", "benchmarks.guard_others_runs", str(number)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_PATIENCE, check=False, cwd=root
    )
    line = next((one for one in done.stderr.splitlines() if one.startswith('{"died"')), None)
    line = line or next(one for one in done.stdout.splitlines() if one.startswith('{"died"'))
    found = json.loads(line)
    log = Log(kind, [frozenset(step) for step in found["steps"]], found["times"], found["raised"])
    log.raised_at = tuple(found["raised_at"])
    return Outcome(log, found["died"])


def _row(name: str, kind: Kind, unhit: Outcome, found: Outcome) -> tuple[str, ...]:
    if found.died:
        lost = f"{_lost(found, unhit):g} lost"
        return (name, kind.title, f"died: {found.died}", lost, "", "", "")
    seconds = found.recovery_seconds
    return (
        name,
        kind.title,
        "well" if found.log.raised else "not hit",
        f"{_lost(found, unhit):g}",
        f"{_batch(found):g} of {BATCH}",
        _change(unhit, found),
        "" if seconds is None else f"{seconds:.2f}",
    )


def _lost(found: Outcome, unhit: Outcome) -> float:
    return len(found.log.steps) if found.died else max(found.extra_steps - unhit.extra_steps, 0)


def _batch(found: Outcome) -> float:
    return statistics.median(map(len, found.log.steps[-SAMPLES // BATCH :]))


def _change(unhit: Outcome, found: Outcome) -> str:
    pairs = zip(unhit.weights, found.weights, strict=True)
    change = max((float((one - other).abs().max()) for one, other in pairs), default=None)
    if change is None:
        return "not computed"
    return f"{change:.1e}" if change else "none"


def _summed(name: str, unhit: Outcome, outcomes: list[Outcome]) -> tuple[str, ...]:
    alive = [one for one in outcomes if not one.died]
    seconds = [one.recovery_seconds for one in alive]
    known = [one for one in seconds if one is not None]
    return (
        name,
        "all 8",
        f"{len(alive)} of {len(outcomes)} well",
        f"{sum(_lost(one, unhit) for one in outcomes):g}",
        f"kept by {sum(one.kept_batch for one in alive)} of {len(alive)}",
        "",
        f"{statistics.median(known):.2f}" if known else "",
    )


if __name__ == "__main__":
    main()
