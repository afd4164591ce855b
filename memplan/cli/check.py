"""`memplan check`: a gate for continuous integration."""

from __future__ import annotations

from pathlib import Path

import click

from memplan.cli.common import folded
from memplan.errors import BadInputError, MemplanError
from memplan.present.findings import markdown
from memplan.units import parse_bytes


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
    "--annotations", is_flag=True, help="Print what was found as GitHub's ::error lines too."
)
@click.option(
    "--summary",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Append a Markdown summary, such as to $GITHUB_STEP_SUMMARY.",
)
@click.option(
    "--batch", type=int, metavar="N", help="Which micro-batch size.  [the largest probed]"
)
def command(
    file: Path,
    budget: str | None,
    baseline: Path | None,
    tolerance: float,
    batch: int | None,
    annotations: bool,
    summary: Path | None,
) -> None:
    """Fail (exit 1) when a saved probe or run is over a budget or has outgrown a baseline.

    \b
    memplan check probe.json --budget 20GiB --baseline main.json --tolerance 0.01
    """
    from memplan.advise.regression import check

    most = None if budget is None else parse_bytes(budget)
    checked = check(file, budget=most, baseline=baseline, tolerance=tolerance, batch=batch)
    findings = [finding for one in checked for finding in one.findings]
    if findings:
        click.echo(folded("\n".join(finding.text() for finding in findings)))
    for finding in findings if annotations else ():
        click.echo(finding.annotation(str(file)))
    if summary is not None:
        _append(summary, markdown(str(file), most, checked))
    if any(one.has_failed for one in checked):
        raise MemplanError(f"{file} failed the check.")
    click.echo(f"{file}: ok.")


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise BadInputError(
            f"--summary {path} cannot be written ({reason}). Name another file."
        ) from None
