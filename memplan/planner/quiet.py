"""Keeps what a library's C code writes away from standard output, which belongs to answers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Drop what C code writes to standard output meanwhile; Python's own buffer is untouched.

    HiGHS 1.12 writes a line of debugging whatever its options say, in the midst of `--json`.
    Source: https://github.com/jump-dev/HiGHS.jl/issues/312
    """
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # closed by whoever started this process
        yield
        return
    flush = ctypes.CDLL(None).fflush
    flush(None)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, _STDOUT)
        os.close(nowhere)
        os.close(kept)
