"""The index file of a split: what the last scan found, so that unchanged files are not read."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memplan.errors import BadInputError
from memplan.files import Source, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .dataset import DataDescription

INDEX_SCHEMA = "memplan.yolo_index/2"
"""Changes with what an entry means; an index of another schema is made anew."""

Points = npt.NDArray[np.float32]


def index_files(description: DataDescription, split: str) -> tuple[Path, Path]:
    """Return where the index may be: beside the data, or in the user's cache."""
    sources = "\n".join(map(str, description.splits[split]))
    digest = hashlib.sha256(sources.encode()).hexdigest()[:8]
    name = f"memplan-index-{split}-{digest}.json"
    return description.root / name, user_cache() / name


def user_cache() -> Path:
    """Return memplan's directory in the user's cache; it may not exist yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "memplan"


def read_index(files: Sequence[Path]) -> dict[str, Any]:
    """Return the remembered entries; none if the files are missing, older or damaged."""
    for index_file in files:
        try:
            index = json.loads(_source(index_file).content())
            if index["schema"] == INDEX_SCHEMA:
                return dict(index["images"])
        except (BadInputError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return {}


_MOST_BYTES = 1 << 30


def _source(path: Path) -> Source:
    return Source(path=path, what="an index", most_bytes=_MOST_BYTES)


def write_index(files: Sequence[Path], entries: dict[str, Any]) -> None:
    """Write the index in one step, at the first place that can be written.

    Without an index the next start is slower, nothing else; so it is no error if there is no place.
    """
    text = json.dumps({"schema": INDEX_SCHEMA, "images": entries}, separators=(",", ":"))
    for index_file in files:
        try:
            index_file.parent.mkdir(parents=True, exist_ok=True)
            write_text(index_file, text)
        except OSError:
            continue
        return


def pack_points(polygons: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Return polygons as an entry keeps them: points a row, and all points as base64 of float32.

    As JSON numbers the polygons of 118,000 images would take a minute to read, so not a second.
    """
    if not any(polygons):
        return None
    flat = np.array([value for points in polygons for value in points], "<f4")
    counts = [len(points) // 2 for points in polygons]
    return {"counts": counts, "points": base64.b64encode(flat.tobytes()).decode("ascii")}


def unpack_points(packed: dict[str, Any] | None) -> tuple[Points, ...]:
    """Return the points `[k, 2]` of each row's polygon, k = 0 for a box; empty without polygons."""
    if packed is None:
        return ()
    points = np.frombuffer(base64.b64decode(packed["points"]), "<f4").astype(np.float32)
    ends = np.cumsum(packed["counts"])[:-1]
    return tuple(np.split(points.reshape(-1, 2), ends))
