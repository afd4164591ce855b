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
    parts = Path(path).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return not {"torch", "torchvision"} & set(parts)
    return not path.startswith(_STANDARD)


def script_frame(frame: FrameType | None = None) -> FrameType | None:
    """Return the innermost frame of the user's files, from the caller's or a given one outwards."""
    frame = frame or sys._getframe(1)
    while frame is not None and not is_script(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def script_line() -> str:
    """Return `file.py:12` of the innermost line of the user's files, empty where there is none."""
    frame = script_frame(sys._getframe(1))
    if frame is None:
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
