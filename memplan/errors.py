"""Every error memplan raises for a user to act on.

MemplanError                     exit code 1; the message says what, why and the way out
├── BadInputError                a file, name or value given by the user cannot be used
│   ├── UnknownNameError         no such model, card or workload; suggests the nearest
│   └── UsageError               exit code 2; an option's value is out of its range
├── BadTapeError                 a tape, snapshot, plan or calibration file cannot be read
├── ProcessError                 a process that worked for this one ended, or never answered
├── InfeasibleError              exit code 3; no plan fits, with the smallest change that would
└── DeviceOutOfMemoryError       the simulated or real device has no room for a request
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Any


class MemplanError(Exception):
    """Base of every error with a message meant for the user."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes as text and attributes, whatever the constructor takes."""
        return _revived, (type(self), str(self), self.__dict__)


def _revived(kind: type[MemplanError], text: str, attributes: dict[str, Any]) -> MemplanError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.__dict__.update(attributes)
    return error


class BadInputError(MemplanError):
    """A file, name or value given by the user cannot be used."""


class UsageError(BadInputError):
    """An option's value is outside its range; exit code 2 as for any wrong usage."""

    exit_code = 2


class UnknownNameError(BadInputError):
    """No such model, card or workload.

    Args:
        kind: what was looked up, such as "card".
        name: the name as the user typed it.
        known: the names that exist; the nearest one is suggested.
        hint: the way to see all of them, as a sentence.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        spelt = {one.lower(): one for one in sorted(known)}
        close = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.4)
        nearest = [spelt[one] for one in close]
        parts = [f"Unknown {kind} {name!r}."]
        if nearest:
            parts.append(f"Did you mean {nearest[0]!r}?")
        if hint:
            parts.append(hint)
        super().__init__(" ".join(parts))


class BadTapeError(MemplanError):
    """A recorded file cannot be read: wrong schema, truncated, or refused as unsafe."""


class ProcessError(MemplanError):
    """A process that worked for this one ended without an answer, or never gave one."""


class InfeasibleError(MemplanError):
    """No setting fits the budget; the message gives the smallest change that would."""

    exit_code = 3


class DeviceOutOfMemoryError(MemplanError):
    """A request does not fit on the device, simulated or real.

    Args:
        message: the sentence PyTorch prints, with this run's figures.
        requested_bytes: what was asked for, bytes.
    """

    def __init__(self, message: str, requested_bytes: int) -> None:
        super().__init__(message)
        self.requested_bytes = requested_bytes


def first_sentence(error: MemplanError) -> str:
    """Return what an error says first, without the full stop, to be told within a sentence."""
    return str(error).partition(". ")[0].rstrip(".")


# Libraries under PyTorch, the driver and the system report exhaustion in words of their own; cuBLAS
# and cuDNN say, of a handle or an engine that found no memory, that they are not initialised, not
# supported, or have no engine. Source: the messages of PyTorch 2.11 (c10/cuda/CUDAException.cpp,
# aten/src/ATen/cuda/Exceptions.h, aten/src/ATen/native/cudnn), NCCL 2.28, OpenCV 4 and glibc.
_MESSAGES = (
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "insufficient memory",
    "unable to allocate",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error",
    "cudnn_status_not_initialized",
    "cudnn_status_not_supported",
    "cudnn_status_execution_failed",
    "unable to find an engine",
    "no engine found",
    "no valid execution plans",
    "unable to find a valid cudnn algorithm",
    "cusolver_status_alloc_failed",
    "cusolver_status_not_initialized",
    "cusparse_status_alloc_failed",
    "cusparse_status_not_initialized",
    "cusparse_status_insufficient_resources",
    "cufft_alloc_failed",
    "cuda malloc failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says, in whatever words, that there was no room."""
    if isinstance(error, DeviceOutOfMemoryError | MemoryError):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # OpenCV's error is an Exception of its own.
    if not isinstance(error, RuntimeError) and type(error).__name__ != "error":
        return False
    text = str(error).lower()
    return any(message in text for message in _MESSAGES)
