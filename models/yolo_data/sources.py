"""What is to be looked at: images, folders, patterns, lists of images, and videos."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from memplan.errors import BadInputError
from memplan.files import Source

from .dataset import IMAGE_SUFFIXES
from .orientation import upright_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .augment import Image

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_MOST_BYTES = 1 << 30  # an image's


@dataclass(frozen=True)
class Picture:
    """One image, or one frame of a video."""

    path: Path
    pixels: Image
    """`[height, width, 3]`, BGR."""
    frame: int | None = None
    """The frame's place in its video, 0-based; None of an image."""
    num_frames: int = 0
    """Of the video, as far as it says; 0 of an image."""
    frames_per_second: float = 0.0
    """Of the video; 0 of an image."""


def find_files(source: str) -> list[Path]:
    """Return the images and videos that a source names, folders and patterns sorted.

    Args:
        source: a file, a folder, a pattern such as `photos/*.jpg`, or a `.txt` with a path a line.

    Raises:
        BadInputError: it names nothing that can be read, or a camera or a stream.
    """
    if source.isdecimal() or "://" in source or source == "screen":
        raise BadInputError(
            f"--source {source} is a camera, a stream or the screen, which are not read: "
            "save it as a video file first, such as with ffmpeg."
        )
    path = Path(source)
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.suffix.lower() in known)
    elif any(character in source for character in "*?["):
        files = sorted(Path(item) for item in glob.glob(source, recursive=True))  # noqa: PTH207
        files = [item for item in files if item.suffix.lower() in known]
    elif path.suffix.lower() == ".txt":
        lines = Source(path=path, what="a list of images, one path a line").text().splitlines()
        files = [path.parent / line.strip() for line in lines if line.strip()]
    else:
        files = [path]
    missing = next((item for item in files if not item.is_file()), None)
    if missing is not None or not files:
        what = f"{missing} is no file" if missing is not None else "no image and no video is there"
        raise BadInputError(f"--source {source}: {what}. Known: {', '.join(sorted(known))}.")
    return files


def read_pictures(path: Path, video_stride: int = 1) -> Iterator[Picture]:
    """Yield an image, or every `video_stride`-th frame of a video.

    Raises:
        BadInputError: the file cannot be read.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _frames(path, video_stride)
        return
    encoded = Source(path=path, what="an image", most_bytes=_MOST_BYTES).content()
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if pixels is None:
        pixels = upright_pixels(path)
    if pixels is None:
        raise BadInputError(f"{path} cannot be read as an image.")
    yield Picture(path, np.asarray(pixels, np.uint8))


def _frames(path: Path, stride: int) -> Iterator[Picture]:
    video = cv2.VideoCapture(str(path))
    try:
        count = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        rate = float(video.get(cv2.CAP_PROP_FPS)) or 30.0
        number = 0
        while video.grab():
            if number % stride == 0:
                is_read, pixels = video.retrieve()
                if is_read:
                    yield Picture(path, np.asarray(pixels, np.uint8), number, count, rate)
            number += 1
    finally:
        video.release()
    if number == 0:
        raise BadInputError(f"{path} cannot be read as a video.")
