"""How a script failed, in plain values."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from memplan.recording.sites import is_script

_FOLDER = str(Path(__file__).parent)


def described(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> dict[str, Any]:
    """Return an error's kind, first line and the innermost line of the user's files."""
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if is_script(frame.filename)]
    last = own[-1] if own else None
    return {
        "kind": kind.__name__,
        "message": str(error).splitlines()[0] if str(error) else "",
        "file": last.filename if last else "",
        "line": last.lineno if last else 0,
    }


def without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of what watches, which the script did not call."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_FOLDER):
        trace = trace.tb_next
    if trace is not None:
        trace.tb_next = without_ours(trace.tb_next)
    return trace
