"""`memplan gpus`: the catalogue of cards, those in this machine, and what was measured of them."""

from __future__ import annotations

import json
import re

import click

from memplan.cli.common import Progress, wrote
from memplan.device import calibration as calibrations
from memplan.device.calibration import Calibration
from memplan.device.known import gpus
from memplan.present.section import aligned as table
from memplan.units import format_bytes, gib

_MAKERS = re.compile(r"NVIDIA |GeForce |Tesla ")  # a table of 80 columns has no room for them


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, memory in bytes.")
@click.option(
    "--calibrate",
    "index",
    type=click.IntRange(min=0),
    metavar="INDEX",
    help="Measure that card of this machine, about a minute, and keep what was found.",
)
def command(*, as_json: bool, index: int | None) -> None:
    """List the cards that --gpu knows, and those in this machine.

    A card that was measured with --calibrate is marked: probe, plan and train use its own context
    and speed from then on. What is kept can be given to others, for their --calibration.

    \b
    memplan gpus
    memplan gpus --calibrate 0
    """
    if index is not None:
        _calibrate(index, as_json=as_json)
        return
    known = gpus(lambda line: click.echo(f"Warning: {line}", err=True))
    if as_json:
        click.echo(json.dumps(known.to_json(), indent=1, default=str))
        return
    present, kept = known.present, known.calibrations
    if present:
        here = [
            (
                str(one.index),
                one.card.title,
                gib(one.card.capacity_bytes),
                gib(one.free_bytes),
                _measured_on(kept, one.card.name) or "no",
            )
            for one in present
        ]
        click.echo("In this machine (measured)")
        columns = ("Index", "Card", "Capacity GiB", "Free GiB", "Calibrated")
        click.echo(table(columns, here, left=2))
    else:
        click.echo("No NVIDIA card is in this machine; predictions need none.")
    rows = [
        (
            card.name,
            _MAKERS.sub("", card.title),
            ".".join(map(str, card.compute_capability)),
            gib(card.capacity_bytes),
            f"{gib(card.context_bytes)} ± {gib(card.context_uncertainty_bytes)}",
            f"{card.bandwidth_bytes_per_second / 1e9:.0f}",
            f"{card.fp16_flops / 1e12:.0f}",
        )
        for card in known.catalogue
    ]
    header = ("Name", "Card", "Arch", "GiB", "Context GiB", "GB/s", "TFLOP/s")
    click.echo("\nCatalogue (published figures; memplan/device/gpus.yaml names their sources)")
    click.echo("GiB: the card's memory. Context: of it, what a process holds beside PyTorch's")
    click.echo("allocator. TFLOP/s: float16 products summed in float32, as under AMP.")
    click.echo(table(header, rows, left=2))
    if kept:
        click.echo("\nCalibrated (measured; used in place of the catalogue's context and speed)")
        click.echo(_calibration_table(kept))


def _measured_on(kept: dict[str, Calibration], name: str) -> str:
    return kept[name].measured_on if name in kept else ""


def _calibration_table(kept: dict[str, Calibration]) -> str:
    rows = [
        (
            name,
            one.measured_on,
            f"{gib(one.context_bytes)} ± {gib(one.context_uncertainty_bytes)}",
            f"{one.bandwidth_fraction:.0%}",
            f"{one.rates.fp16_fraction:.0%}",
            f"{one.launch_seconds * 1e6:.1f}",
            one.versions.get("torch", "?"),
            one.versions.get("cudnn", "?"),
        )
        for name, one in kept.items()
    ]
    header = (
        "Name",
        "Measured on",
        "Context GiB",
        "Of bandwidth",
        "Of fp16 peak",
        "Launch us",
        "torch",
        "cuDNN",
    )
    return table(header, rows, left=2)


def _calibrate(index: int, *, as_json: bool) -> None:
    from memplan.advise.calibrating import calibrate

    progress = Progress()
    try:
        found = calibrate(index, say=progress)
    finally:
        progress.done()
    path = calibrations.path_of(found.card)
    found.save(path)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        click.echo(
            f"{found.device_name}: {format_bytes(found.context_bytes)} outside the allocator, "
            f"{found.rates.fp16_fraction:.0%} of the fp16 peak, {found.bandwidth_fraction:.0%} of "
            f"the bandwidth (measured; fitted times are off by "
            f"{found.median_error_fraction:.0%} in the median)."
        )
    wrote(path)
