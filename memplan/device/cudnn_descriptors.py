"""cuDNN's C interface: descriptors, which are created, given attributes, finalized and read.

Source: the cuDNN 9 backend API reference; the numbers are those of `cudnn_graph.h` (9.19), and
cuDNN keeps them from version to version.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from memplan.errors import BadInputError, MemplanError

FOLDER_VARIABLE = "MEMPLAN_CUDNN"
"""Names the folder of another cuDNN, in the process that asks it: see `cudnn_beside`."""
WHEELS = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
# The first that can be told of a device in words.
_OLDEST_VERSION = 90800


class Attribute(NamedTuple):
    """One attribute of a kind of descriptor."""

    number: int
    """Of `cudnnBackendAttributeName_t`."""
    type_number: int
    """Of `cudnnBackendAttributeType_t`."""
    c_type: Any


class CudnnError(Exception):
    """cuDNN refuses an attribute or a descriptor; its status is the argument."""

    @property
    def is_of_the_process(self) -> bool:
        """Whether cuDNN itself failed, such as for memory, and not what it was asked.

        Source: `cudnnStatus_t` of `cudnn_graph.h` (9.19): 2000s are bad parameters, 3000s what is
        not supported; libraries that are not loaded are 1000s, internal errors 4000s.
        """
        return int(self.args[0]) // 1000 not in (2, 3)


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded cuDNN: the package that torch brings, or the system's.

    Raises:
        BadInputError: it is missing, or older than 9.8.
    """
    try:
        loaded = ctypes.CDLL(_path())
        pointer: Any = ctypes.c_void_p
        integer, count = ctypes.c_int, ctypes.c_int64
        values = [pointer, integer, integer, count, pointer]
        loaded.cudnnGetVersion.restype = ctypes.c_size_t
        loaded.cudnnBackendCreateDescriptor.argtypes = [integer, pointer]
        loaded.cudnnBackendDestroyDescriptor.argtypes = [pointer]
        loaded.cudnnBackendFinalize.argtypes = [pointer]
        loaded.cudnnBackendSetAttribute.argtypes = values
        loaded.cudnnBackendGetAttribute.argtypes = [*values[:-1], pointer, pointer]
    except (OSError, AttributeError) as error:
        raise BadInputError(
            f"cuDNN cannot be asked for workspaces: {error}. Install the CUDA build of torch."
        ) from error
    if loaded.cudnnGetVersion() < _OLDEST_VERSION:
        raise BadInputError(
            f"cuDNN {_text(loaded.cudnnGetVersion())} cannot be asked about a card that is not "
            f"there; {_text(_OLDEST_VERSION)} can. Install a newer torch."
        )
    return loaded


@functools.cache
def open_sublibraries() -> None:
    """Open the libraries that cuDNN opens by itself when it needs them.

    Where one cannot be loaded, cuDNN leaves out its engines, or all heuristics, without a word,
    and another plan seems to be the first.

    Raises:
        MemplanError: one cannot be loaded.
    """
    for path in sorted(Path(_path()).parent.glob("libcudnn_*.so.9")):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise MemplanError(
                f"cuDNN's workspaces cannot be told: a library of it does not load ({error}). "
                "Free host memory and run the command again."
            ) from None


@functools.cache
def open_compilers() -> None:
    """Open the libraries that cuDNN compiles some of its engines with, and looks for by name.

    torch opens them when it is imported. Where they are missing, cuDNN leaves those engines out
    without a word, and the plan that PyTorch takes on a card is not the one found here.
    """
    for path in _compilers():
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _compilers() -> list[Path]:
    # Of all of NVIDIA's wheels, from nvidia/cudnn/lib; another cuDNN's folder holds no compilers.
    folders = Path(_installed_path()).parents[2:3]
    found = {one.name: one for folder in folders for one in folder.glob("*/lib/libnvrtc*.so.*")}
    return [found[name] for name in sorted(found) if ".alt." not in name]


def _path() -> str:
    folder = os.environ.get(FOLDER_VARIABLE)
    return str(Path(folder) / "nvidia/cudnn/lib/libcudnn.so.9") if folder else _installed_path()


def _installed_path() -> str:
    for wheel in WHEELS:
        try:
            path = Path(str(metadata.distribution(wheel).locate_file("nvidia/cudnn/lib")))
        except metadata.PackageNotFoundError:
            continue
        if (path / "libcudnn.so.9").exists():
            return str(path / "libcudnn.so.9")
    return "libcudnn.so.9"


def version_number() -> int:
    """Return the loaded version as cuDNN counts it, such as 91900.

    Raises:
        BadInputError: cuDNN is missing, or older than 9.8.
    """
    return int(library().cudnnGetVersion())


def installed_version() -> str:
    """Return the loaded version, such as "9.19.0".

    Raises:
        BadInputError: cuDNN is missing, or older than 9.8.
    """
    return _text(version_number())


def _text(number: int) -> str:
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class Descriptors:
    """Descriptors that are destroyed together, at the end of a `with` block."""

    def __init__(self) -> None:
        self._library = library()
        self._made: list[int] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Destroy what was made, last first."""
        for descriptor in reversed(self._made):
            self._library.cudnnBackendDestroyDescriptor(descriptor)
        self._made.clear()

    def _new(self, kind: int) -> int:
        pointer = ctypes.c_void_p()
        _check(self._library.cudnnBackendCreateDescriptor(kind, ctypes.byref(pointer)))
        assert pointer.value is not None
        self._made.append(pointer.value)
        return pointer.value

    def make(self, kind: int, *attributes: tuple[Attribute, Sequence[Any]]) -> int:
        """Return a finalized descriptor.

        Args:
            kind: its number in `cudnnBackendDescriptorType_t`.
            attributes: each with its values.

        Raises:
            CudnnError: cuDNN refuses an attribute, or what they describe together.
        """
        descriptor = self._new(kind)
        for (number, type_number, c_type), values in attributes:
            count = len(values)
            array = (c_type * count)(*values)
            _check(
                self._library.cudnnBackendSetAttribute(
                    descriptor, number, type_number, count, array
                )
            )
        _check(self._library.cudnnBackendFinalize(descriptor))
        return descriptor

    def read(self, descriptor: int, attribute: Attribute, most: int) -> list[int]:
        """Return up to so many values of an attribute.

        Raises:
            CudnnError: cuDNN does not tell.
        """
        array = (attribute.c_type * most)()
        return list(array[: self._read(descriptor, attribute, most, array)])

    def read_descriptors(
        self, descriptor: int, attribute: Attribute, kind: int, most: int
    ) -> list[int]:
        """Return up to so many descriptors that are an attribute of another one.

        Raises:
            CudnnError: cuDNN does not tell.
        """
        array = (ctypes.c_void_p * most)(*(self._new(kind) for _ in range(most)))
        found = self._read(descriptor, attribute, most, array)
        return [made for made in array[:found] if made is not None]

    def _read(
        self, descriptor: int, attribute: Attribute, most: int, array: ctypes.Array[Any]
    ) -> int:
        found = ctypes.c_int64()
        _check(
            self._library.cudnnBackendGetAttribute(
                descriptor,
                attribute.number,
                attribute.type_number,
                most,
                ctypes.byref(found),
                array,
            )
        )
        return min(found.value, most)


def _check(status: int) -> None:
    if status:
        raise CudnnError(status)
