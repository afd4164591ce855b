"""What memplan knows of a block, kept in a snapshot as frames that any viewer of these files shows.

A frame of a source line is as PyTorch writes it. Those of an operator, a module and a phase have
a name in brackets for their file, so that nothing takes them for source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

OPERATOR, MODULE, PHASE = "(operator)", "(module)", "(phase)"
_LINE = re.compile(r"(.*):(\d+) (.*)", re.DOTALL)

Frame = dict[str, Any]


def frames_of(
    *, line: str = "", operator: str = "", module: str = "", phase: str = ""
) -> list[Frame]:
    """Return frames, innermost first, of what is known; nothing is written of the rest.

    Args:
        line: `FILE:LINE function`.
        operator: that allocated.
        module: path and type.
        phase: `period/phase`.
    """
    frames = [_named(OPERATOR, operator)]
    if found := _LINE.fullmatch(line):
        frames.append({"filename": found[1], "line": int(found[2]), "name": found[3]})
    frames += [_named(MODULE, module), _named(PHASE, phase)]
    return [frame for frame in frames if frame["name"]]


def _named(kind: str, name: str) -> Frame:
    return {"filename": kind, "line": 0, "name": name}


def told_by(frames: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return operator, module and phase as `frames_of` wrote them, by the name of their file."""
    kinds = (OPERATOR, MODULE, PHASE)
    return {
        str(frame["filename"]): str(frame.get("name", ""))
        for frame in frames
        if isinstance(frame, Mapping) and frame.get("filename") in kinds
    }
