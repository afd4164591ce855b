"""The index of a split: every image and label checked once, remembered in a JSON file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from memplan.errors import BadInputError

from .labels import file_stamp, label_path, read_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .dataset import DataDescription

INDEX_SCHEMA = "memplan.yolo_index/1"
_SMALLEST_SIDE = 10  # pixels; the official scan refuses smaller images too
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class LabelledImage:
    """One usable image with its objects."""

    path: Path
    height: int
    """Pixels, after the EXIF orientation is applied."""
    width: int
    """Pixels, after the EXIF orientation is applied."""
    labels: npt.NDArray[np.float32]
    """Rows class, centre x, centre y, width, height; normalised, `[n, 5]`."""


@dataclass(frozen=True)
class Split:
    """The usable images of one split, and what there is to warn about."""

    images: tuple[LabelledImage, ...]
    warnings: tuple[str, ...] = ()
    num_polygons: int = 0
    """Polygon rows that became bounding boxes."""


@dataclass
class _Counts:
    corrupt: list[str] = field(default_factory=list)
    num_labelled: int = 0
    num_duplicates: int = 0
    num_without_area: int = 0
    num_polygons: int = 0


def scan_split(description: DataDescription, split: str) -> Split:
    """Return the checked images of a split, from its index file where nothing has changed.

    An index entry holds while size and modification time of image and label file are the same. The
    index lies in the data set's root, or in the user's cache directory when that is not writable.

    Raises:
        BadInputError: no images, a bad label row, no usable image, or no image with labels.
    """
    paths = description.image_paths(split)
    index_files = _index_files(description, split)
    entries = _read_index(index_files)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        fresh = dict(
            zip(
                map(str, paths),
                pool.map(lambda path: _entry(path, entries, description.num_classes), paths),
                strict=True,
            )
        )
    if fresh != entries:
        _write_index(index_files, fresh)
    return _summarise(description, split, paths, fresh)


def _summarise(
    description: DataDescription, split: str, paths: Sequence[Path], entries: dict[str, Any]
) -> Split:
    images: list[LabelledImage] = []
    counts = _Counts()
    for path in paths:
        entry = entries[str(path)]
        if entry["problem"] is not None:
            counts.corrupt.append(f"{path} ({entry['problem']})")
            continue
        counts.num_labelled += entry["label"] is not None
        counts.num_duplicates += entry["num_duplicates"]
        counts.num_without_area += entry["num_without_area"]
        counts.num_polygons += entry["num_polygons"]
        labels = np.asarray(entry["rows"], np.float32).reshape(-1, 5)
        images.append(LabelledImage(path, entry["height"], entry["width"], labels))
    if not images:
        raise BadInputError(
            f"None of the {len(paths)} images for {split!r} can be used; the first: "
            f"{counts.corrupt[0]}."
        )
    if not any(len(image.labels) for image in images):
        raise BadInputError(
            f"None of the {len(images)} images for {split!r} has an object: "
            f"{counts.num_labelled} label files exist. "
            f"The labels of {images[0].path} are looked for at {label_path(images[0].path)}."
        )
    return Split(tuple(images), tuple(_warnings(description, split, counts)), counts.num_polygons)


def _warnings(description: DataDescription, split: str, counts: _Counts) -> list[str]:
    where = f"in {split!r} of {description.path}"
    messages = []
    if counts.corrupt:
        messages.append(
            f"{len(counts.corrupt)} images {where} cannot be used and are skipped; the first: "
            f"{counts.corrupt[0]}."
        )
    if counts.num_duplicates:
        messages.append(f"{counts.num_duplicates} repeated label rows {where} were removed.")
    if counts.num_without_area:
        messages.append(
            f"{counts.num_without_area} label rows {where} have no width or height and were left "
            "out."
        )
    return messages


def _entry(path: Path, entries: dict[str, Any], num_classes: int) -> dict[str, Any]:
    """Return the index entry of one image: the remembered one if it still holds."""
    labels = label_path(path)
    stamps = {"image": _as_list(file_stamp(path)), "label": _as_list(file_stamp(labels))}
    known = entries.get(str(path))
    if (
        known is not None
        and known["image"] == stamps["image"]
        and known["label"] == stamps["label"]
        and all(row[0] < num_classes for row in known["rows"])  # else read again, for the line
    ):
        return dict(known)
    height, width, problem = _check_image(path)
    entry: dict[str, Any] = {**stamps, "height": height, "width": width, "problem": problem}
    read = read_labels(labels, num_classes) if stamps["label"] is not None else None
    return entry | {
        "rows": [list(row) for row in read.rows] if read else [],
        "num_duplicates": read.num_duplicates if read else 0,
        "num_without_area": read.num_without_area if read else 0,
        "num_polygons": read.num_polygons if read else 0,
    }


def _as_list(stamp: tuple[int, int] | None) -> list[int] | None:
    return None if stamp is None else list(stamp)


def _check_image(path: Path) -> tuple[int, int, str | None]:
    """Return height, width and what is wrong with the file, None if nothing is."""
    try:
        with warnings.catch_warnings():  # Pillow warns of odd EXIF data, which is no fault here
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.verify()  # the image cannot be used afterwards
            with Image.open(path) as image:
                width, height = image.size
                if image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
                    width, height = height, width
            if not _is_complete(path):
                with Image.open(path) as image:
                    ImageOps.exif_transpose(image)  # decodes, and fails where data is missing
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        return 0, 0, " ".join(str(error).split()) or type(error).__name__
    except Image.DecompressionBombError as error:
        return 0, 0, str(error)
    if min(height, width) < _SMALLEST_SIDE:
        return 0, 0, f"{width} x {height} pixels; the smallest side used is {_SMALLEST_SIDE}"
    return height, width, None


def _is_complete(path: Path) -> bool:
    """Return whether a JPEG ends in its end marker; verify() does not look at other than PNG."""
    if path.suffix.lower() == ".png":
        return True
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def _index_files(description: DataDescription, split: str) -> tuple[Path, Path]:
    """Return where the index may be: beside the data, or in the user's cache."""
    sources = "\n".join(map(str, description.splits[split]))
    digest = hashlib.sha256(sources.encode()).hexdigest()[:8]
    name = f"memplan-index-{split}-{digest}.json"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return description.root / name, cache / "memplan" / name


def _read_index(index_files: Sequence[Path]) -> dict[str, Any]:
    """Return the remembered entries; none if the files are missing, older or damaged."""
    for index_file in index_files:
        try:
            index = json.loads(index_file.read_text(encoding="utf-8"))
            if index["schema"] == INDEX_SCHEMA:
                return dict(index["images"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _write_index(index_files: Sequence[Path], entries: dict[str, Any]) -> None:
    """Write the index in one step, at the first place that can be written.

    Without an index the next start is slower, nothing else; so it is no error if there is no place.
    """
    text = json.dumps({"schema": INDEX_SCHEMA, "images": entries}, separators=(",", ":"))
    for index_file in index_files:
        partial = index_file.with_name(f"{index_file.name}.{os.getpid()}")
        try:
            index_file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(index_file)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            continue
        return
