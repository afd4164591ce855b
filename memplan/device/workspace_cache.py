"""Answers of cuDNN on disk, so that a question is asked once on a machine and not once a run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SCHEMA = "memplan.cudnn-workspaces/1"
# Neither changes an answer (tried on 150 problems); leaving them out lets --capacity share a file.
_IRRELEVANT = ("totalGlobalMem", "deviceName")


@dataclass(frozen=True, slots=True)
class WorkspaceCache:
    """One file of answers: written whole or not at all, and taken for empty when it is damaged.

    `path` is None when caching is off. `head` is what the answers depend on; a file with another
    head is not read.
    """

    path: Path | None
    head: dict[str, object]

    @classmethod
    def of(cls, description: dict[str, object], version: str, frontend: str) -> Self:
        """Return the file of one card, by what matters to cuDNN, and of the versions asked.

        Args:
            description: the card as `Card.cudnn_description` gives it.
            version: cuDNN's version.
            frontend: its Python front end's version.
        """
        device = {key: value for key, value in description.items() if key not in _IRRELEVANT}
        head = {"cudnn": version, "frontend": frontend, "device": device}
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()[:16]
        folder = cache_folder()
        path = folder / f"cudnn-{version}-{digest}.json" if folder else None
        return cls(path, {"schema": SCHEMA, **head})

    def read(self) -> dict[str, int]:
        """Return the answers in the file; none when it is missing, foreign or damaged."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
            answers = data.pop("workspaces", {})
            fits = data == self.head
            return {str(key): int(value) for key, value in answers.items()} if fits else {}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def write(self, answers: dict[str, int]) -> None:
        """Write the answers together with those another process wrote meanwhile, if it can be."""
        if self.path is None:
            return
        text = json.dumps({**self.head, "workspaces": {**self.read(), **answers}})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(dir=self.path.parent, prefix=".cudnn-")
        except OSError:
            return  # a read-only home is no reason to fail: the answers stay in memory
        temporary = Path(name)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """Return the folder for memplan's caches, or None when `MEMPLAN_CACHE=off`."""
    if os.environ.get("MEMPLAN_CACHE", "").lower() == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "memplan"
    except RuntimeError:  # no home folder is known
        return None
