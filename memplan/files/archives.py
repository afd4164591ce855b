"""Zip archives (`.pt`, `.npz`) within the sizes they declare, every byte checked as it is read.

Neither PyTorch nor its tools compare a checkpoint with the checksums it carries, so that a flipped
bit becomes a weight of -4.9e36. Here nothing is given out that does not agree with its checksum.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from memplan.errors import is_out_of_memory
from memplan.units import format_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memplan.files.source import Source

# The list of members is read at once; one member takes a hundred bytes of it.
_MOST_DIRECTORY_BYTES = 16 << 20
_MOST_MEMBERS = 200_000
_END, _END_BYTES = b"PK\5\6", 22
_LOCATOR, _LOCATOR_BYTES = b"PK\6\7", 20
_CHUNK = 1 << 20

# What zipfile and zlib raise for files that are damaged.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError,
    OverflowError, IndexError, struct.error, OSError,
)  # fmt: skip


class DamagedError(ValueError):
    """An archive that cannot be trusted; the message is a clause that says why."""


class CheckedArchive:
    """The members of a zip file, each checked by its checksum when it is read.

    Args:
        file: open for reading.
        most_bytes: of all members together when unpacked; more is refused before any is read.
        compressed: whether members may be compressed; PyTorch never does.

    Raises:
        DamagedError: it is no zip file, damaged, or made to be larger than it looks.

    Source: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.4.
    """

    def __init__(self, file: IO[bytes], *, most_bytes: int, compressed: bool) -> None:
        self._unread: set[str] = set()
        with _damage():
            _check_directory(file)
            self._zip = zipfile.ZipFile(file)
            self._members = {info.filename: info for info in self._zip.infolist()}
            self._check(os.fstat(file.fileno()).st_size, most_bytes, compressed)
        self._unread = set(self._members)

    def _check(self, file_bytes: int, most_bytes: int, compressed: bool) -> None:
        infos = self._zip.infolist()
        if len(infos) != len(self._members):
            raise DamagedError("two members have one name")
        if len(infos) > _MOST_MEMBERS:
            raise DamagedError(f"it has more than {_MOST_MEMBERS} members")
        for info in infos:
            is_stored = info.compress_type == zipfile.ZIP_STORED
            if not is_stored and not (compressed and info.compress_type == zipfile.ZIP_DEFLATED):
                raise DamagedError(f"{info.filename!r} is compressed in a way it never is")
            if is_stored and info.file_size != info.compress_size:
                raise DamagedError(f"{info.filename!r} has two sizes")
        # Members that overlap would make much of little.
        if sum(info.compress_size for info in infos) > file_bytes:
            raise DamagedError("its members overlap, or the file is cut short")
        if (total := sum(info.file_size for info in infos)) > most_bytes:
            raise DamagedError(
                f"it unpacks to {format_bytes(total)}, more than the {format_bytes(most_bytes)} "
                "that such a file may hold"
            )

    @property
    def names(self) -> list[str]:
        """The members' names, in the order of the directory."""
        return list(self._members)

    def size(self, name: str) -> int:
        """Return a member's bytes when unpacked, as declared."""
        return self._member(name).file_size

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise DamagedError(f"it has no {name!r}")
        return self._members[name]

    def read(self, name: str) -> bytes:
        """Return a member's bytes."""
        content = bytearray(self.size(name))
        self.read_into(name, memoryview(content))
        return bytes(content)

    def read_into(self, name: str, buffer: memoryview) -> None:
        """Fill a buffer of `size` bytes with a member, its checksum compared."""
        info = self._member(name)
        crc = 0
        with _damage(), self._zip.open(info) as member:
            at = 0
            while at < len(buffer):
                # readinto of zipfile makes a copy of all that is asked for.
                part = member.read(min(_CHUNK, len(buffer) - at))
                if not part:
                    raise DamagedError(f"{name!r} is cut short")
                buffer[at : at + len(part)] = part
                crc = zlib.crc32(part, crc)
                at += len(part)
            # zipfile compares too, but not where a damaged stream hides its own end.
            if crc != info.CRC or member.read(1):
                raise DamagedError(f"the checksum of {name!r} is wrong")
        self._unread.discard(name)

    def check_rest(self) -> None:
        """Compare the checksums of the members that were not read."""
        for name in sorted(self._unread):
            info, crc = self._members[name], 0
            with _damage(), self._zip.open(info) as member:
                while part := member.read(_CHUNK):
                    crc = zlib.crc32(part, crc)
            if crc != info.CRC:
                raise DamagedError(f"the checksum of {name!r} is wrong")
        self._unread.clear()


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except DamagedError:
        raise
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DamagedError(f"it is no zip archive, or damaged ({reason})") from None


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a list of members too long to be read at once."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - (1 << 16) - _END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise DamagedError("it is no zip archive, or its end is missing")
    (directory_bytes,) = struct.unpack_from("<I", tail, at + 12)
    before = at - _LOCATOR_BYTES
    if before >= 0 and tail[before : before + 4] == _LOCATOR:
        (place,) = struct.unpack_from("<Q", tail, before + 8)
        # Where zipfile looks for it, whatever the locator says.
        place = size - len(tail) + before - 56
        if place >= 0:
            file.seek(place)
            record = file.read(56)
            if record[:4] == b"PK\6\6":
                (directory_bytes,) = struct.unpack_from("<Q", record, 40)
    if directory_bytes > _MOST_DIRECTORY_BYTES:
        raise DamagedError(f"its list of members takes {format_bytes(directory_bytes)}")
    file.seek(0)


def read_npz(source: Source, *, most_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an `.npz` file by name: numbers only, each of the size it declares.

    Args:
        source: the file.
        most_bytes: of all arrays together.

    Raises:
        MemplanError: of the source's class; the file cannot be read or is damaged.
    """
    with source.open() as file:
        return arrays_in(file, source, most_bytes=most_bytes)


def arrays_in(file: IO[bytes], source: Source, *, most_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an open `.npz` file; see `read_npz`."""
    try:
        archive = CheckedArchive(file, most_bytes=most_bytes, compressed=True)
        return {
            name.removesuffix(".npy"): _array(archive.read(name), name) for name in archive.names
        }
    except DamagedError as error:
        raise source.bad(error) from None


def _array(content: bytes, name: str) -> npt.NDArray[Any]:
    """Return the array of a `.npy` member.

    Source: numpy.lib.format, versions 1.0 and 2.0.
    """
    import io

    import numpy as np

    stream = io.BytesIO(content)
    try:
        read_header = _header_readers()[np.lib.format.read_magic(stream)]
        shape, is_fortran, dtype = read_header(stream)
    except Exception as error:
        # A damaged header raises nearly anything.
        if is_out_of_memory(error):
            raise
        raise DamagedError(f"{name!r} is no array ({type(error).__name__})") from None
    return _shaped(content[stream.tell() :], shape, is_fortran, dtype, name)


def _header_readers() -> dict[tuple[int, int], Any]:
    """Return numpy's readers by version of the format; the third is for names of fields."""
    import numpy as np

    return {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }


def _shaped(
    data: bytes, shape: tuple[int, ...], is_fortran: bool, dtype: np.dtype[Any], name: str
) -> npt.NDArray[Any]:
    import math

    import numpy as np

    if dtype.kind not in "biuf" or dtype.fields is not None:
        raise DamagedError(f"{name!r} holds other things than numbers")
    if any(length < 0 for length in shape) or len(shape) > 8:
        raise DamagedError(f"{name!r} has the shape {shape}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DamagedError(f"{name!r} has another size than it declares")
    flat = np.frombuffer(bytearray(data), dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C")
