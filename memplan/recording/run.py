"""`memplan.run`: a command on a card that is not there, in one call."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from memplan.device.card import Card
from memplan.device.chosen import calibrated_card
from memplan.errors import UsageError
from memplan.recording.find_batch import MOST_TRIALS
from memplan.recording.find_batch import find_batch as largest_batch
from memplan.recording.script import ScriptRequest, run_script
from memplan.script_answer import ScriptAnswer
from memplan.units import parse_bytes


def run(
    command: str | Sequence[str],
    *,
    gpu: str | int | Card,
    capacity: str | int | None = None,
    devices: int = 1,
    steps: int | None = None,
    find_batch: str | None = None,
    selected: float = 0.01,
    read: Mapping[str, float] | None = None,
    timeout_seconds: float = 900.0,
    prints: bool = False,
    asks: bool = False,
    tolerance: float = 0.0,
    trials: int = MOST_TRIALS,
    snapshot: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
) -> ScriptAnswer:
    """Return what a training command takes on a card that is not there.

    Args:
        command: starts Python, such as `"python train.py --batch 16"`.
        gpu: a name of the catalogue, an index in this machine, or a card.
        capacity: memory that the card is taken to have, bytes or such as `"12GiB"`.
        devices: how many such cards, >= 1.
        steps: optimizer steps to watch; None until peaks are steady.
        find_batch: the command's option that gives the batch; its largest value is looked for.
        selected: part of a mask over network outputs that is taken as true, 0 to 1.
        read: what single lines of the script read, by `file.py:12`.
        timeout_seconds: end the script after so long.
        prints: whether what the script prints is passed on to standard error.
        asks: whether the script may read this process's standard input; with `find_batch` none.
        tolerance: part that the batch found may be short of the largest, >= 0; 0 finds it exactly.
        trials: how often the command is run to find it, at most.
        snapshot: where the allocator's history goes, as PyTorch's memory snapshot; not with
            `find_batch`, which runs the command many times.
        say: told what is being done.
        tell: told what came of each trial.

    Raises:
        UnknownNameError: the catalogue has no such card.
        UsageError: a value is out of its range.
        BadInputError: the command is not Python, or never used CUDA.
        MemplanError: the script did not end in time.
    """
    words = shlex.split(command) if isinstance(command, str) else command
    request = ScriptRequest(
        command=tuple(words),
        card=calibrated_card(gpu),
        capacity_bytes=parse_bytes(capacity) if isinstance(capacity, str) else capacity,
        num_devices=devices,
        steps=steps,
        timeout_seconds=timeout_seconds,
        selected=selected,
        at_line=dict(read or {}),
        prints=prints,
        asks=asks,
        snapshot=snapshot,
    )
    if snapshot is not None and find_batch:
        raise UsageError(
            "--snapshot is of one run, and --find-batch makes many. Run the batch it finds."
        )
    if not find_batch:
        return run_script(request, say)
    return largest_batch(request, find_batch, say, tell, tolerance=tolerance, most_trials=trials)
