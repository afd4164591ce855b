"""Which line of a model's source ran an operator."""

from __future__ import annotations

import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType

import torch

_NOT_THE_MODELS = (
    "<",
    str(Path(torch.__file__).parent) + "/",
    str(Path(__file__).parents[1]) + "/",
)
_ENTRIES = {str(Path(__file__).with_name(name)) for name in ("record.py", "build.py")}
_STANDARD = sysconfig.get_paths()["stdlib"] + "/"
_INSTALLED = ("site-packages", "dist-packages")


class SourceLines:
    """Lines numbered as they first appear."""

    def __init__(self) -> None:
        self._known: dict[tuple[CodeType, int], int] = {}
        self._numbers: dict[str, int] = {}

    def current(self) -> int:
        """Return the number of the innermost line that is a model's, -1 where none is running."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not _is_the_models(frame.f_code.co_filename):
            # What called for the recording is no part of the step.
            frame = None if frame.f_code.co_filename in _ENTRIES else frame.f_back
        if frame is None:
            return -1
        key = frame.f_code, frame.f_lineno
        if key not in self._known:
            code, line = key
            text = f"{short_path(code.co_filename)}:{line} {code.co_name}"
            self._known[key] = self._numbers.setdefault(text, len(self._numbers))
        return self._known[key]

    @property
    def texts(self) -> tuple[str, ...]:
        """All lines, by number, as `FILE:LINE function`."""
        return tuple(self._numbers)


@lru_cache(maxsize=4096)
def _is_the_models(path: str) -> bool:
    """Return whether a source file is neither PyTorch's, nor Python's, nor memplan's own."""
    if path.startswith(_NOT_THE_MODELS):
        return False
    return not path.startswith(_STANDARD) or any(part in path for part in _INSTALLED)


def short_path(path: str) -> str:
    """Return a path that tells nothing of the machine: from a package or its last folder on."""
    parts = Path(path).parts
    for name in _INSTALLED:
        if name in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(name) :])
    return "/".join(parts[-2:])
