"""Which line of the user's own files the program is at."""

from __future__ import annotations

import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType

_STANDARD = sysconfig.get_paths()["stdlib"]
_OURS = str(Path(__file__).parents[1])


@lru_cache(maxsize=4096)
def is_script(path: str) -> bool:
    """Return whether a source file is the user's: neither PyTorch, Python itself nor memplan."""
    if path.startswith(("<", _OURS)):
        return False
    if is_installed(path):
        return not {"torch", "torchvision"} & set(Path(path).parts)
    return not path.startswith(_STANDARD)


@lru_cache(maxsize=4096)
def is_installed(path: str) -> bool:
    """Return whether a source file belongs to an installed package."""
    return bool({"site-packages", "dist-packages"} & set(Path(path).parts))


def script_frame(frame: FrameType | None = None) -> FrameType | None:
    """Return the innermost frame of the user's files, from the caller's or a given one outwards."""
    frame = frame or sys._getframe(1)
    while frame is not None and not is_script(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def own_frame(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame outside installed packages, else as `script_frame` has it."""
    found = script_frame(frame)
    while found is not None and is_installed(found.f_code.co_filename):
        found = script_frame(found.f_back) if found.f_back else None
    return found or script_frame(frame)


def script_line() -> str:
    """Return `file.py:12` of the innermost line of the user's files, empty where there is none."""
    frame = script_frame(sys._getframe(1))
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
