"""`python -m benchmarks.gpu`: one slice of the battery."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchmarks.gpu.battery import RECORDINGS, Battery
from benchmarks.gpu.cases import all_cases, matching
from memplan.device import nvml
from memplan.device.card import Card
from memplan.device.chosen import calibrated_card
from memplan.errors import MemplanError, UsageError
from memplan.trace.history import SUFFIX


@click.command()
@click.option(
    "--slice-minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=9.0,
    show_default=True,
    help="Begin no case that would end later.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where recordings go; finished cases in it are not run again.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    metavar="FILE.zip",
    help="One archive of DIR, renewed after each case.",
)
@click.option(
    "--device",
    default="cuda:0",
    show_default=True,
    metavar="NAME",
    help="cuda:0, or cpu: the same cases as far as a CPU knows them.",
)
@click.option("--gpu", metavar="NAME", help="With --device cpu: the card to predict for.  [h200]")
@click.option("--only", metavar="PATTERN", help="Cases or groups by name.")
@click.option("--again", multiple=True, metavar="CASE", help="Run this one although it is done.")
@click.option(
    "--official",
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH",
    help="A checkout of the official repository, whose own step is run as well.",
)
@click.option(
    "--predict-only",
    is_flag=True,
    help="Write predictions and measure nothing: saves time on the card later.",
)
@click.option("--list", "lists", is_flag=True, help="Print the cases and whether they are done.")
def command(
    *, slice_minutes: float, out: Path | None, bundle: Path | None, device: str, gpu: str | None,
    only: str | None, again: tuple[str, ...], official: Path | None, predict_only: bool,
    lists: bool,
) -> None:  # fmt: skip
    """Run cases in order of worth until the slice is nearly over."""
    cases = matching(all_cases(official), only)
    if not cases:
        raise UsageError(f"--only {only!r} matches no case. `--list` shows them.")
    if lists:
        for case in cases:
            done = any(RECORDINGS.glob(f"*_{case.name}{SUFFIX}"))
            print(f"{'done' if done else '    '}  {case.group:12}  {case.name}")
        return
    if out is None:
        raise UsageError("--out is missing. Give the folder that recordings go to.")
    if gpu is not None and device != "cpu" and not predict_only:
        raise UsageError(f"--gpu {gpu} is for --device cpu or --predict-only. Leave it out.")
    battery = Battery(
        folder=out,
        card=_card(device, gpu, named=predict_only),
        device=device,
        seconds=slice_minutes * 60,
        bundle=bundle,
        again=again,
        only_predict=predict_only,
    )
    outcome = battery.run(cases)
    print(
        f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.kept)} kept from "
        f"before, {len(outcome.left)} left."
    )
    if device == "cpu" and not predict_only:
        print("On a CPU: no allocator history, no workspaces, no context. Only a card knows them.")
    print(f"Wrote {out}. Next: python -m benchmarks.gpu.collect {bundle or out}")


def _card(device: str, gpu: str | None, *, named: bool) -> Card:
    """Return the card that predictions are for."""
    if device == "cpu" or (named and gpu is not None):
        return calibrated_card(gpu or "h200")
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise UsageError(f"--device {device!r} is neither cpu nor cuda:INDEX.")
    nvml.card_at(int(index or 0), option="--device cuda")
    return calibrated_card(int(index or 0))


if __name__ == "__main__":
    try:
        command.main(standalone_mode=False)
    except MemplanError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
