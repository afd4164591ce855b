"""Work done on a phantom card by child processes.

A phantom card replaces the CUDA runtime of the whole process, so whatever is to meet it runs in a
child. The child imports what is needed once (torch takes about a second) and computes nothing; for
every call it forks a copy of itself, which finds PyTorch as freshly imported: an empty allocator,
no library handle, no plan kept from before. A call that crashes ends its copy alone.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memplan import errors
from memplan.device.card import Card
from memplan.errors import MemplanError
from memplan.phantom.launch import environment

_ENDING_SECONDS = 10  # for an idle child to end by itself


class PhantomChild:
    """A child process on a phantom card that runs functions, one after the other.

    Processes that this one forks may call too; they take turns.

    Args:
        card: what the card is.
        capacity_bytes: bytes it is taken to have; the card's own by default.
        other_bytes: bytes of it that others hold; the card's context by default.
        imports: modules that the child imports before the first call, so that no call pays.
        variables: further environment variables, such as PYTORCH_CUDA_ALLOC_CONF.

    Raises:
        BadInputError: no phantom card is to be had here; see `memplan.phantom.launch`.
        MemplanError: the libraries must be compiled here and cannot be.
    """

    def __init__(
        self,
        card: Card,
        *,
        capacity_bytes: int | None = None,
        other_bytes: int | None = None,
        imports: tuple[str, ...] = ("torch",),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        made = environment(card, capacity_bytes=capacity_bytes, other_bytes=other_bytes)
        # A copy of a process must not find threads of pools that were not copied.
        made |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(variables or {})}
        self.card = card
        self._turns = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        self._numbers = itertools.count()
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "memplan.phantom.child_main", *imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=made,
            text=True,
            process_group=0,
        )

    def __enter__(self) -> Self:
        """Return itself; the child ends with the context."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if it was not ended before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdin.closed:
            return
        with suppress(BrokenPipeError):
            # Said in words: a process that was forked from this one may hold the pipe open.
            self._process.stdin.write("\n")
            self._process.stdin.close()
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:  # a library keeps it
            self._kill()
        self._process.stdout.close()
        self._turns.close()

    def call(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        out: Path | None = None,
        *,
        seconds: float | None = None,
    ) -> Any:
        """Run a function in the child and return what it returns.

        Args:
            function: of a module that the child can import; what it returns is plain JSON values.
            arguments: by name, plain JSON values.
            out: a path that the function gets as `out` and may write a file to.
            seconds: after which the child is taken to hang, and ended; None waits for ever.

        Raises:
            MemplanError: of the class that the function raised, with its message; of the base
                class where it raised anything else, or its process died.
        """
        request = {
            "number": f"{os.getpid()}-{next(self._numbers)}",
            "function": [function.__module__, function.__qualname__],
            "arguments": dict(arguments),
            "out": None if out is None else str(out),
        }
        with self._turn(), self._ended_unless_answered(seconds):
            answer = self._answer(request)
        return _result(answer)

    @property
    def has_ended(self) -> bool:
        """Whether it can be called no more."""
        return self._process.poll() is not None

    def _kill(self) -> None:
        """End the child and the copy of itself that it made for a call."""
        if not self.has_ended:
            with suppress(ProcessLookupError):  # it ends meanwhile
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @contextmanager
    def _ended_unless_answered(self, seconds: float | None) -> Iterator[None]:
        """End the child when no answer is read in time, or when whoever waits is interrupted.

        It would go on with the work, and the next call would wait for that.
        """
        timer = threading.Timer(seconds, self._kill) if seconds else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            yield
        except BaseException:
            self._kill()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other process asks; a lock that ends with the process that holds it."""
        fcntl.lockf(self._turns, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._turns, fcntl.LOCK_UN)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        while line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            # Another's answer is there when it was killed while it waited.
            if answer["number"] == request["number"]:
                return answer
        self._kill()
        raise MemplanError(
            f"The process that holds the phantom {self.card.title} ended before it answered. Run "
            "the command again; if it ends so every time, report it with the lines above."
        )


def _result(answer: dict[str, Any]) -> Any:
    if "died" in answer:
        status = answer["died"]
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        raise MemplanError(
            f"PyTorch ended its process on the phantom card {how}. "
            "The lines above say where; another --batch or --img may get past it."
        )
    if "error" in answer:
        kind = getattr(errors, answer["error"], MemplanError)
        error = kind.__new__(kind)
        Exception.__init__(error, answer["message"])
        raise error
    return answer["result"]
