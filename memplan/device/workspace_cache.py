"""Answers of cuDNN on disk, so that a question is asked once on a machine and not once a run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import msgspec

SCHEMA = "memplan.cudnn-workspaces/5"
# Neither changes an answer (tried on 150 problems); leaving them out lets --capacity share a file.
_IRRELEVANT = ("totalGlobalMem", "deviceName")
# More than any device has; a larger number in a file is damage.
_MOST_BYTES = 1 << 60
_Size = Annotated[int, msgspec.Meta(ge=0, lt=_MOST_BYTES)]
_Sizes = Annotated[tuple[_Size, ...], msgspec.Meta(min_length=1)]

Answers = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class WorkspaceCache:
    """One file of answers, a JSON text a line: what they depend on, then some answers a line.

    Lines are only ever added, each in one piece, so that processes can share a file. A line that
    is damaged counts for nothing; a file whose first line is not as expected is replaced.

    `path` is None when caching is off. `head` is what the answers depend on.
    """

    path: Path | None
    head: dict[str, object]

    @classmethod
    def of(
        cls,
        description: dict[str, object],
        version: str,
        *,
        benchmark: bool = False,
        asked_by: str = "",
    ) -> Self:
        """Return the file of one card, by what matters to cuDNN, and of the version asked.

        Args:
            description: the card as `Card.cudnn_description` gives it.
            version: cuDNN's version.
            benchmark: whether the answers are those of all plans and not of the one taken.
            asked_by: what cuDNN was asked on, where its answers depend on that.
        """
        device = {key: value for key, value in description.items() if key not in _IRRELEVANT}
        head = {
            "schema": SCHEMA,
            "cudnn": version,
            "benchmark": benchmark,
            "device": device,
            "asked_by": asked_by,
        }
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()[:16]
        folder = cache_folder()
        return cls(folder / f"cudnn-{version}-{digest}.jsonl" if folder else None, head)

    def read(self) -> Answers:
        """Return the answers in the file; none when it is missing, foreign or damaged."""
        lines = self._lines()
        answers: Answers = {}
        for line in lines[1:] if self._is_head(lines[0]) else ():
            answers |= _parsed(line)
        return answers

    def add(self, answers: Answers) -> None:
        """Write further answers, if the folder can be written to."""
        if self.path is None or not answers:
            return
        text = json.dumps(answers, separators=(",", ":"))
        try:
            if self._is_head(self._lines(1)[0]):
                # One write at the end of the file: other processes' lines stay whole. The line
                # break comes first, so that a line cut short by a crash spoils no other.
                with self.path.open("ab", buffering=0) as file:
                    file.write(f"\n{text}".encode())
            else:
                self._create(f"{json.dumps(self.head)}\n{text}")
        except OSError:
            return  # a read-only home is no reason to fail: the answers stay in memory

    def _lines(self, most: int = -1) -> list[str]:
        """Return up to so many lines of the file; one empty line when it cannot be read."""
        try:
            if self.path is not None:
                with self.path.open(encoding="utf-8") as file:
                    return [file.readline()] if most == 1 else file.read().split("\n")
        except (OSError, ValueError):
            pass
        return [""]

    def _is_head(self, line: str) -> bool:
        try:
            return bool(json.loads(line) == self.head)
        except (ValueError, RecursionError):
            return False

    def _create(self, text: str) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self.path.parent, prefix=".cudnn-")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self.path)
        except OSError:
            Path(name).unlink(missing_ok=True)


def _parsed(line: str) -> Answers:
    """Return the answers of a line; none where it is damaged."""
    try:
        return msgspec.json.decode(line, type=dict[str, _Sizes])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return {}


def cache_folder() -> Path | None:
    """Return the folder for memplan's caches, or None when `MEMPLAN_CACHE=off`."""
    if os.environ.get("MEMPLAN_CACHE", "").lower() == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "memplan"
    except RuntimeError:  # no home folder is known
        return None
