"""What is handed to a case's child process, as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import Case
from memplan.device.card import Architecture, Card, Rates

PREDICTION_SUFFIX = ".prediction.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A case, the card it is about, and where its files go."""

    case: Case
    card: Card
    device: str
    """`cpu`, or `cuda:0`."""
    folder: Path

    @property
    def stem(self) -> str:
        """What the case's files are called, without ending."""
        return f"{'cpu' if self.device == 'cpu' else self.card.name}_{self.case.name}"

    @property
    def prediction_path(self) -> Path:
        """Where the prediction is, written before anything is measured."""
        return self.folder / (self.stem + PREDICTION_SUFFIX)

    def to_text(self) -> str:
        """Return the job as a child reads it."""
        card = {**asdict(self.card), "architecture": asdict(self.card.architecture)}
        values = {"case": asdict(self.case), "card": card, "device": self.device}
        return json.dumps({**values, "folder": str(self.folder)})

    @classmethod
    def from_text(cls, text: str) -> Job:
        """Return what `to_text` made a text of."""
        values: dict[str, Any] = json.loads(text)
        card = values["card"]
        limits = card["architecture"]
        limits["compute_capability"] = tuple(limits["compute_capability"])
        card["architecture"] = Architecture(**limits)
        card["rates"] = Rates(**card["rates"])
        card["device_names"] = tuple(card["device_names"])
        return cls(
            case=Case(**values["case"]),
            card=Card(**card),
            device=values["device"],
            folder=Path(values["folder"]),
        )
