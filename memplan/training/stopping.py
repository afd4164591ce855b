"""Stopping when asked: the step under way is finished and saved first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from memplan.errors import MemplanError
from memplan.processes import STOP_SIGNALS

_AGAIN_SECONDS = 0.01


class StoppedError(MemplanError):
    """The run was asked to stop and did, in good order; the message says how to go on.

    Args:
        message: what to say.
        asked: the signal's name, such as `SIGTERM`; empty where another process was asked.

    The exit code is what a shell gives a program that the signal ended: 130 after Ctrl-C, 143
    after SIGTERM.
    """

    def __init__(self, message: str, asked: str = "") -> None:
        super().__init__(message)
        self.exit_code = 128 + signal.Signals[asked] if asked else 1


class StopRequest:
    """Notices `STOP_SIGNALS`, such as Ctrl-C and a cluster's notice, while it is entered.

    The first signal only sets `asked`; a second one of Ctrl-C stops at once, by KeyboardInterrupt.
    Outside the main thread, where signals cannot be caught, nothing is noticed.
    """

    def __init__(self) -> None:
        self.asked = ""
        """The signal's name, such as `SIGTERM`; empty while nobody asked."""
        self._before: dict[int, Any] = {}
        self._hook: Any = None

    def __enter__(self) -> Self:
        """Catch the signals from here on."""
        if threading.current_thread() is threading.main_thread():
            self._hook, sys.unraisablehook = sys.unraisablehook, self._take_back
            self._before = {number: signal.signal(number, self._notice) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put back what the signals did before."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            sys.unraisablehook = self._hook

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or signal.Signals(number).name

    def _take_back(self, unraisable: Any) -> None:
        """Interrupt once more, soon, when a second Ctrl-C came within a callback.

        A destructor or a weak reference's callback cannot pass an exception on: Python would print
        it and go on.
        """
        if self.asked and unraisable.exc_type is KeyboardInterrupt:
            again = threading.Timer(_AGAIN_SECONDS, self._interrupt)
            again.daemon = True
            again.start()
        else:
            self._hook(unraisable)

    def _interrupt(self) -> None:
        if self._before:
            os.kill(os.getpid(), signal.SIGINT)
