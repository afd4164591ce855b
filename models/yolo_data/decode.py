"""Image files decoded to the size that samples start from, and kept in host memory or on disk."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np

from memplan.errors import BadInputError
from memplan.units import KIB, format_bytes

from .augment import Image, Shape, resize
from .index import user_cache
from .labels import file_stamp
from .orientation import upright_pixels
from .shared import SharedBytes, SharedSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .scan import LabelledImage

_MEMORY_SHARE = 0.5  # of the free host memory that a cache may take
_DISK_SHARE = 0.9  # of the free disk
_JPEG = frozenset({".jpeg", ".jpg"})
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4),
            (2, cv2.IMREAD_REDUCED_COLOR_2))  # fmt: skip
_NUM_THREADS = 8


class UnreadableError(BadInputError):
    """An image that was there when the data set was checked has vanished or is broken."""


def decode(image: LabelledImage, least_side: int | None = None) -> Image:
    """Return the file's pixels, `[height, width, 3]`, BGR, 8 bits, the EXIF orientation applied.

    Args:
        image: as it was when the data set was checked.
        least_side: what the longer side need not exceed, pixels. A JPEG at least twice, four or
            eight times as large is decoded at that fraction of its size, averaged by the decoder
            itself, which takes half the time; None gives every pixel.

    Raises:
        UnreadableError: the file cannot be read any more.
    """
    try:
        encoded = np.fromfile(image.path, np.uint8)
    except OSError as error:
        raise UnreadableError(f"{image.path} cannot be read any more: {error.strerror}.") from None
    factor, flag = _reduction(image, least_side)
    pixels = cv2.imdecode(encoded, flag) if encoded.size else None
    expected = (-(-image.height // factor), -(-image.width // factor))
    if pixels is None or pixels.shape[:2] != expected:
        # OpenCV knows fewer kinds of files, and of orientations, than the check.
        pixels = upright_pixels(image.path)
        if pixels is None or pixels.shape[:2] != (image.height, image.width):
            raise UnreadableError(
                f"{image.path} is not the image it was when the data set was checked. Start again."
            )
    return np.asarray(pixels, np.uint8)


def _reduction(image: LabelledImage, least_side: int | None) -> tuple[int, int]:
    if least_side is not None and image.path.suffix.lower() in _JPEG:
        for factor, flag in _REDUCED:
            if max(image.height, image.width) >= factor * least_side:
                return factor, flag
    return 1, cv2.IMREAD_COLOR


def resized_shape(image: LabelledImage, size: int) -> Shape:
    """Return height and width once the longer side is `size` pixels.

    Source: the official loader, which cuts fractions off.
    """
    ratio = size / max(image.height, image.width)
    if ratio == 1:
        return image.height, image.width
    return max(int(image.height * ratio), 1), max(int(image.width * ratio), 1)


Shrinking = Literal["linear", "area", "decoder"]
"""How images larger than samples become smaller: `linear` interpolates between the pixels around
each point, as the official training does; `area` averages all, as its validation does; `decoder`
lets JPEG's decoder average most of them, in half the time."""


def load_resized(image: LabelledImage, size: int, shrinking: Shrinking = "linear") -> Image:
    """Return the image with its longer side at `size` pixels.

    Args:
        image: as it was when the data set was checked.
        size: pixels.
        shrinking: of larger images.

    Raises:
        UnreadableError: the file cannot be read any more.
    """
    pixels = decode(image, size if shrinking == "decoder" else None)
    return resize(pixels, *resized_shape(image, size), averages=shrinking != "linear")


class _Kept:
    """Images one after another in memory that loader processes share.

    Args:
        shapes: height and width of each.
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._shapes = np.array(shapes, np.int64).reshape(-1, 2)
        self._ends = np.cumsum(3 * self._shapes.prod(axis=1))
        self._pixels = SharedBytes(int(self._ends[-1]) if len(self._ends) else 0)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, place: int) -> Image:
        height, width = self._shapes[place]
        end = self._ends[place]
        pixels: Image = self._pixels.array[end - 3 * height * width : end]
        return pixels.reshape(height, width, 3)

    def put(self, place: int, image: Image) -> None:
        """Keep an image."""
        self[place][:] = image


class ImageStore:
    """Images at the size that samples start from, read from their files each time unless kept.

    Args:
        images: of a split.
        size: pixels of the longer side.
        shrinking: as `load_resized` takes it.
    """

    def __init__(
        self, images: Sequence[LabelledImage], size: int, shrinking: Shrinking = "linear"
    ) -> None:
        self._images = images
        self._size = size
        self._shrinking = shrinking
        self._in_memory: _Kept | None = None
        self._on_disk: Sequence[Path] | None = None

    def over(self, images: Sequence[LabelledImage]) -> ImageStore:
        """Return the same store over equal images that are kept elsewhere."""
        other = copy.copy(self)
        other._images = images  # noqa: SLF001 - a copy of this one
        return other

    def __getitem__(self, place: int) -> Image:
        """Return an image; not to be written to."""
        if self._in_memory is not None:
            return self._in_memory[place]
        if self._on_disk is not None:
            with contextlib.suppress(OSError, ValueError):  # else from the image file itself
                return np.asarray(np.load(self._on_disk[place]), np.uint8)
        return self._load(place)

    def _load(self, place: int) -> Image:
        return load_resized(self._images[place], self._size, self._shrinking)

    @property
    def is_in_memory(self) -> bool:
        """Whether every image is kept in host memory."""
        return self._in_memory is not None

    @property
    def num_bytes(self) -> int:
        """What keeping every image takes, bytes."""
        shapes = (resized_shape(image, self._size) for image in self._images)
        return sum(3 * height * width for height, width in shapes)

    def keep_in_memory(self) -> None:
        """Keep every image in host memory.

        Raises:
            BadInputError: that would take more than half of what is free.
        """
        free_bytes = _available_bytes()
        if self.num_bytes > free_bytes * _MEMORY_SHARE:
            raise BadInputError(
                f"Caching the images takes {format_bytes(self.num_bytes)}, more than "
                f"{_MEMORY_SHARE:.0%} of the {format_bytes(free_bytes)} of free host memory. "
                "Use --cache disk, or leave out --cache."
            )
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            kept = _Kept([resized_shape(image, self._size) for image in self._images])
            list(pool.map(lambda place: kept.put(place, self._load(place)), range(len(kept))))
        self._in_memory = kept

    def keep_on_disk(self, root: Path) -> None:
        """Keep every image decoded in a folder of the data set, else of the user's cache.

        A file is named after its image's path, size and time of change, so a changed image is
        decoded anew; files of its earlier states are removed.

        Raises:
            BadInputError: no place can be written, or the disk has too little room.
        """
        # Another way of shrinking gives other pixels, so a folder of its own.
        name = f"memplan-cache-{self._size}-{self._shrinking}"
        folder = _writable((root / name, user_cache() / name))
        names = [_kept_name(image.path) for image in self._images]
        known = {entry.name for entry in os.scandir(folder)}
        missing = [place for place, name in enumerate(names) if name not in known]
        _drop_earlier(folder, known, names)
        missing_bytes = self.num_bytes * len(missing) // max(len(names), 1)
        free_bytes = shutil.disk_usage(folder).free
        if missing_bytes > free_bytes * _DISK_SHARE:
            raise BadInputError(
                f"Caching the images takes {format_bytes(missing_bytes)} in {folder}, more than "
                f"{_DISK_SHARE:.0%} of the {format_bytes(free_bytes)} free there. Leave out "
                "--cache."
            )
        paths = [folder / name for name in names]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(lambda place: _write(paths[place], self._load(place)), missing))
        self._on_disk = SharedSequence(paths)


def _kept_name(path: Path) -> str:
    size, changed = file_stamp(path) or (0, 0)
    return f"{_digest(path)}-{size:x}-{changed:x}.npy"


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:20]


def _drop_earlier(folder: Path, known: set[str], names: Sequence[str]) -> None:
    wanted = set(names)
    images = {name.partition("-")[0] for name in names}
    for name in known - wanted:
        if name.partition("-")[0] in images and name.endswith(".npy"):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _writable(folders: Sequence[Path]) -> Path:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise BadInputError(
        f"--cache disk finds no place: neither {folders[0]} nor {folders[1]} can be written. "
        "Leave out --cache, or set XDG_CACHE_HOME."
    )


def _write(path: Path, image: Image) -> None:
    """Write the pixels in one step, so that no reader meets half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.save(file, image)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise BadInputError(
            f"{path} cannot be written: {error.strerror}. Leave out --cache."
        ) from None


def _available_bytes() -> int:
    """Return host memory that can be had without swapping, as Linux reckons it."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, value, *_ = line.split()
        if name == "MemAvailable:":
            return int(value) * KIB
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
