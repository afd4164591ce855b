"""The index of a split: every image and label checked once, remembered in a JSON file."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from memplan.errors import BadInputError
from memplan.files import Source

from .index import index_files, pack_points, read_index, unpack_points, write_index
from .labels import Labels, UnreadableLabelsError, file_stamp, label_path, read_labels
from .orientation import upright_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .dataset import DataDescription

_SMALLEST_SIDE = 10  # pixels; the official scan refuses smaller images too
_UNREADABLE_MODES = frozenset({"F", "I"})  # OpenCV reads no TIFF of 32 bits a sample as colours


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
    polygons: tuple[npt.NDArray[np.float32], ...] = ()
    """Points `[k, 2]` of each row's polygon, normalised, k = 0 for a box; empty without any."""


@dataclass(frozen=True)
class Split:
    """The usable images of one split, and what there is to warn about."""

    images: tuple[LabelledImage, ...]
    warnings: tuple[str, ...] = ()
    num_polygons: int = 0
    """Rows that are polygons."""


@dataclass
class _Counts:
    num_repeated: int
    corrupt: list[str] = field(default_factory=list)
    bad_rows: list[str] = field(default_factory=list)
    num_bad: int = 0
    num_labelled: int = 0
    num_unlabelled: int = 0
    num_sharing: int = 0
    num_duplicates: int = 0
    num_without_area: int = 0
    num_polygons: int = 0


def scan_split(description: DataDescription, split: str) -> Split:
    """Return the checked images of a split, from its index file where nothing has changed.

    An index entry holds while size and modification time of image and label file are the same. The
    index lies in the data set's root, or in the user's cache directory when that is not writable.

    Raises:
        BadInputError: no images, a class beyond those of `data.yaml`, no usable image, or no image
            with labels.
    """
    paths, num_repeated = description.find_images(split)
    files = index_files(description, split)
    entries = read_index(files)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        fresh = dict(
            zip(
                map(str, paths),
                pool.map(lambda path: _entry(path, entries, description.num_classes), paths),
                strict=True,
            )
        )
    if fresh != entries:
        write_index(files, fresh)
    return _summarise(description, split, paths, fresh, num_repeated)


def _summarise(
    description: DataDescription,
    split: str,
    paths: Sequence[Path],
    entries: dict[str, Any],
    num_repeated: int,
) -> Split:
    images: list[LabelledImage] = []
    counts = _Counts(num_repeated, num_sharing=len(paths) - len({label_path(p) for p in paths}))
    for path in paths:
        entry = entries[str(path)]
        if entry["problem"] is not None:
            counts.corrupt.append(f"{path} ({entry['problem']})")
            continue
        counts.num_labelled += entry["label"] is not None
        counts.num_unlabelled += entry["label"] is None
        counts.num_bad += entry["num_bad"]
        counts.bad_rows += [entry["first_bad"]] if entry["first_bad"] else []
        counts.num_duplicates += entry["num_duplicates"]
        counts.num_without_area += entry["num_without_area"]
        counts.num_polygons += entry["num_polygons"]
        labels = np.asarray(entry["rows"], np.float32).reshape(-1, 5)
        polygons = unpack_points(entry["polygons"])
        images.append(LabelledImage(path, entry["height"], entry["width"], labels, polygons))
    if not images:
        raise BadInputError(
            f"None of the {len(paths)} images for {split!r} can be used; the first: "
            f"{counts.corrupt[0]}."
        )
    if not any(len(image.labels) for image in images):
        raise BadInputError(
            f"None of the {len(images)} images for {split!r} has an object: "
            f"{counts.num_labelled} label files exist. " + _why_nothing(counts, images[0].path)
        )
    return Split(tuple(images), tuple(_warnings(description, split, counts)), counts.num_polygons)


def _why_nothing(counts: _Counts, path: Path) -> str:
    if counts.bad_rows:
        return f"{counts.num_bad} rows are no objects; the first: {counts.bad_rows[0]}."
    if counts.num_labelled and not counts.num_unlabelled:
        return f"All labels are empty; one is {label_path(path)}."
    return f"The labels of {path} are looked for at {label_path(path)}."


def _warnings(description: DataDescription, split: str, counts: _Counts) -> list[str]:
    where = f"in {split!r} of {description.path}"
    messages = []
    if counts.corrupt:
        messages.append(
            f"{len(counts.corrupt)} images {where} cannot be used and are skipped; the first: "
            f"{counts.corrupt[0]}."
        )
    if counts.num_bad:
        messages.append(
            f"{counts.num_bad} label rows {where} are no objects and are skipped; the first: "
            f"{counts.bad_rows[0]}."
        )
    if counts.num_unlabelled:
        messages.append(
            f"{counts.num_unlabelled} images {where} have no label file and count as background."
        )
    if counts.num_repeated:
        messages.append(
            f"{counts.num_repeated} repeated images {where} were left out: each counts once."
        )
    if counts.num_sharing:
        messages.append(
            f"{counts.num_sharing} images {where} have the label file of another image (a.jpg and "
            "a.png both have a.txt)."
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
    read = Labels(())
    if stamps["label"] is not None:
        try:
            read = read_labels(labels, num_classes)
        except UnreadableLabelsError as error:
            problem = problem or str(error)
    return {
        **stamps,
        "height": height,
        "width": width,
        "problem": problem,
        "rows": [list(row) for row in read.rows],
        "polygons": pack_points(read.polygons),
        "num_duplicates": read.num_duplicates,
        "num_without_area": read.num_without_area,
        "num_polygons": read.num_polygons,
        "num_bad": read.num_bad,
        "first_bad": read.first_bad,
    }


def _as_list(stamp: tuple[int, int] | None) -> list[int] | None:
    return None if stamp is None else list(stamp)


_MOST_BYTES = 1 << 30


def _check_image(path: Path) -> tuple[int, int, str | None]:
    """Return height, width and what is wrong with the file, None if nothing is."""
    try:
        # A pipe would be waited for, and a device may have no end.
        Source(path=path, what="an image", most_bytes=_MOST_BYTES).open().close()
        with warnings.catch_warnings():  # Pillow warns of odd EXIF data, which is no fault here
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.verify()  # the image cannot be used afterwards
            with Image.open(path) as image:
                width, height = upright_size(image)
                if image.format == "TIFF" and image.mode in _UNREADABLE_MODES:
                    return 0, 0, "32 bits a sample, where 8 or 16 can be read"
            if not _is_complete(path):
                with Image.open(path) as image:
                    ImageOps.exif_transpose(image)  # decodes, and fails where data is missing
    except Exception as error:  # noqa: BLE001 - damaged images raise nearly anything
        return 0, 0, " ".join(str(error).split()) or type(error).__name__
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
