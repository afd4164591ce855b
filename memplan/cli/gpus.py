"""`memplan gpus`: the catalogue of cards, and those in this machine."""

from __future__ import annotations

import dataclasses
import json

import click

from memplan.cli.common import table
from memplan.device import catalogue, nvml
from memplan.units import gib


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, memory in bytes.")
def command(*, as_json: bool) -> None:
    """List the cards that --gpu knows, and those in this machine.

    \b
    memplan gpus
    """
    present = nvml.present()
    cards = catalogue.cards()
    if as_json:
        click.echo(
            json.dumps(
                {
                    "catalogue": [dataclasses.asdict(card) for card in cards],
                    "present": [dataclasses.asdict(card) for card in present],
                },
                indent=1,
                default=str,
            )
        )
        return
    if present:
        here = [
            (str(one.index), one.card.title, gib(one.card.capacity_bytes), gib(one.free_bytes))
            for one in present
        ]
        click.echo("In this machine (measured)")
        click.echo(table(("Index", "Card", "Capacity GiB", "Free GiB"), here, left=2))
    else:
        click.echo("No NVIDIA card is in this machine; predictions need none.")
    rows = [
        (
            card.name,
            card.title,
            ".".join(map(str, card.compute_capability)),
            gib(card.capacity_bytes),
            f"{gib(card.context_bytes)} ± {gib(card.context_uncertainty_bytes)}",
            f"{card.bandwidth_bytes_per_second / 1e9:.0f}",
            f"{card.fp16_flops / 1e12:.0f}",
        )
        for card in cards
    ]
    header = ("Name", "Card", "Compute", "Capacity GiB", "Context GiB", "GB/s", "fp16 TFLOP/s")
    click.echo("\nCatalogue (published figures; memplan/device/gpus.yaml names their sources)")
    click.echo(table(header, rows, left=2))
