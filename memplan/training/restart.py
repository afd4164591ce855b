"""`torchrun --max-restarts`: a restarted run goes on from its last checkpoint, in its own folder.

The agent starts the same command again, with a count in the environment. Which folder the run had
is told by a file in it that names the agent: its process, its start and the launch's identifier.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

from memplan.errors import BadInputError
from memplan.files import Source, write_text
from memplan.training.distributed import join
from memplan.training.options import TrainOptions
from memplan.training.setup import find_device

_FILE = ".launch"
_MOST_BYTES = 4096


def sign(folder: Path) -> None:
    """Note in a run's folder which launch it is of, if it is of one that may be restarted.

    Raises:
        OSError: the folder cannot be written.
    """
    if (name := _launch()) is not None:
        write_text(folder / _FILE, name)


def after_restart(options: TrainOptions) -> TrainOptions:
    """Return the options with which a restarted run goes on; others as they are.

    All processes must call it. What was not saved yet begins again in the same folder.

    Raises:
        BadInputError: the other processes cannot be reached.

    Source: TORCHELASTIC_RESTART_COUNT and TORCHELASTIC_RUN_ID of torch.distributed.run.
    """
    if options.resume is not None or not int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0):
        return options
    ranks = join(find_device(options.device), options.rank_timeout)
    found = ranks.share(_find(options) if ranks.is_first else None)
    if found is None:
        return options
    if (Path(found) / "weights" / "last.pt").is_file():
        return replace(options, resume=Path(found))
    return replace(options, name=Path(found).name, exist_ok=True)


def _find(options: TrainOptions) -> str | None:
    name = _launch()
    signed = options.project.glob(f"{_literal(options.name)}*/{_FILE}")
    return next((str(file.parent) for file in signed if _text(file) == name), None)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _text(file: Path) -> str | None:
    try:
        return Source(path=file, what="a run's launch", most_bytes=_MOST_BYTES).text()
    except BadInputError:
        return None


def _launch() -> str | None:
    """Return what only this launch is called; None outside of torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    agent = os.getppid()
    try:
        # The time of its start, in ticks since boot: process identifiers are used again.
        started = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{run} {socket.gethostname()} {agent} {started}"
