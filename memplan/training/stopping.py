"""Stopping when asked: the step under way is finished and saved first."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from memplan.errors import MemplanError

# SIGHUP is a closed terminal, SIGUSR1 what SLURM sends ahead of a job's end (--signal).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


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
    """Notices the signals of `SIGNALS`, such as Ctrl-C and a cluster's notice, while it is entered.

    The first signal only sets `asked`; a second one of Ctrl-C stops at once, by KeyboardInterrupt.
    Outside the main thread, where signals cannot be caught, nothing is noticed.
    """

    def __init__(self) -> None:
        self.asked = ""
        """The signal's name, such as `SIGTERM`; empty while nobody asked."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Catch the signals from here on."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put back what the signals did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or signal.Signals(number).name
