"""Where files lie that a command names as in a checkout of the official repository."""

from __future__ import annotations

from pathlib import Path

from memplan.errors import BadInputError

_FOLDERS = ("data", "models", "utils")


def in_checkout(path: Path) -> Path:
    """Return a file that lies below `data`, `models` or `utils` of the working directory.

    A path that exists is returned as it is, and so is one that is found in none of these: what
    reads it says that it is missing. Folders are looked into one level deep.

    Source: check_file of the official utils/general.py.

    Raises:
        BadInputError: several files are called so.
    """
    if not path.name or path.is_absolute() or ".." in path.parts or path.exists():
        return path
    places = [
        place
        for folder in _FOLDERS
        for pattern in (f"{path}", f"*/{path}")
        for place in sorted(Path(folder).glob(_escaped(pattern)))
        if place.is_file()
    ]
    if len(places) > 1:
        shown = ", ".join(map(str, places[:3]))
        raise BadInputError(f"{path} is several files: {shown}. Give the path of one of them.")
    return places[0] if places else path


def _escaped(pattern: str) -> str:
    """Return a pattern in which only a leading `*/` is one."""
    lead, name = ("*/", pattern[2:]) if pattern.startswith("*/") else ("", pattern)
    return lead + "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
