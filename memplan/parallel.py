"""Work spread over a few processes; see `memplan.processes` for what they are copies of.

What is sent to them is pickled, by value where it is defined in a script or a notebook
(cloudpickle), since a process cannot import those without running them again.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import cloudpickle

from memplan.errors import ProcessError
from memplan.processes import (
    ONE_PROCESS,
    SECONDS_VARIABLE,
    CleanContext,
    CleanProcess,
    answer_seconds,
    become_worker,
    is_worker,
    num_processes,
    start_server,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

_OBJECTS_LEFT = 2_000_000  # in a worker, before its cycle collector looks for them
_LOOK_SECONDS = 1  # between looks whether all processes are there
_ENDING_SECONDS = 10  # for idle processes to end; a library's own clean-up may wait for ever

_lock = threading.RLock()


class _Worker(CleanProcess):
    started: ClassVar[list[_Worker]] = []

    def start(self) -> None:
        super().start()
        self.started.append(self)


class _WorkerContext(CleanContext):
    Process = _Worker


# Their side

_functions: dict[str, Callable[[Any], Any]] = {}


def _begin(environment: dict[str, str]) -> None:
    """Make this process a worker, alone on its core."""
    become_worker()
    os.environ.clear()
    os.environ.update(environment)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    # What was imported lives as long as the process; the cycle collector need not visit it.
    gc.freeze()
    # A recording leaves some 300,000 objects (30 MB); looking through them after each takes a tenth
    # of its time.
    gc.set_threshold(_OBJECTS_LEFT)


def _call(path: str, item: Any) -> Any:
    """Return what the function kept in a file, read once, makes of an item."""
    if path not in _functions:
        _functions.clear()
        _functions[path] = pickle.loads(Path(path).read_bytes())  # noqa: S301 - written by `_kept`
    try:
        return _functions[path](item)
    except Exception as error:
        if _can_travel(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def _can_travel(error: Exception) -> bool:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever its constructor does
        return False
    return True


# This side


class _Pool:
    """The workers of one stretch of work."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, path: str, items: Sequence[Any]) -> list[Future[Any]]:
        """Return the answers to come, starting as many workers as there is work for."""
        if self._executor is None:
            start_server()
            self._executor = ProcessPoolExecutor(
                num_processes(), _WorkerContext(), _begin, (dict(os.environ),)
            )
        return [self._executor.submit(_call, path, item) for item in items]

    def close(self) -> None:
        """Let the workers go, which are idle; one that does not end by itself is killed."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)
            end = time.monotonic() + _ENDING_SECONDS
            for worker in _Worker.started:
                worker.join(max(0.0, end - time.monotonic()))
                worker.kill()
                worker.join()
        _Worker.started.clear()

    def kill(self) -> None:
        """End the workers whatever they do."""
        for worker in _Worker.started:
            worker.kill()
        self.close()

    def one_ended(self) -> bool:
        """Return whether a worker has ended unasked."""
        return any(worker.exitcode is not None for worker in _Worker.started)

    def how_one_ended(self) -> str:
        """Return how the first to end unasked did, such as `it was killed by SIGKILL`."""
        codes = [worker.exitcode for worker in _Worker.started]
        # When one ends, the executor sends the others SIGTERM.
        codes.sort(key=lambda code: code in {None, 0, -signal.SIGTERM})
        code = codes[0] if codes else None
        if not code:
            return "it ended without an answer"
        if code > 0:
            return f"it ended with exit code {code}"
        why = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"it was ended by {signal.Signals(-code).name}{why}"


_pool: _Pool | None = None


@contextlib.contextmanager
def kept_processes() -> Iterator[None]:
    """Keep processes between calls of `map_processes`, and let them go at the end.

    Each brings what it has imported and worked out to the next call. Within another such stretch
    it changes nothing.
    """
    global _pool  # noqa: PLW0603 - one for the whole process, as cores are
    with _lock:
        if _pool is not None or is_worker():
            own = None
        else:
            own = _pool = _Pool()
    if own is None:
        yield
        return
    try:
        yield
    except BaseException:
        own.kill()
        raise
    finally:
        _pool = None
        own.close()


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, doing: str
) -> list[Result]:
    """Return the function's result for each item, in order, using the machine's cores.

    On one core, with `MEMPLAN_PROCESSES=1`, for one item, within such a process, or where the
    function holds something that cannot be sent to another process, it is a plain loop.

    Args:
        function: sent to each process once, with all it holds; its side effects there are lost.
        items: what it is called with.
        doing: what the processes do, for an error: "recording steps".

    Raises:
        Exception: whatever the function raises, from the first item in order that failed.
        ProcessError: a process ended without an answer, or none answered for 600 s
            (`MEMPLAN_PROCESS_SECONDS`).
        UsageError: one of the variables is no number of 1 or more.
    """
    if len(items) < 2 or is_worker() or num_processes() < 2:
        return [function(item) for item in items]
    try:
        pickled = cloudpickle.dumps(function)
        cloudpickle.dumps(items)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError):
        return [function(item) for item in items]
    with kept_processes(), _kept(pickled) as path:
        pool = _pool
        assert pool is not None
        futures: list[Future[Any]] = []
        try:
            futures += pool.submit(path, items)
            return _answers(futures, pool, doing)
        except BrokenProcessPool:
            how = pool.how_one_ended()
            pool.kill()
            raise ProcessError(f"A process was {doing} when {how}. {ONE_PROCESS}.") from None
        finally:
            if not all(future.done() for future in futures):
                # What still runs would keep the next call waiting.
                pool.kill()


@contextlib.contextmanager
def _kept(pickled: bytes) -> Iterator[str]:
    """Keep a pickled function in a file for a while, for each process to read once."""
    with tempfile.NamedTemporaryFile(prefix="memplan-", suffix=".pickle") as file:
        file.write(pickled)
        file.flush()
        yield file.name


def _answers(futures: Sequence[Future[Any]], pool: _Pool, doing: str) -> list[Any]:
    """Return the answers in order, as soon as they are there or one has failed.

    Raises:
        BrokenProcessPool: a process has ended.
        ProcessError: no answer came for too long.
    """
    seconds = answer_seconds()
    answers = []
    for future in futures:
        waited = 0
        while not future.done():
            waiting = [one for one in futures if not one.done()]
            done = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED).done
            waited = 0 if done else waited + _LOOK_SECONDS
            # The executor does not watch a process before it hears of the next.
            if not done and pool.one_ended():
                raise BrokenProcessPool
            if waited >= seconds:
                raise ProcessError(
                    f"No process {doing} has answered for {seconds} s, so they were ended. "
                    f"{ONE_PROCESS}, or {SECONDS_VARIABLE} to wait longer."
                )
        answers.append(future.result())
    return answers
