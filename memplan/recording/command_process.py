"""The process of a watched command: what it is given, and that it never outlives memplan.

It leads a process group of its own, so that all it started ends with it. A guard, a shell that
waits at the end of a pipe, ends the group where memplan itself is killed and can end nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

_LAST_SECONDS = 20.0
# A word comes when all is over; the end of the file comes when memplan died.
_GUARD = (
    'if read -r word; then exit; fi; kill -TERM "-$1"; sleep 5; kill -KILL "-$1"; rm -rf -- "$2"'
)


def run_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    folder: str,
    timeout_seconds: float,
    prints: bool,
    asks: bool,
) -> int | None:
    """Run a command to its end, and all it started.

    Args:
        command: program and arguments.
        variables: its environment.
        folder: temporary, removed where this process is killed.
        timeout_seconds: it is ended after so long.
        prints: whether what it prints goes to standard error, or nowhere.
        asks: whether it reads this process's standard input, or none.

    Returns:
        Its exit code; None where it had not ended in time.
    """
    output = standard_stream(2) if prints else subprocess.DEVNULL
    with _ended_by_signals():
        child = subprocess.Popen(  # noqa: S603 - the user's own command is what is asked to run
            command,
            env=dict(variables),
            stdin=standard_stream(0) if asks else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        with _guarded(child, folder):
            try:
                return child.wait(timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _end_group(child)


def standard_stream(number: int) -> int:
    """Return a standard stream's descriptor, or `subprocess.DEVNULL` where it is closed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        (sys.stdout if number == 1 else sys.stderr).flush()
    try:
        os.fstat(number)
    except OSError:
        return subprocess.DEVNULL
    return number


@contextlib.contextmanager
def _guarded(child: subprocess.Popen[bytes], folder: str) -> Iterator[None]:
    """Let a guard end the child's group if this process dies inside."""
    with subprocess.Popen(  # noqa: S603 - our own words and a number
        ["/bin/sh", "-c", _GUARD, "guard", str(child.pid), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as guard:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                guard.communicate(b"over\n")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let what ends this process end what it started, too."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End the command and all it started; watched processes get the time to say what they saw."""
    for number, seconds in ((signal.SIGTERM, _LAST_SECONDS), (signal.SIGKILL, 0.0)):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=seconds or None)
        except (ProcessLookupError, PermissionError):
            break
        except subprocess.TimeoutExpired:
            continue
    child.wait()
