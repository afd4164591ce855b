"""A second place for a checkpoint whose run folder takes no more, such as on a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from memplan.errors import BadInputError
from memplan.training.checkpoint import LAST, Checkpoint, load_checkpoint, save_checkpoint


def _places(folder: Path) -> list[Path]:
    """Return the run folders that stand in for one, in the order they are tried."""
    path = str(folder.resolve())
    name = f"{folder.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    temporary = Path(tempfile.gettempdir(), f"memplan-{os.getuid()}")
    return [base / "rescued" / name for base in (Path(cache) / "memplan", temporary)]


def rescue(folder: Path, checkpoint: Checkpoint) -> Path | None:
    """Save a run's state outside its folder and return the file; None where that fails too."""
    for place in _places(folder):
        path = place / "weights" / LAST
        with contextlib.suppress(OSError, BadInputError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.parent.stat().st_uid != os.getuid():
                continue  # in a folder that all may write to, somebody else was there first
            save_checkpoint(path, checkpoint)
            return path
    return None


def find_rescued(folder: Path, steps: int) -> tuple[Checkpoint, Path] | None:
    """Return a rescued state of a run that is ahead of what its own folder has, and its file."""
    for place in _places(folder):
        path = place / "weights" / LAST
        with contextlib.suppress(OSError, BadInputError):
            if path.is_file() and path.stat().st_uid == os.getuid():
                checkpoint = load_checkpoint(path)
                if checkpoint.steps > steps:
                    return checkpoint, path
    return None


def drop_rescued(folder: Path) -> None:
    """Forget what was saved elsewhere, now that the run folder takes its own again."""
    for place in _places(folder):
        with contextlib.suppress(OSError):
            if place.is_dir() and place.stat().st_uid == os.getuid():
                shutil.rmtree(place)
