"""Who holds memory at the time of a snapshot: the line of the user's files that asked for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memplan.blocks import NO_FRAMES
from memplan.files.plain_pickles import on_one_line

# Frames of the interpreter, of installed packages and of C++ are not the user's.
_NOT_THE_USERS = ("site-packages", "dist-packages", "/torch/", "<frozen", "/lib/python")
_LONGEST_PLACE = 10_000  # characters; a path has at most 4,096
_LIVE = ("active_allocated",)


def held_by_place(content: Mapping[str, Any], device: int) -> dict[str, int]:
    """Return bytes of the blocks in use by the user's line that asked for them, largest first.

    A line is `FILE:LINE function`; where no frame is the user's, the innermost Python one counts.

    Args:
        content: what `torch.cuda.memory._snapshot()` returns.
        device: index of the GPU within the recorded process.
    """
    held: dict[str, int] = {}
    places: dict[int, str] = {}  # by the identity of a stack, which many blocks may share
    for segment in content["segments"]:
        if segment.get("device", 0) != device:
            continue
        for block in segment["blocks"]:
            if block["state"] in _LIVE:
                frames = _frames(block)
                if id(frames) not in places:
                    places[id(frames)] = place_of(
                        each for each in frames if isinstance(each, Mapping)
                    )
                place = places[id(frames)]
                held[place] = held.get(place, 0) + int(block["size"])
    return dict(sorted(held.items(), key=lambda item: -item[1]))


def _frames(block: Mapping[str, Any]) -> Iterable[Any]:
    """Return a block's frames, innermost first; PyTorch 2.0 has them in a history of the block."""
    frames = block.get("frames")
    if not frames:
        history = block.get("history") or ()
        frames = history[0].get("frames") if history else ()
    return frames or ()


def place_of(frames: Iterator[Mapping[str, Any]]) -> str:
    """Return the innermost line of the user's own files; of Python at all where there is none."""
    innermost = ""
    for frame in frames:
        name, line, function = (frame.get(key) for key in ("filename", "line", "name"))
        if type(name) is not str or not name.endswith(".py"):
            continue
        function = function if type(function) is str else ""
        place = f"{name}:{line if type(line) is int else 0} {function}".rstrip()
        place = on_one_line(place, _LONGEST_PLACE)
        innermost = innermost or place
        if not any(part in name for part in _NOT_THE_USERS):
            return place
    return innermost or NO_FRAMES
