"""`memplan check`: a gate for continuous integration."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import click

from memplan.answers import BatchPeaks, ProbeAnswer, load_answers
from memplan.cli.common import folded
from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.present.section import aligned as table
from memplan.script_answer import ScriptAnswer
from memplan.units import format_bytes, parse_bytes

_MOST_MODULES = 10


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="Most device-used memory, such as 20GiB.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A probe or run saved earlier; nothing may have grown.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.01,
    show_default=True,
    metavar="FRACTION",
    help="Growth over the baseline that is let pass.",
)
@click.option(
    "--batch", type=int, metavar="N", help="Which micro-batch size.  [the largest probed]"
)
def command(
    file: Path, budget: str | None, baseline: Path | None, tolerance: float, batch: int | None
) -> None:
    """Fail (exit 1) when a saved probe or run is over a budget or has outgrown a baseline.

    \b
    memplan check probe.json --budget 20GiB --baseline main.json --tolerance 0.01
    """
    if budget is None and baseline is None:
        raise UsageError("Nothing to check against. Give --budget SIZE or --baseline FILE.")
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance {tolerance} is not a fraction of 0 or more, such as 0.01.")
    failures: list[str] = []
    different: list[str] = []
    answers = _answers(file)
    for script in (one for one in answers if isinstance(one, ScriptAnswer)):
        if batch is not None:
            raise UsageError("--batch is for probes; a `memplan run` file is of one batch.")
        failures += _check_script(script, budget, baseline, tolerance)
    for probe in (one for one in answers if isinstance(one, ProbeAnswer)):
        row = _row(probe, batch)
        if budget is not None:
            failures += _over_budget(probe, row, parse_bytes(budget))
        if baseline is not None:
            other = _twin(probe, baseline)
            failures += _grown(probe, row, other, tolerance)
            different += _differences(probe, other)
    if failures or different:
        click.echo(folded("\n".join(failures + different)))
    if failures:
        raise MemplanError(f"{file} failed the check.")
    click.echo(f"{file}: ok.")


def _answers(file: Path) -> list[ProbeAnswer | ScriptAnswer]:
    answers = [one for one in load_answers(file) if isinstance(one, ProbeAnswer | ScriptAnswer)]
    if not answers:
        raise BadInputError(
            f"{file} holds no probe. Save one with `memplan probe --output` or `memplan run "
            "--output`."
        )
    return answers


def _row(probe: ProbeAnswer, batch: int | None) -> BatchPeaks:
    rows = {row.micro_batch_size: row for row in probe.batches}
    wanted = max(rows) if batch is None else batch
    if wanted not in rows:
        raise UsageError(f"--batch {wanted} was not probed. Probed: {min(rows)} to {max(rows)}.")
    return rows[wanted]


def _twin(probe: ProbeAnswer, baseline: Path) -> ProbeAnswer:
    """Return the probe of the same workload and card whose settings differ least."""
    same = [
        other
        for other in _answers(baseline)
        if isinstance(other, ProbeAnswer)
        and other.gpu.name == probe.gpu.name
        and other.workload.name == probe.workload.name
    ]
    if not same:
        raise BadInputError(
            f"{baseline} has no probe of {probe.workload.name} on {probe.gpu.name} to compare with."
        )
    return min(same, key=lambda other: len(_changed(probe, other)))


def _changed(probe: ProbeAnswer, other: ProbeAnswer) -> list[str]:
    """Return the settings of workload and card that differ, each with both values."""
    now = asdict(probe.workload) | asdict(probe.gpu)
    before = asdict(other.workload) | asdict(other.gpu)
    return [f"{name} {before[name]} to {now[name]}" for name in now if now[name] != before[name]]


def _differences(probe: ProbeAnswer, other: ProbeAnswer) -> list[str]:
    changed = _changed(probe, other)
    if not changed:
        return []
    subject = f"{probe.workload.name} on {probe.gpu.name}"
    return [f"{subject}: not set as in the baseline: {', '.join(changed)}."]


def _check_script(
    script: ScriptAnswer, budget: str | None, baseline: Path | None, tolerance: float
) -> list[str]:
    subject = f"`{script.command}` on {script.gpu}"
    if not script.runs:
        return [f"{subject} does not run."]
    failures = []
    used = script.device_used_peak_bytes
    if budget is not None and used > parse_bytes(budget):
        allowed = format_bytes(parse_bytes(budget))
        failures.append(
            f"{subject} needs {format_bytes(used)} device-used (phantom), over {allowed}."
        )
    if baseline is not None:
        failures += _script_grown(subject, script, _script_twin(script, baseline), tolerance)
    return failures


def _script_twin(script: ScriptAnswer, baseline: Path) -> ScriptAnswer:
    for other in _answers(baseline):
        if (
            isinstance(other, ScriptAnswer)
            and (other.gpu, other.num_devices, other.command)
            == (script.gpu, script.num_devices, script.command)
            and other.runs
        ):
            return other
    raise BadInputError(
        f"{baseline} has no run of `{script.command}` on {script.num_devices} x {script.gpu} that "
        "got through. Save one with `memplan run --output` and the same command."
    )


def _script_grown(
    subject: str, script: ScriptAnswer, other: ScriptAnswer, tolerance: float
) -> list[str]:
    now, before = script.reserved_peak_bytes, other.reserved_peak_bytes
    if now <= before * (1 + tolerance):
        return []
    sizes = f"{format_bytes(before)} to {format_bytes(now)} reserved (phantom)"
    change = f"{now / max(1, before) - 1:+.1%} against {tolerance:.1%} allowed"
    lines = [f"{subject} grew from {sizes}, {change}."]
    old = {one["path"]: one["bytes"] for one in other.modules}
    grown = {one["path"]: one["bytes"] - old.get(one["path"], 0) for one in script.modules}
    worst = sorted(grown, key=lambda path: -grown[path])[:_MOST_MODULES]
    rows = [
        (path or "(outside modules)", format_bytes(grown[path]))
        for path in worst
        if grown[path] > 0
    ]
    if rows:
        lines.append(table(("Module that grew", "At the peak"), rows))
    return lines


def _subject(probe: ProbeAnswer, row: BatchPeaks) -> str:
    return f"{probe.workload.name} on {probe.gpu.name}: batch {row.micro_batch_size}"


def _over_budget(probe: ProbeAnswer, row: BatchPeaks, budget: int) -> list[str]:
    if row.device_used_peak_bytes <= budget:
        return []
    need = format_bytes(row.device_used_peak_bytes)
    allowed = format_bytes(budget)
    return [f"{_subject(probe, row)} needs {need} device-used (predicted), over {allowed}."]


def _grown(probe: ProbeAnswer, row: BatchPeaks, other: ProbeAnswer, tolerance: float) -> list[str]:
    before = _row(other, row.micro_batch_size)
    growth = row.reserved_peak_bytes / before.reserved_peak_bytes - 1
    if growth <= tolerance:
        return []
    sizes = f"{format_bytes(before.reserved_peak_bytes)} to {format_bytes(row.reserved_peak_bytes)}"
    change = f"{growth:+.1%} against {tolerance:.1%} allowed"
    lines = [f"{_subject(probe, row)} grew from {sizes} reserved (predicted), {change}."]
    old = {module.path: module.activation_bytes for module in other.modules}
    # Each probe's modules are about its own reference batch, so they are compared an image.
    changes = {
        module.path: module.activation_bytes / probe.reference_batch
        - old.get(module.path, 0) / other.reference_batch
        for module in probe.modules
    }
    worst = sorted(changes, key=lambda path: -changes[path])[:_MOST_MODULES]
    rows = [(path or "(loss)", format_bytes(changes[path])) for path in worst if changes[path] >= 1]
    if rows:
        lines.append(table(("Module that grew", "Activations an image"), rows))
    return lines
