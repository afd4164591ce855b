"""`python -m benchmarks.gpu.calibrate`: a card's calibration from what the battery recorded of it.

The same file as `memplan gpus --calibrate` writes, from every timed case instead of six.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import click

from benchmarks.gpu.battery import RECORDINGS, recordings_in
from benchmarks.gpu.cases import Case
from memplan.api.calibrating import Timed, calibration_from
from memplan.device import calibration as calibrations
from memplan.device import catalogue, nvml
from memplan.device.calibration import Calibration
from memplan.errors import BadInputError, MemplanError
from memplan.trace.history import Recording


def calibration_of_recordings(
    recordings: Mapping[str, Recording], card_name: str | None
) -> Calibration:
    """Return the calibration that a card's recordings come to.

    Args:
        recordings: by name; those of other cards are left out.
        card_name: which card's; None takes the only one there is.

    Raises:
        BadInputError: there are recordings of no card, or of several and none is named.
    """
    of_card = {name: one for name, one in recordings.items() if "card" in one.facts["machine"]}
    names = sorted({one.facts["machine"]["card"] for one in of_card.values()})
    if card_name is None and len(names) > 1:
        raise BadInputError(f"There are recordings of {', '.join(names)}. Name one with --gpu.")
    wanted = card_name or (names[0] if names else None)
    if wanted is None or wanted not in names:
        known = ", ".join(names) or "no card"
        raise BadInputError(f"Recordings are of {known}. Run the battery on the card first.")
    facts = [one.facts for one in of_card.values() if one.facts["machine"]["card"] == wanted]
    machine = facts[-1]["machine"]
    lives = [
        one for one in facts
        if one["case"]["kind"] == "life" and one["measured"].get("seconds")
        and not one["case"]["workload"].startswith("official:")
    ]  # fmt: skip
    context = [one["measured"] for one in facts if one["case"]["kind"] == "context"]
    return calibration_from(
        _present(machine),
        [_timed(one["case"], one["measured"]["seconds"], _card(machine)) for one in lives],
        [one["measured"]["outside_bytes"]["step"] for one in lives],
        context[-1]["outside_bytes"] if context else {},
        machine["versions"],
    )


def _card(machine: dict[str, object]):  # type: ignore[no-untyped-def]
    return _present(machine).card


def _present(machine: dict[str, object]) -> nvml.PresentCard:
    """Return the recorded card as if it were here; what is of the moment is not known."""
    capacity = int(str(machine["capacity_bytes"]))
    known = {card.name: card for card in catalogue.cards()}
    name = str(machine["card"])
    if name not in known:
        raise BadInputError(f"The catalogue has no {name}. Add the card to gpus.yaml first.")
    return nvml.PresentCard(
        index=0, device_name=str(machine["device_name"]), uuid="",
        driver_version=str(machine["driver"]), card=known[name], in_catalogue=True,
        capacity_bytes=capacity, free_bytes=0, used_bytes=0, processes=(),
    )  # fmt: skip


def _timed(values: dict[str, object], seconds: dict[str, list[float]], card: object) -> Timed:
    case = Case(**values)  # type: ignore[arg-type]
    question = case.question(card)  # type: ignore[arg-type]
    return Timed(
        workload=case.workload,
        arguments=question.arguments,
        micro_batch_size=case.micro_batch_size,
        settings=question.step_spec,
        seconds=seconds,
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True), default=RECORDINGS)
@click.option("--gpu", metavar="NAME", help="Which card's, where there are several.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where it goes.  [where memplan looks for it]",
)
def command(folder: Path, gpu: str | None, output: Path | None) -> None:  # fmt: skip
    """Write a card's calibration file from its recordings."""
    found = calibration_of_recordings(recordings_in(folder), gpu)
    path = output or calibrations.path_of(found.card)
    found.save(path)
    print(
        f"{found.card}: context {found.context_bytes} bytes, bandwidth "
        f"{found.bandwidth_fraction:.1%}, launch {found.launch_seconds * 1e6:.2f} us, "
        f"{found.arithmetic_fraction}; fitted times off by {found.median_error_fraction:.1%} in "
        f"the median of {found.num_measurements} stretches. Wrote {path}"
    )


if __name__ == "__main__":
    try:
        command.main(standalone_mode=False)
    except (MemplanError, click.ClickException) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
