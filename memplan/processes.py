"""Processes that are copies of a server which never computes, and how many there may be.

A process that has run tensor code has threads (OpenMP's, BLAS's) whose locks a forked copy inherits
without the threads that would open them, so it may wait for ever. Here processes are forked from a
server that was started afresh, and that imports and never computes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import types
from collections.abc import Iterator
from multiprocessing import forkserver, popen_forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess

from memplan.errors import ProcessError, UsageError

NUM_VARIABLE = "MEMPLAN_PROCESSES"
"""Environment variable: how many processes work at once; 1 uses none beside this one."""
SECONDS_VARIABLE = "MEMPLAN_PROCESS_SECONDS"
"""Environment variable: after how long without any answer the processes are given up."""
DEFAULT_SECONDS = 600
"""More than ten times what the longest single piece of work takes on a slow machine."""
_MOST_PROCESSES = 8
# Imported by the server, so that its children have it.
_PRELOADED = ["memplan.advise.preload"]
# With these, the server has one thread: BLAS starts its own when it is imported.
_SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1"}
# Python's helper would say, after a command was killed, that it cleans up after it.
_NO_LEFT_OVERS = "ignore:resource_tracker"
# SIGHUP is a closed terminal, SIGUSR1 what SLURM sends ahead of a job's end (--signal).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""Signals that ask a command to end."""
ONE_PROCESS = f"Set {NUM_VARIABLE}=1 to use one process"
"""The way out of what goes wrong with several, without its full stop."""

_lock = threading.RLock()
_is_worker = False


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def num_processes() -> int:
    """Return how many processes may work at once, as `MEMPLAN_PROCESSES` says, else by cores.

    Raises:
        UsageError: the variable is no number of 1 or more.
    """
    return _number(NUM_VARIABLE, min(num_cores(), _MOST_PROCESSES), "processes")


def answer_seconds() -> int:
    """Return after how long without an answer processes are given up, seconds.

    Raises:
        UsageError: `MEMPLAN_PROCESS_SECONDS` is no number of 1 or more.
    """
    return _number(SECONDS_VARIABLE, DEFAULT_SECONDS, "seconds")


def _number(variable: str, default: int, what: str) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{variable}={text} is no number of {what}. Give 1 or more, or unset it.")
    return int(text)


@contextlib.contextmanager
def _as_of_server() -> Iterator[None]:
    """Start the server, and with it its children, deaf to `STOP_SIGNALS` and with one thread each.

    A terminal or a cluster sends them to every process of the command; this one answers, and ends
    the others. Without the server, its children would be taken for dead.
    """
    before = dict(os.environ)
    warnings = filter(None, (before.get("PYTHONWARNINGS"), _NO_LEFT_OVERS))
    os.environ.update(_SINGLE_THREADED, PYTHONWARNINGS=",".join(warnings))
    resource_tracker.ensure_running()  # where the server starts it, signals are unblocked
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        for name in (*_SINGLE_THREADED, "PYTHONWARNINGS"):
            del os.environ[name]
            os.environ.update({name: before[name]} if name in before else {})
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module, which a new process would run again.

    A script that calls memplan at its top would otherwise call it in every process.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Popen(popen_forkserver.Popen):
    """Python's own, which several threads may ask how the process ended.

    The server tells that once, through a pipe: of two threads that read it at the same time one
    would find it empty and take the exit code for 255 (CPython 3.11 to 3.13).
    """

    def __init__(self, process: BaseProcess) -> None:
        self._reading = threading.Lock()
        super().__init__(process)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit code; None while the process runs, and `flag` does not say to wait."""
        if self.returncode is None and not wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            return None
        with self._reading:
            return super().poll(flag)


def _leave_after(sentinel: int) -> None:
    wait([sentinel])
    if (folder := multiprocessing.current_process()._config.get(_SOCKETS)) is not None:  # type: ignore[attr-defined]  # noqa: SLF001
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


# CPython's name for the folder of a process's sockets, which its children share.
_SOCKETS = "tempdir"


class CleanProcess(ForkServerProcess):
    """A process that is a copy of the server, and not of this process."""

    def run(self) -> None:
        """Do the work, and end with the process that asked for it, however that ends.

        Its parent in the system's eyes is the server, which lives as long as its children do, so
        that a DataLoader's own watch over its parent sees nothing.
        """
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # which `terminate` sends
        asked_by = multiprocessing.parent_process()
        assert asked_by is not None
        # A folder of its own: that of the process that asked goes with it, and where that is first
        # to end, this one's cleaning up after its sockets would fail aloud.
        self._config.pop(_SOCKETS, None)  # type: ignore[attr-defined]
        threading.Thread(target=_leave_after, args=(asked_by.sentinel,), daemon=True).start()
        super().run()

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> _Popen:  # noqa: N802 - CPython's name
        return _Popen(process_obj)

    def start(self) -> None:
        """Start it, and the server if there is none.

        Raises:
            ProcessError: the server has ended, or this process may start none.
        """
        if multiprocessing.current_process().daemon:
            raise ProcessError(
                "A worker of a multiprocessing pool may start no process of its own. Give "
                "--workers 0, or call memplan from another process."
            )
        try:
            with _lock:
                _ensure_server()
                with _without_main():
                    super().start()
        except (EOFError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ProcessError(f"No process could be started: {reason}. {ONE_PROCESS}.") from None


class CleanContext(ForkServerContext):
    """Makes such processes; what torch's DataLoader takes as `multiprocessing_context`."""

    Process = CleanProcess


def is_worker() -> bool:
    """Return whether this process works for another one."""
    return _is_worker or multiprocessing.current_process().daemon


def become_worker() -> None:
    """Say that this process works for another one, and starts none of its own."""
    global _is_worker  # noqa: PLW0603 - what this process is
    _is_worker = True


def start_server() -> None:
    """Start the server that processes are copies of, unless it runs or one process is enough.

    It imports what its children need, which takes some seconds; started early, it does so while
    this process does the same.

    Raises:
        UsageError: `MEMPLAN_PROCESSES` is no number of 1 or more.
    """
    if num_processes() > 1 and not is_worker():
        with _lock:
            _ensure_server()


def _ensure_server() -> None:
    with _as_of_server():
        forkserver.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
