"""A cuDNN in a folder beside the installed one, which is asked in its place.

    pip install --no-deps --target ~/.cache/memplan/cudnn/9.12 nvidia-cudnn-cu13==9.12.*
    memplan probe --cudnn 9.12 ...

Only the process that asks loads it; torch and everything else keep the installed one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memplan.device.cudnn_descriptors import installed_version
from memplan.errors import BadInputError, UsageError
from memplan.phantom.build import cache_folder
from memplan.phantom.installed import OLDEST_CUDNN, cuda_major

LIBRARIES = Path("nvidia/cudnn/lib")
_WHEEL = re.compile(r"nvidia_cudnn_cu(\d+)-(\d+\.\d+\.\d+)[\d.]*\.dist-info")
_VERSION = re.compile(r"\d+(\.\d+){0,3}\.?")


@dataclass(frozen=True)
class CudnnBeside:
    """A cuDNN that is not torch's own."""

    folder: Path
    """What its wheel was installed into."""
    version: str
    """Such as `9.12.0`."""


def beside(text: str) -> CudnnBeside | None:
    """Return the cuDNN that a version or a folder names.

    None where that is the installed one, or where no folder holds the version.

    Args:
        text: a version, whole or in part, that is looked for in the folders below `cudnn` of
            memplan's cache; or a folder that a wheel was installed into.

    Raises:
        UsageError: the text is neither.
        BadInputError: the folder holds no cuDNN that can be asked here.
    """
    if not is_version(text):
        return in_folder(text)
    if names_installed(text):
        return None
    wanted = text.strip(".").split(".")[:3]
    found = [one for one in _kept() if one.version.split(".")[: len(wanted)] == wanted]
    return max(found, key=lambda one: tuple(map(int, one.version.split("."))), default=None)


def is_version(text: str) -> bool:
    """Return whether a text is a version, whole or in part, such as `9.12`."""
    return _VERSION.fullmatch(text) is not None


def names_installed(version: str) -> bool:
    """Return whether a version, whole or in part, is that of the installed cuDNN."""
    given = version.strip(".").split(".")[:3]
    return installed_version().split(".")[: len(given)] == given


def can_be_asked(version: str) -> bool:
    """Return whether a version, whole or in part, may be told of a card in words."""
    parts = tuple(int(part) for part in version.strip(".").split(".")[:2])
    return parts >= OLDEST_CUDNN[: len(parts)]


def oldest() -> str:
    """Return the first version that can be told of a card in words."""
    return ".".join(map(str, OLDEST_CUDNN))


def way_to_keep(version: str) -> str:
    """Return the command that installs a version where `beside` finds it."""
    wanted = ".".join(version.strip(".").split(".")[:3])
    wheel = f"nvidia-cudnn-cu{cuda_major()}=={wanted}.*"
    return f"pip install --no-deps --target {cache_folder() / 'cudnn' / wanted} '{wheel}'"


def in_folder(text: str) -> CudnnBeside:
    """Return the cuDNN whose wheel was installed into a folder.

    Raises:
        UsageError: there is no such folder.
        BadInputError: the folder holds no cuDNN that can be asked here.
    """
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"--cudnn {text!r} is no version of cuDNN, nor a folder. Write it as 9.12, or "
            "name the folder that its wheel was installed into."
        )
    major = cuda_major()
    found = dict(_wheels(folder))
    if not (folder / LIBRARIES / "libcudnn.so.9").is_file() or major not in found:
        raise BadInputError(
            f"{folder} holds no cuDNN 9 for CUDA {major}, which torch here is built for. Install "
            f"one: pip install --no-deps --target {folder} nvidia-cudnn-cu{major}."
        )
    if not can_be_asked(found[major]):
        raise BadInputError(
            f"cuDNN {found[major]} in {folder} cannot be asked about a card that is not there; "
            f"{oldest()} and newer can. Name a newer one."
        )
    return CudnnBeside(folder.absolute(), found[major])


def _kept() -> Iterator[CudnnBeside]:
    """Yield what the folders of memplan's cache hold that can be asked here."""
    for folder in sorted((cache_folder() / "cudnn").glob("*/")):
        for cuda, version in _wheels(folder):
            has_library = (folder / LIBRARIES / "libcudnn.so.9").is_file()
            if has_library and cuda == cuda_major() and can_be_asked(version):
                yield CudnnBeside(folder, version)


def _wheels(folder: Path) -> list[tuple[int, str]]:
    """Return the CUDA and the version of each wheel in a folder."""
    matches = (_WHEEL.fullmatch(path.name) for path in folder.glob("nvidia_cudnn_cu*.dist-info"))
    return [(int(match[1]), match[2]) for match in matches if match]
