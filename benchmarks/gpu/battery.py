"""Runs cases one by one, each in child processes, until the slice of time is nearly over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import Case
from benchmarks.gpu.job import PREDICTION_SUFFIX, Job
from memplan.device.card import Card
from memplan.trace.history import SUFFIX, Recording, load_recording

RECORDINGS = Path(__file__).parents[1] / "recordings"
# What is left of a slice for a case to be begun, seconds: below it even a small one is cut off.
_LEAST_SECONDS = 25.0
_PREDICTION_SECONDS = 180.0


@dataclass(kw_only=True)
class Outcome:
    """What became of the cases of a slice, by name."""

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Finished before, here or in `benchmarks/recordings`."""
    failed: list[str] = field(default_factory=list)
    """Recorded as failed; the reason is in the file."""
    left: list[str] = field(default_factory=list)
    """Not begun, or cut off by the end of the slice."""


@dataclass(frozen=True, kw_only=True)
class Battery:
    """How a slice runs."""

    folder: Path
    card: Card
    device: str
    seconds: float
    bundle: Path | None = None
    """One archive of the folder, renewed after each case; None makes none."""
    again: tuple[str, ...] = ()
    """Names of cases to run although they are done."""
    only_predict: bool = False
    say: Callable[[str], None] = print

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Run the cases in order and return what became of each."""
        self.folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + self.seconds
        outcome, longest = Outcome(), 0.0
        for number, case in enumerate(cases):
            job = Job(case=case, card=self.card, device=self.device, folder=self.folder)
            if self._is_done(job):
                outcome.kept.append(case.name)
                continue
            start = time.monotonic()
            # A case like the slowest so far must still have room.
            if end - start < max(_LEAST_SECONDS, longest):
                outcome.left += [
                    each.name for each in cases[number:] if not self._is_done(self._job(each))
                ]
                break
            what = self._run(job, end)
            longest = max(longest, time.monotonic() - start)
            getattr(outcome, what).append(case.name)
            self.say(f"{time.monotonic() - start:6.1f} s  {what:6}  {case.name}")
            if self.bundle is not None:
                bundle_up(self.folder, self.bundle)
        return outcome

    def _job(self, case: Case) -> Job:
        return Job(case=case, card=self.card, device=self.device, folder=self.folder)

    def _is_done(self, job: Job) -> bool:
        if job.case.name in self.again:
            return False
        name = job.stem + SUFFIX
        if self.only_predict:
            return job.prediction_path.exists()
        return any((folder / name).exists() for folder in (self.folder, RECORDINGS))

    def _run(self, job: Job, end: float) -> str:
        """Return the list of `Outcome` that the case belongs on."""
        if not (job.prediction_path.exists() and not self._is_stale(job)):
            hidden = {"CUDA_VISIBLE_DEVICES": ""}
            most = min(_PREDICTION_SECONDS, end - time.monotonic())
            failure = _child("predict", job, most, hidden)
            if failure is not None:
                return self._failed(job, f"prediction {failure}", {}, end)
        if self.only_predict:
            return "done"
        environment = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_MODULE_LOADING": "LAZY"}
        if job.case.allocator:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = job.case.allocator
        most = min(float(job.case.most_seconds), end - time.monotonic())
        failure = _child("measure", job, most, environment)
        if failure is None:
            return "done"
        return self._failed(job, failure, _read_json(job.prediction_path), end)

    @staticmethod
    def _is_stale(job: Job) -> bool:
        """Return whether a prediction was made with other libraries than are installed."""
        from memplan.advise.question import versions

        made = _read_json(job.prediction_path).get("versions", {})
        return any(made.get(name) != version for name, version in versions().items()
                   if name in {"memplan", "torch", "cudnn"})  # fmt: skip

    def _failed(self, job: Job, reason: str, prediction: dict[str, Any], end: float) -> str:
        if time.monotonic() >= end:
            return "left"
        from benchmarks.gpu.machine import machine_facts

        facts = {
            "case": job.case.to_json(),
            "group": job.case.group,
            "machine": machine_facts(job.device),
            "prediction": prediction,
            "measured": {},
            "failure": reason,
        }
        Recording(facts=facts).save(job.folder / (job.stem + SUFFIX))
        return "failed"


def _child(what: str, job: Job, most_seconds: float, environment: dict[str, str]) -> str | None:
    """Run one half of a case; return why it failed, None if it did not."""
    command = [sys.executable, "-m", "benchmarks.gpu.child", what]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, **environment},
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(job.to_text(), timeout=max(1.0, most_seconds))
        except subprocess.TimeoutExpired:
            # Its own children hold the card, too.
            os.killpg(process.pid, signal.SIGKILL)
            return f"took longer than {most_seconds:.0f} s"
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"was killed by signal {-process.returncode}"
    lines = [line for line in errors.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exited with {process.returncode}").replace(str(root), ".")


def _read_json(path: Path) -> dict[str, Any]:
    import json

    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values


def bundle_up(folder: Path, bundle: Path) -> None:
    """Write every recording of a folder into one archive, whole or not at all."""
    partial = bundle.with_name(bundle.name + ".part")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            archive.write(path, path.name)
    partial.replace(bundle)


def recordings_in(folder: Path) -> dict[str, Recording]:
    """Return a folder's recordings by file name without ending.

    Raises:
        BadTapeError: one of them cannot be read.
    """
    return {
        path.name.removesuffix(SUFFIX): load_recording(path)
        for path in sorted(folder.glob(f"*{SUFFIX}"))
    }


__all__ = ["PREDICTION_SUFFIX", "RECORDINGS", "Battery", "Outcome", "bundle_up", "recordings_in"]
