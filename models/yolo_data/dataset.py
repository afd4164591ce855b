"""A data set's description: `data.yaml` read, its splits resolved to lists of image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import BadInputError
from memplan.files import Source, brief

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


def read_description(path: Path) -> DataDescription:
    """Return the data set that a `data.yaml` describes.

    `path` inside the file is the root: absolute, or relative to the file's own directory, or else
    to the working directory. `train`, `val` and `test` are each a directory, a list file, or a list
    of those. `names` is a list or a map from number to name. `download` is never followed: nothing
    touches the network and no script of a data set is run; `warnings` says so.

    Raises:
        BadInputError: the file or a directory is missing, or an entry cannot be used.
    """
    raw = _read_mapping(path)
    root = _find_root(path, raw.get("path"))
    class_names = _read_names(path, raw)
    splits = {
        split: _find_sources(path, root, split, raw[split])
        for split in SPLITS
        if raw.get(split) is not None
    }
    for split in ("train", "val"):
        if split not in splits:
            raise BadInputError(
                f"{path} has no entry {split!r}. Add it: a directory of images under {root}."
            )
    ignored = (
        (f"{path}: download is passed over; memplan downloads no data and runs no script of it.",)
        if raw.get("download")
        else ()
    )
    return DataDescription(
        path=path, root=root, class_names=class_names, splits=splits, warnings=ignored
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    raw = Source(
        path=path,
        what="a data description",
        missing="Give a data.yaml, or write the sample set with `memplan data sample DIR`.",
    ).yaml()
    if not isinstance(raw, dict):
        raise BadInputError(f"{path} holds no mapping. It needs train, val and names.")
    return {str(key): value for key, value in raw.items()}


def _find_root(path: Path, entry: Any) -> Path:
    here = path.absolute().parent
    if entry is None:
        return here
    if not isinstance(entry, str):
        raise BadInputError(f"{path}: path is {brief(entry)}, but it must be one directory.")
    # The official files give a root relative to where training is started.
    place = _place(path, "path", entry)
    for root in (here / place, place.absolute()):
        if root.is_dir():
            return root.resolve()
    raise BadInputError(
        f"{path}: path {entry} is no directory, neither beside the file nor in the working "
        "directory. memplan downloads no data."
    )


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


def _read_names(path: Path, raw: Mapping[str, Any]) -> tuple[str, ...]:
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
        raise BadInputError(f"{path}: nc is {num_classes} but there are {len(names)} names.")
    return tuple(str(name) for name in names)


def _find_sources(path: Path, root: Path, split: str, entry: Any) -> tuple[Path, ...]:
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(item, str) and item for item in entries):
        raise BadInputError(f"{path}: {split} is {brief(entry)}; give a directory or a list file.")
    sources = tuple(root / _place(path, split, item) for item in entries)
    for source in sources:
        if not source.exists():
            raise BadInputError(
                f"{path}: {split} names {source}, which does not exist. memplan downloads no data."
            )
    return sources


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
