"""The state that `--resume PATH` goes on from: the run folder's, or one that was rescued."""

from __future__ import annotations

from pathlib import Path

from memplan.errors import BadInputError
from memplan.training.checkpoint import LAST, Checkpoint, find_checkpoint, load_latest
from memplan.training.rescue import find_rescued


def folder_of(path: Path) -> Path | None:
    """Return the run folder that a checkpoint stands in, None where it stands in none."""
    return path.parents[1] if path.parent.name == "weights" else None


def find_saved(path: Path) -> Path:
    """Return the checkpoint file that `--resume PATH` means.

    Args:
        path: as for `find_checkpoint`. Of a run folder that could never be written to, such as on
            a full disk, the file is the one it would have.

    Raises:
        BadInputError: there is none.
    """
    try:
        return find_checkpoint(path)
    except BadInputError:
        folder = path if path.is_dir() else folder_of(path)
        if folder is not None and find_rescued(folder, -1) is not None:
            return folder / "weights" / LAST
        raise


def load_saved(path: Path) -> tuple[Checkpoint, str]:
    """Return a run's newest good state, and a sentence where that is not in the file itself.

    Args:
        path: as `find_saved` gives it.

    Raises:
        BadInputError: none can be used.
    """
    folder = folder_of(path)
    try:
        checkpoint, note = load_latest(path)
    except BadInputError:
        found = None if folder is None else find_rescued(folder, -1)
        if found is None:
            raise
        return found[0], _note(folder, found[1])
    found = None if folder is None else find_rescued(folder, checkpoint.steps)
    return (checkpoint, note) if found is None else (found[0], _note(folder, found[1]))


def _note(folder: Path | None, place: Path) -> str:
    return f"The run goes on from {place}, which was saved while {folder} could not be written."
