"""What the parent tells the watched process, and where it finds what was seen."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

ENVIRONMENT = "MEMPLAN_RUN"
SETTINGS_FILE = "settings.json"
RESULT_PATTERN = "seen-*.json"
HISTORY_NAME = "history-{pid}.pickle"
"""Of a process's memory snapshot, in the same folder."""


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """How long a script is watched, and what is answered by rule."""

    folder: str
    """Where each watched process writes what it saw."""
    steps: int | None = None
    """Optimizer steps after which the script is stopped; None stops when peaks are steady."""
    selected: float = 0.01
    number: float = 2.0
    at_line: dict[str, float] = field(default_factory=dict)
    """Values of single reads, see `ValueRules`."""
    follows_values: bool = True
    """Whether values that came from the host are followed, or only where memory goes."""
    keeps_history: bool = False
    """Whether stacks are recorded, and the history is left beside what was seen."""
    most_events: int = 400_000
    """Allocator events that are kept; of a longer run the last ones are."""

    def save(self) -> None:
        """Write the settings into their folder."""
        (Path(self.folder) / SETTINGS_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls) -> WatchSettings:
        """Return the settings that this process was started with."""
        path = Path(os.environ[ENVIRONMENT]) / SETTINGS_FILE
        return cls(**json.loads(path.read_text()))
