"""The phantom runtime seen from inside the process that it carries.

Everything here but `is_loaded` needs the runtime in this process: it is there where
`memplan.phantom.launch.environment` started the process.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from memplan.errors import BadInputError

MAX_READ_BYTES = 1 << 20
_COUNTS = (
    "kernel_launches",
    "allocations",
    "frees",
    "device_to_host_copies",
    "host_to_device_copies",
    "device_to_device_copies",
    "synchronizations",
    "cudnn_plans",
    "collectives",
)
_READER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
# The C side keeps the address only, so the callable is kept alive here.
_kept_reader: list[object] = []


def is_loaded() -> bool:
    """Return whether this process runs on the phantom runtime."""
    return hasattr(ctypes.CDLL(None), "phantom_used_bytes")


def used_bytes(device: int = 0) -> int:
    """Return the bytes this process holds of a device now, in the driver's pages of 2 MiB."""
    return _long("phantom_used_bytes")(device)


def peak_bytes(device: int = 0) -> int:
    """Return the most bytes that this process held of a device at once."""
    return _long("phantom_peak_bytes")(device)


def counts() -> dict[str, int]:
    """Return how often the runtime was asked: launches, allocations, copies by direction."""
    count = _long("phantom_counted")
    return {name: count(name.encode()) for name in _COUNTS}


def queue_read(data: bytes) -> None:
    """Let the next copy from device to host of exactly `len(data)` bytes deliver `data`.

    Values of one size are delivered in the order they were queued.

    Args:
        data: 1 byte to 1 MiB.

    Raises:
        BadInputError: the length is outside that range.
    """
    if not 1 <= len(data) <= MAX_READ_BYTES:
        raise BadInputError(
            f"{len(data)} bytes cannot be queued for a read: give 1 to {MAX_READ_BYTES}."
        )
    if _library().phantom_queue_read(data, ctypes.c_size_t(len(data))):
        raise MemoryError


def clear_reads() -> None:
    """Forget every queued value."""
    _library().phantom_clear_reads()


def num_queued_reads() -> int:
    """Return how many queued values still wait for their read."""
    return _long("phantom_num_queued_reads")()


def num_unqueued_reads() -> int:
    """Return how many copies from device to host no queued value has answered."""
    return _long("phantom_num_unqueued_reads")()


def set_reader(callback: Callable[[int, int], bytes | None] | None) -> None:
    """Let a function decide what copies from device to host deliver, where no value is queued.

    Args:
        callback: called with the device address and the number of bytes, from any thread; the
            bytes it returns are delivered (the rest zero), zeros for `None`. `None` removes it.
    """
    if callback is None:
        _library().phantom_set_reader(None)
        _kept_reader.clear()
        return

    def read(destination: int, address: int, num_bytes: int) -> int:
        data = callback(address, num_bytes)
        if data is None:
            return 0
        data = data[:num_bytes].ljust(num_bytes, b"\0")
        ctypes.memmove(destination, data, num_bytes)
        return 1

    reader = _READER(read)
    _library().phantom_set_reader(reader)
    _kept_reader[:] = [reader]


def missing_calls() -> list[str]:
    """Return the names of library functions that were called and that the phantom does not have.

    Each returned its library's error for "not supported".
    """
    return _names("phantom_missing_calls")


def estimated_calls() -> list[str]:
    """Return the names of library functions whose answer, a size mostly, was an estimate."""
    return _names("phantom_estimated_calls")


def _names(function: str) -> list[str]:
    fill = getattr(_library(), function)
    fill.restype = ctypes.c_size_t
    room = fill(None, ctypes.c_size_t(0)) + 1
    text = ctypes.create_string_buffer(room)
    fill(text, ctypes.c_size_t(room))
    return text.value.decode().split()


@functools.cache
def _library() -> ctypes.CDLL:
    if not is_loaded():
        raise BadInputError(
            "This process does not run on the phantom runtime: start it with the environment "
            "of memplan.phantom.launch.environment."
        )
    return ctypes.CDLL(None)


def _long(name: str) -> Callable[..., int]:
    function = getattr(_library(), name)
    function.restype = ctypes.c_long
    return function  # type: ignore[no-any-return]
