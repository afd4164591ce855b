"""The cards that people name: by catalogue name, by index in this machine, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memplan.device import calibration as calibrations
from memplan.device import catalogue, nvml
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.errors import BadInputError


def with_calibrations(
    gpus: Sequence[str | int | Card], named: Path | Calibration | None = None
) -> list[tuple[Card, Calibration | None]]:
    """Return cards and what was measured on each; none given takes this machine's first.

    Args:
        gpus: names, indices, or cards; what is kept of a card given as such is not looked for.
        named: replaces what is kept of the card it is of; a file must be of one of the cards.

    Raises:
        BadInputError: there is no such card, or the file is of none of them.
        BadTapeError: a calibration cannot be read.
    """
    cards = [_resolve_card(gpu) for gpu in gpus] or [_present_card()]
    kept = [not isinstance(gpu, Card) for gpu in gpus] or [True]
    own = calibrations.load(named) if isinstance(named, Path) else named
    if isinstance(named, Path) and own is not None and own.card not in {c.name for c in cards}:
        calibrations.calibration_of(cards[0], named)

    def found(card: Card, *, is_kept: bool) -> Calibration | None:
        if own is not None and own.card == card.name:
            return own
        return calibrations.calibration_of(card) if is_kept else None

    return [(card, found(card, is_kept=is_kept)) for card, is_kept in zip(cards, kept, strict=True)]


def calibrated_card(gpu: str | int | Card | None, path: Path | None = None) -> Card:
    """Return the card that a name, an index or None stands for, with what was measured on it."""
    card, found = with_calibrations(() if gpu is None else (gpu,), path)[0]
    return found.applied_to(card) if found else card


def _resolve_card(gpu: str | int | Card) -> Card:
    """Return the card that a catalogue name or an index in this machine stands for."""
    if isinstance(gpu, Card):
        return gpu
    if isinstance(gpu, int) or gpu.isdecimal():
        return nvml.card_at(int(gpu)).card
    return catalogue.card(gpu)


def _present_card() -> Card:
    """Return this machine's first card.

    Raises:
        BadInputError: there is none.
    """
    present = nvml.present()
    if not present:
        raise BadInputError(
            "No NVIDIA card is in this machine, and no --gpu names one. Give --gpu NAME, such as "
            "rtx-3090 or a100-80gb; `memplan gpus` lists them all."
        )
    return present[0].card
