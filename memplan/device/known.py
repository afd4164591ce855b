"""The cards that memplan knows: the catalogue's, this machine's, and those measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from memplan.device import calibration as calibrations
from memplan.device import catalogue, nvml
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.device.nvml import PresentCard
from memplan.errors import BadTapeError


@dataclasses.dataclass(frozen=True)
class KnownCards:
    """What `memplan gpus` lists."""

    catalogue: tuple[Card, ...]
    present: tuple[PresentCard, ...]
    """Cards of this machine."""
    calibrations: dict[str, Calibration]
    """What was measured in this account, by the card's name."""

    def to_json(self) -> dict[str, Any]:
        """Return what `memplan gpus --json` prints."""
        return {
            "catalogue": [dataclasses.asdict(card) for card in self.catalogue],
            "present": [dataclasses.asdict(card) for card in self.present],
            "calibrations": {
                name: dataclasses.asdict(found) for name, found in self.calibrations.items()
            },
        }


def gpus(warn: Callable[[str], None] = lambda _: None) -> KnownCards:
    """Return the cards that `gpu=` takes by name, and those in this machine.

    Args:
        warn: called with a line for each calibration file that cannot be read.
    """
    kept = {}
    for path in sorted(calibrations.folder().glob("*.json")):
        try:
            kept[path.stem] = calibrations.load(path)
        except BadTapeError as error:
            warn(str(error))
    return KnownCards(tuple(catalogue.cards()), tuple(nvml.present()), kept)
