"""Holds saved probes and runs against a budget and a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from memplan.answers import BatchPeaks, ProbeAnswer, load_answers
from memplan.errors import BadInputError, UsageError
from memplan.present.findings import Checked, Finding
from memplan.script_answer import ScriptAnswer
from memplan.units import format_bytes, parse_bytes

_MOST_MODULES = 10

Answer = ProbeAnswer | ScriptAnswer


def check(
    answers: Path | str | Answer | Sequence[Answer],
    *,
    budget: int | str | None = None,
    baseline: Path | str | Answer | Sequence[Answer] | None = None,
    tolerance: float = 0.01,
    batch: int | None = None,
) -> list[Checked]:
    """Return what is to be said of probes and runs over a budget, or that outgrew a baseline.

    Args:
        answers: of `memplan.probe` and `memplan.run`, or a file of them.
        budget: the most device-used memory, in bytes or as text such as "20GiB".
        baseline: what was saved earlier, of the same workloads and cards; nothing may have grown.
        tolerance: growth over the baseline that is let pass, as a fraction.
        batch: of probes, the micro-batch size; None takes the largest probed.

    Returns:
        One for each answer; `has_failed` tells whether it passed.

    Raises:
        UsageError: there is nothing to check against, or a number is out of its range.
        BadInputError: a file holds no answers, or the baseline has none of the same kind.
    """
    if budget is None and baseline is None:
        raise UsageError("Nothing to check against. Give --budget SIZE or --baseline FILE.")
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance {tolerance} is not a fraction of 0 or more, such as 0.01.")
    most = parse_bytes(budget) if isinstance(budget, str) else budget
    before = None if baseline is None else _Baseline(_name(baseline), _answers(baseline))
    limits = _Limits(most, before, tolerance)
    return [_checked(answer, limits, batch) for answer in _answers(answers)]


def _name(given: Path | str | Answer | Sequence[Answer]) -> str:
    return str(given) if isinstance(given, Path | str) else "The baseline"


@dataclass(frozen=True)
class _Baseline:
    """What was saved earlier."""

    name: str
    answers: list[Answer]


@dataclass(frozen=True)
class _Limits:
    """What answers are held against."""

    budget_bytes: int | None
    baseline: _Baseline | None
    tolerance: float

    def outgrown(self, now: int, before: int) -> str | None:
        """Return by how much memory grew, where that is more than is allowed."""
        if now <= before * (1 + self.tolerance):
            return None
        return f"{now / max(1, before) - 1:+.1%} against {self.tolerance:.1%} allowed"

    def over(self, subject: str, used: int, origin: str) -> list[Finding]:
        """Return what is to be said of memory over the budget."""
        if self.budget_bytes is None or used <= self.budget_bytes:
            return []
        need, allowed = format_bytes(used), format_bytes(self.budget_bytes)
        message = f"{subject} needs {need} device-used ({origin}), over {allowed}."
        return [Finding(message=message)]


def _answers(given: Path | str | Answer | Sequence[Answer]) -> list[Answer]:
    if isinstance(given, ProbeAnswer | ScriptAnswer):
        return [given]
    if not isinstance(given, Path | str):
        return list(given)
    answers = [
        one for one in load_answers(Path(given)) if isinstance(one, ProbeAnswer | ScriptAnswer)
    ]
    if not answers:
        raise BadInputError(
            f"{given} holds no probe. Save one with `memplan probe --output` or `memplan run "
            "--output`."
        )
    return answers


def _checked(answer: Answer, limits: _Limits, batch: int | None) -> Checked:
    if isinstance(answer, ProbeAnswer):
        return _checked_probe(answer, limits, _row(answer, batch))
    if batch is not None:
        raise UsageError("--batch is for probes; a `memplan run` file is of one batch.")
    return _checked_script(answer, limits)


def _row(probe: ProbeAnswer, batch: int | None) -> BatchPeaks:
    rows = {row.micro_batch_size: row for row in probe.batches}
    wanted = max(rows) if batch is None else batch
    if wanted not in rows:
        raise UsageError(f"--batch {wanted} was not probed. Probed: {min(rows)} to {max(rows)}.")
    return rows[wanted]


def _checked_probe(probe: ProbeAnswer, limits: _Limits, row: BatchPeaks) -> Checked:
    name = f"{probe.workload.name} on {probe.gpu.name}"
    subject = f"{name}: batch {row.micro_batch_size}"
    findings = limits.over(subject, row.device_used_peak_bytes, "predicted")
    before = None
    if limits.baseline is not None:
        other = _twin(probe, limits.baseline)
        old = {one.micro_batch_size: one for one in other.batches}.get(row.micro_batch_size)
        if old is None:
            raise BadInputError(
                f"{limits.baseline.name} has no batch {row.micro_batch_size} of {name} to compare "
                "with. Probe it again with that batch, or name another with --batch."
            )
        before = old.reserved_peak_bytes
        change = limits.outgrown(row.reserved_peak_bytes, before)
        if change is not None:
            sizes = f"{format_bytes(before)} to {format_bytes(row.reserved_peak_bytes)}"
            findings.append(
                Finding(
                    message=f"{subject} grew from {sizes} reserved (predicted), {change}.",
                    column="Activations an image",
                    modules=_probe_modules(probe, other),
                )
            )
        findings += _differences(name, probe, other)
    return Checked(
        subject=subject,
        used_bytes=row.device_used_peak_bytes,
        reserved_bytes=row.reserved_peak_bytes,
        before_bytes=before,
        findings=tuple(findings),
    )


def _twin(probe: ProbeAnswer, baseline: _Baseline) -> ProbeAnswer:
    """Return the probe of the same workload and card whose settings differ least."""
    same = [
        other
        for other in baseline.answers
        if isinstance(other, ProbeAnswer)
        and other.gpu.name == probe.gpu.name
        and other.workload.name == probe.workload.name
    ]
    if not same:
        raise BadInputError(
            f"{baseline.name} has no probe of {probe.workload.name} on {probe.gpu.name} to "
            "compare with."
        )
    return min(same, key=lambda other: len(_changed(probe, other)))


def _changed(probe: ProbeAnswer, other: ProbeAnswer) -> list[str]:
    """Return the settings of workload and card that differ, each with both values."""
    now = asdict(probe.workload) | asdict(probe.gpu)
    before = asdict(other.workload) | asdict(other.gpu)
    return [f"{name} {before[name]} to {now[name]}" for name in now if now[name] != before[name]]


def _differences(name: str, probe: ProbeAnswer, other: ProbeAnswer) -> list[Finding]:
    changed = _changed(probe, other)
    message = f"{name}: not set as in the baseline: {', '.join(changed)}."
    return [Finding(message=message, is_failure=False)] if changed else []


def _probe_modules(probe: ProbeAnswer, other: ProbeAnswer) -> tuple[tuple[str, str], ...]:
    # Each probe's modules are about its own reference batch, so they are compared an image.
    before = {one.path: one.activation_bytes / other.reference_batch for one in other.modules}
    now = {one.path: one.activation_bytes / probe.reference_batch for one in probe.modules}
    return _grown(now, before, "(loss)")


def _grown(
    now: Mapping[str, float], before: Mapping[str, float], outside: str
) -> tuple[tuple[str, str], ...]:
    """Return the modules that grew most, each with by how much."""
    grown = {path: size - before.get(path, 0) for path, size in now.items()}
    worst = sorted(grown, key=lambda path: -grown[path])[:_MOST_MODULES]
    return tuple((path or outside, format_bytes(grown[path])) for path in worst if grown[path] >= 1)


def _checked_script(script: ScriptAnswer, limits: _Limits) -> Checked:
    subject = f"`{script.command}` on {script.gpu}"
    if not script.runs:
        found = (Finding(message=f"{subject} does not run."),)
        return Checked(subject=subject, used_bytes=None, reserved_bytes=None, findings=found)
    findings = limits.over(subject, script.device_used_peak_bytes, "phantom")
    before = None
    if limits.baseline is not None:
        other = _script_twin(script, limits.baseline)
        before = other.reserved_peak_bytes
        change = limits.outgrown(script.reserved_peak_bytes, before)
        if change is not None:
            sizes = f"{format_bytes(before)} to {format_bytes(script.reserved_peak_bytes)}"
            old, new = (_script_modules(one) for one in (other, script))
            findings.append(
                Finding(
                    message=f"{subject} grew from {sizes} reserved (phantom), {change}.",
                    column="At the peak",
                    modules=_grown(new, old, "(outside modules)"),
                )
            )
    return Checked(
        subject=subject,
        used_bytes=script.device_used_peak_bytes,
        reserved_bytes=script.reserved_peak_bytes,
        before_bytes=before,
        findings=tuple(findings),
    )


def _script_modules(script: ScriptAnswer) -> dict[str, int]:
    return {one["path"]: one["bytes"] for one in script.modules}


def _script_twin(script: ScriptAnswer, baseline: _Baseline) -> ScriptAnswer:
    for other in baseline.answers:
        if (
            isinstance(other, ScriptAnswer)
            and (other.gpu, other.num_devices, other.command)
            == (script.gpu, script.num_devices, script.command)
            and other.runs
        ):
            return other
    raise BadInputError(
        f"{baseline.name} has no run of `{script.command}` on {script.num_devices} x {script.gpu} "
        "that got through. Save one with `memplan run --output` and the same command."
    )
