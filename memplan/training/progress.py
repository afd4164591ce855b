"""Progress for people: a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from memplan.units import three_digits

_BAR_WIDTH = 10
_REFRESH_SECONDS = 0.5
# From the second of two lines to the first, and everything from there on cleared.
_BACK = "\r\x1b[1A\x1b[J"
_LINE_SECONDS = 60.0  # between lines of an epoch where there is no bar


class Progress:
    """Writes a run's progress to one stream, standard error by default.

    Args:
        epochs: the number of the run's last epoch.
        first_epoch: epochs already done, > 0 after a resume; a fraction within an epoch.
        stream: where to write; a live bar needs a terminal.
    """

    def __init__(self, epochs: int, first_epoch: float = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._epochs = epochs
        self._is_live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._has_colour = self._is_live and not os.environ.get("NO_COLOR")
        self._first_epoch = first_epoch
        self._started = time.monotonic()
        self._drawn = 0.0
        self._is_shown = False
        self._images = 1
        self._images_before = 0
        self._epoch_started = self._started

    def start_epoch(self, num_images: int, images_before: int = 0) -> None:
        """Begin an epoch of so many images, some of which an earlier session saw."""
        self._images = max(num_images, 1)
        self._images_before = images_before
        self._epoch_started = time.monotonic()
        if not self._is_live:
            self._drawn = self._epoch_started

    def update(self, epoch: int, images: int, facts: Callable[[], tuple[str, str]]) -> None:
        """Redraw the bar and what is below it, at most twice a second.

        Without a terminal, write a line a minute.

        Args:
            epoch: 0-based.
            images: seen in this epoch.
            facts: gives losses and memory as text; called only when something is written, because
                reading a loss waits for the device.
        """
        now = time.monotonic()
        if now - self._drawn < (_REFRESH_SECONDS if self._is_live else _LINE_SECONDS):
            return
        self._drawn = now
        losses, memory = facts()
        fraction = images / self._images
        seconds = now - self._epoch_started
        speed = (images - self._images_before) / max(seconds, 1e-9)
        left = f"{_short((self._images - images) / speed) if speed else '?'} left"
        if epoch + 1 < self._epochs:
            left += f", run {self._remaining(epoch + fraction)}"
        first = f"{fraction:4.0%}, {left}, {three_digits(speed)} img/s"
        second = ", ".join(part for part in (losses, memory) if part)
        name = f"{epoch + 1}/{self._epochs}"
        if not self._is_live:
            self.note(f"epoch {name}: {first.lstrip()}, {second}")
            return
        self._draw(name, fraction, first, second)

    def _draw(self, name: str, fraction: float, first: str, second: str) -> None:
        """Write two lines, in place of the two before: all facts have room on 80 columns."""
        width = shutil.get_terminal_size().columns - 1
        filled = round(fraction * _BAR_WIDTH)
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        right = _cut(first, width - len(f"{name} [{bar}] "))
        bar = f"\x1b[32m{bar}\x1b[0m" if self._has_colour else bar
        back = _BACK if self._is_shown else "\r\x1b[K"
        self._is_shown = True
        self._write(f"{back}{name} [{bar}] {right}\n  {_cut(second, width - 2)}")

    def end_epoch(
        self,
        epoch: int,
        losses: str,
        metrics: Mapping[str, float],
        images_per_second: float,
        memory: str,
    ) -> None:
        """Write an epoch's line, which stays."""
        # Fitness only ranks; it is worth a place where there is nothing else.
        names = [name for name in metrics if name != "fitness"] or list(metrics)
        shown = [f"{name} {metrics[name]:.3f}" for name in names]
        parts = [losses, *shown, f"{three_digits(images_per_second)} images/s", memory]
        if epoch + 1 < self._epochs:
            parts.append(f"{self._remaining(epoch + 1)} left")
        whole = f"epoch {epoch + 1}/{self._epochs}: {', '.join(part for part in parts if part)}"
        self.note(_folded(whole) if self._is_live else whole)

    def note(self, text: str) -> None:
        """Write one line that stays, such as a warning."""
        clear = "\r\x1b[K" if self._is_live else ""
        if self._is_shown:
            clear, self._is_shown = _BACK, False
        self._write(f"{clear}{text}\n")

    def _write(self, text: str) -> None:
        # A terminal that was closed, or a pipe that nobody reads any more, is not worth a run.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def _remaining(self, epochs_done: float) -> str:
        trained = epochs_done - self._first_epoch
        seconds = time.monotonic() - self._started
        if trained <= 0:
            return "?"
        return _short(seconds / trained * (self._epochs - epochs_done))


def _short(seconds: float) -> str:
    """Return a time that is still to go, such as `41 s`, `3:20` or `2:05:00`."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes = f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{minutes:0>5}" if hours else minutes


def _folded(text: str) -> str:
    """Return the text in lines that fit the terminal, broken between two facts."""
    width = shutil.get_terminal_size().columns - 1
    lines = [""]
    for part in text.replace(", ", ",\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) + 1 > width:
            lines.append("  " + part)
        else:
            lines[-1] = f"{lines[-1]} {part}".lstrip() if len(lines) == 1 else f"{lines[-1]} {part}"
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    """Return the text as far as it fits, ending between two facts."""
    if len(text) <= width:
        return text
    return text[: max(width, 0) + 1].rpartition(", ")[0] or text[: max(width, 0)]
