"""Out of memory in the real trainers of others: what memplan's callbacks keep, on a CPU.

    PYTHONPATH=. SIDE/bin/python -m benchmarks.trainers_real

SIDE is an environment of its own with memplan's dependencies and lightning, transformers,
accelerate and ultralytics; none is a dependency of memplan. Each trainer runs a few steps as it is,
then with an error of memory in forward pass, backward pass or optimizer's step wherever a batch of
more than three samples (two images) comes, with and without the callback.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import publish
from benchmarks.trainers_toys import (
    PLACES,
    Hit,
    Outcome,
    difference,
    huggingface_run,
    lightning_run,
    ultralytics_run,
)

_PACKAGES = ("lightning", "transformers", "accelerate", "ultralytics")
_HEADER = (
    "Trainer",
    "Out of memory in",
    "Callback",
    "Ended",
    "Steps",
    "Batch",
    "Retries",
    "Largest change of a weight",
)


def main() -> None:
    """Run the trainers and write the table."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        runs: dict[str, tuple[int, Callable[..., Outcome]]] = {
            "Lightning": (3, lightning_run),
            "Lightning, accumulating 2": (3, _with(lightning_run, accumulate=2)),
            "Transformers, GPT-2": (3, _with(huggingface_run, folder=place)),
            "Transformers, GPT-2, accumulating 2": (
                3,
                _with(huggingface_run, folder=place, accumulate=2),
            ),
            "Transformers, BERT tokens": (
                3,
                _with(huggingface_run, folder=place, kind="tokens"),
            ),
            "Ultralytics, YOLOv8n": (2, _with(ultralytics_run, folder=place)),
        }
        for name, (most, run) in runs.items():
            rows += _rows(name, most, run)
    found = ", ".join(f"{one} {importlib.metadata.version(one)}" for one in _PACKAGES)
    publish(
        "trainers_real",
        "Out of memory in the real trainers of others",
        _HEADER,
        rows,
        [
            "Steps and Batch: optimizer steps taken and the batch in the trainer's settings at the "
            "end, beside those of the run that nothing hit.",
            "Largest change of a weight: against the run that nothing hit, at the end.",
            "Ultralytics retries by itself in the first epoch, with half the batch for the rest of "
            "the run; its detection loss is normalized by each piece's own positive anchors.",
            f"Packages: {found}.",
        ],
    )


def _with(run: Callable[..., Outcome], **names: Any) -> Callable[..., Outcome]:
    return lambda hit, *, guarded: run(hit, guarded=guarded, **names)


def _rows(name: str, most: int, run: Callable[..., Outcome]) -> list[tuple[str, ...]]:
    plain = _quiet(lambda: run(Hit(), guarded=False))
    assert isinstance(plain, Outcome), plain
    rows = [_row(name, "nowhere", "yes", plain, _quiet(lambda: run(Hit(), guarded=True)))]
    for where in PLACES:
        for guarded in (True, False):
            hit = Hit(where, most)
            found = _quiet(lambda hit=hit, guarded=guarded: run(hit, guarded=guarded))
            rows.append(_row(name, where, "yes" if guarded else "no", plain, found))
    return rows


def _quiet(work: Callable[[], Outcome]) -> Outcome | Exception:
    """Return what a run comes to, or the error it died of, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - whatever a trainer dies of is the answer
            return error


def _row(
    name: str, where: str, callback: str, plain: Outcome, found: Outcome | Exception
) -> tuple[str, ...]:
    if isinstance(found, Exception):
        return (name, where, callback, f"died: {type(found).__name__}", "", "", "", "")
    change = difference(plain, found)
    return (
        name,
        where,
        callback,
        "well",
        f"{found.num_steps} of {plain.num_steps}",
        f"{found.batch_size} of {plain.batch_size}",
        str(found.num_events),
        "none" if change == 0 else f"{change:.1e}",
    )


if __name__ == "__main__":
    main()
