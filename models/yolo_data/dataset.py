"""A data set's description: `data.yaml` read, its splits resolved to lists of image files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import BadInputError
from memplan.files import Source, brief, in_checkout

if TYPE_CHECKING:
    from collections.abc import Mapping

# What both Pillow (which scans) and OpenCV (which decodes) read.
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """What `data.yaml` says, with paths resolved and checked to exist."""

    path: Path
    """The `data.yaml` itself."""
    root: Path
    """The directory that the splits are relative to."""
    class_names: tuple[str, ...]
    """Names by class number."""
    splits: Mapping[str, tuple[Path, ...]]
    """Directories and list files of each split that is given."""
    warnings: tuple[str, ...] = ()
    """What of the file is passed over, a line each."""

    @property
    def num_classes(self) -> int:
        """The number of classes, >= 1."""
        return len(self.class_names)

    def find_images(self, split: str) -> tuple[list[Path], int]:
        """Return a split's image files, sorted and each once, and how many more were named again.

        Raises:
            BadInputError: the split is not described, or holds no images.
        """
        sources = self.splits.get(split)
        if not sources:
            known = ", ".join(self.splits)
            raise BadInputError(f"{self.path} describes no {split!r} split. It has: {known}.")
        named = [
            path
            for source in sources
            for path in (_listed_images(source) if source.is_file() else _images_below(source))
        ]
        if not named:
            raise BadInputError(
                f"No images for {split!r} in {', '.join(map(str, sources))}. "
                f"memplan reads {', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        paths = sorted(set(named))
        return paths, len(named) - len(paths)


_SHIPPED = Path(__file__).parent / "descriptions"


def _ships(path: Path) -> bool:
    """Return whether a description is one that ships."""
    return path.absolute().parent == _SHIPPED


def find_description(path: Path) -> Path:
    """Return where a data set's description lies.

    That is the path itself, else the file that an official checkout around the working directory
    has for it, else the shipped one of that name (`coco.yaml`); the path where there is none.
    """
    found = in_checkout(path)
    shipped = _SHIPPED / path.name
    return shipped if not found.exists() and shipped.is_file() else found


def read_description(path: Path) -> DataDescription:
    """Return the data set that a `data.yaml` describes, found as `find_description` does.

    `train`, `val` and `test` are each a directory, a list file, or a list of those, relative to
    `path` inside the file. Where that is relative too, or missing, it is looked for where the
    official tool looks (the working directory stands for its checkout), then beside the file; at
    either, `../` at a beginning may be one too many, as in Roboflow's files. `warnings` says what
    was taken unless it lies beside the file.

    `names` is a list or a map from number to name. `download` is never followed: nothing touches
    the network and no script of a data set is run.

    Raises:
        BadInputError: the file or a directory is missing, or an entry cannot be used.
    """
    path = find_description(path)
    raw, warnings = _read_mapping(path)
    class_names = _read_names(path, raw, warnings)
    for split in ("train", "val"):
        if raw.get(split) is None:
            raise BadInputError(
                f"{path} has no entry {split!r}. Add it: a directory of images, such as "
                f"{path.absolute().parent / 'images' / split}."
            )
    # An empty `test` is none; an empty `train` is a mistake.
    named = [split for split in SPLITS if split != "test" or raw.get(split)]
    entries = {split: _entries(path, split, raw[split]) for split in named}
    root, splits = _find_splits(path, raw.get("path"), entries, warnings)
    if raw.get("download"):
        warnings.append(
            f"{path}: download is passed over; memplan downloads no data and runs no script of it."
        )
    return DataDescription(
        path=path, root=root, class_names=class_names, splits=splits, warnings=tuple(warnings)
    )


def _read_mapping(path: Path) -> tuple[dict[str, Any], list[str]]:
    source = Source(
        path=path,
        what="a data description",
        missing="Give a data.yaml, or write the sample set with `memplan data sample DIR`.",
        any_encoding=True,
    )
    raw = source.yaml()
    if not isinstance(raw, dict):
        raise BadInputError(f"{path} holds no mapping. It needs train, val and names.")
    encoding = source.encoding()
    warnings = []
    if encoding != "utf-8":
        warnings.append(f"{path} is not in UTF-8; it was read as {encoding}. Save it as UTF-8.")
    return {str(key): value for key, value in raw.items()}, warnings


def _entries(path: Path, split: str, value: Any) -> tuple[Path, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) and item for item in items):
        raise BadInputError(f"{path}: {split} is {brief(value)}; give a directory or a list file.")
    return tuple(_place(path, split, item) for item in items)


Splits = dict[str, tuple[Path, ...]]


def _find_splits(
    path: Path, given: Any, entries: Splits, warnings: list[str]
) -> tuple[Path, Splits]:
    """Return the root and the splits' places under it; what is not beside the file is told."""
    roots = _roots(path, given)
    found = [(root, splits) for root in roots if (splits := _under(root, entries)) is not None]
    if not found:
        wanted = ", ".join(str(place) for split in ("train", "val") for place in entries[split])
        looked = ", ".join(map(str, roots))
        raise BadInputError(
            f"{path}: train and val name {wanted}, of which something does not exist, looked for "
            f"in {looked}. memplan downloads no data: "
            + (
                "put it there, or give a data.yaml of yours."
                if _ships(path)
                else "correct path, train and val."
            )
        )
    root, splits = found[0]
    beside = Path(os.path.normpath(path.absolute().parent / (given or ".")))
    taken = splits["train"][0]
    if root != beside or taken != Path(os.path.normpath(root / entries["train"][0])):
        others = {str(other["train"][0]) for _, other in found[1:]} - {str(taken)}
        rest = f" There is {' and '.join(sorted(others))} too." if others else ""
        warnings.append(f"{path}: training images are taken from {taken}.{rest}")
    gone = [split for split in entries if split not in splits]
    warnings += [f"{path}: {split} does not exist and is passed over." for split in gone]
    return root, splits


def _roots(path: Path, given: Any) -> list[Path]:
    """Return where the splits may lie, in the order they are looked for, each once."""
    if given is not None and not isinstance(given, str):
        raise BadInputError(f"{path}: path is {brief(given)}, but it must be one directory.")
    place = _place(path, "path", given or ".")
    here = path.absolute().parent
    if _ships(path):  # no data lie in the package
        return [Path(os.path.normpath(Path.cwd() / place))]
    roots = [Path.cwd() / place, here / place]
    if not place.is_absolute():
        shorter = _without_parent(place)
        roots += [Path.cwd() / shorter, here / shorter, here.parent / place]
    return list(dict.fromkeys(Path(os.path.normpath(root)) for root in roots))


def _under(root: Path, entries: Splits) -> Splits | None:
    """Return the splits' places under a root; None unless all of train and val exist."""
    splits: Splits = {}
    for split, names in entries.items():
        places = [
            next((p for p in (root / name, root / _without_parent(name)) if p.exists()), None)
            for name in names
        ]
        known = [Path(os.path.normpath(place)) for place in places if place is not None]
        if len(known) == len(names):
            splits[split] = tuple(known)
        elif split != "test":
            return None
    return splits


def _without_parent(place: Path) -> Path:
    """Return a relative path without `..` at its beginning."""
    return Path(*place.parts[1:]) if place.parts[:1] == ("..",) else place


def _place(path: Path, name: str, entry: str) -> Path:
    """Return a path that a description names, a home folder at its beginning filled in."""
    if "\0" in entry or len(entry) > _LONGEST_PATH:
        raise BadInputError(
            f"{path}: {name} is no path: it has {len(entry)} characters, or holds NUL."
        )
    try:
        place = Path(entry).expanduser()
        place.exists()
    except (RuntimeError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"{error}"
        raise BadInputError(f"{path}: {name} {entry[:100]!r} is no path: {reason}") from None
    return place


_LONGEST_PATH = 4096  # Linux's PATH_MAX
_MOST_CLASSES = 100_000


def _read_names(path: Path, raw: Mapping[str, Any], warnings: list[str]) -> tuple[str, ...]:
    names, num_classes = raw.get("names"), raw.get("nc")
    if num_classes is not None and (
        type(num_classes) is not int or not 1 <= num_classes <= _MOST_CLASSES
    ):
        raise BadInputError(
            f"{path}: nc is {brief(num_classes)}, but it must be a whole number from 1 to "
            f"{_MOST_CLASSES}."
        )
    if names is None and num_classes is not None:
        return tuple(str(number) for number in range(num_classes))
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise BadInputError(
                f"{path}: names must be numbered 0 to {len(names) - 1} with no gap."
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise BadInputError(f"{path}: names must be a list of class names or a map from number.")
    if num_classes is not None and num_classes != len(names):
        warnings.append(
            f"{path}: nc is {num_classes} but there are {len(names)} names; the names are trusted, "
            "as by the official code."
        )
    return tuple(str(name) for name in names)


def _images_below(directory: Path) -> list[Path]:
    return [
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]


_MOST_LIST_BYTES = 1 << 30


def _listed_images(list_file: Path) -> list[Path]:
    """Return the images a list file names, one a line.

    Paths are relative to the file's directory, or to the working directory where the first is not
    found there but here; the official lists have both.
    """
    text = Source(
        path=list_file,
        what="a list of images, one path a line",
        way_out="Give a text file or a directory.",
        most_bytes=_MOST_LIST_BYTES,
    ).text()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    base = list_file.parent
    if lines and not (base / lines[0]).exists() and Path(lines[0]).exists():
        base = Path.cwd()
    return [base / line for line in lines]
