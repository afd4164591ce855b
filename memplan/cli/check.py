"""`memplan check`: a gate for continuous integration."""

from __future__ import annotations

import math
from pathlib import Path

import click

from memplan.answers import BatchPeaks, ProbeAnswer, load_answers
from memplan.cli.common import folded, table
from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.units import format_bytes, parse_bytes

_MOST_MODULES = 10


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="Most device-used memory, such as 20GiB.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A probe saved earlier; nothing may have grown.",
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
    """Fail (exit 1) when a saved probe is over a budget or has outgrown a baseline.

    \b
    memplan check probe.json --budget 20GiB --baseline main.json --tolerance 0.01
    """
    if budget is None and baseline is None:
        raise UsageError("Nothing to check against. Give --budget SIZE or --baseline FILE.")
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance {tolerance} is not a fraction of 0 or more, such as 0.01.")
    probes = _probes(file)
    failures: list[str] = []
    for probe in probes:
        row = _row(probe, batch)
        if budget is not None:
            failures += _over_budget(probe, row, parse_bytes(budget))
        if baseline is not None:
            failures += _grown(probe, row, _twin(probe, baseline), tolerance)
    if failures:
        click.echo(folded("\n".join(failures)))
        raise MemplanError(f"{file} failed the check.")
    click.echo(f"{file}: ok.")


def _probes(file: Path) -> list[ProbeAnswer]:
    probes = [answer for answer in load_answers(file) if isinstance(answer, ProbeAnswer)]
    if not probes:
        raise BadInputError(f"{file} holds no probe. Save one with `memplan probe --output`.")
    return probes


def _row(probe: ProbeAnswer, batch: int | None) -> BatchPeaks:
    rows = {row.micro_batch_size: row for row in probe.batches}
    wanted = max(rows) if batch is None else batch
    if wanted not in rows:
        raise UsageError(f"--batch {wanted} was not probed. Probed: {min(rows)} to {max(rows)}.")
    return rows[wanted]


def _twin(probe: ProbeAnswer, baseline: Path) -> ProbeAnswer:
    for other in _probes(baseline):
        if other.gpu.name == probe.gpu.name and other.workload.name == probe.workload.name:
            return other
    raise BadInputError(
        f"{baseline} has no probe of {probe.workload.name} on {probe.gpu.name} to compare with."
    )


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
