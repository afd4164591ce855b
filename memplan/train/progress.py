"""Progress for people: a live bar on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from memplan.units import format_seconds, three_digits

_BAR_WIDTH = 10
_REFRESH_SECONDS = 0.5


class Progress:
    """Writes a run's progress to one stream, standard error by default.

    Args:
        epochs: the number of the run's last epoch.
        first_epoch: epochs already done, > 0 after a resume.
        stream: where to write; a live bar needs a terminal.
    """

    def __init__(self, epochs: int, first_epoch: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._epochs = epochs
        self._is_live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._has_colour = self._is_live and not os.environ.get("NO_COLOR")
        self._first_epoch = first_epoch
        self._started = time.monotonic()
        self._drawn = 0.0
        self._images_done = 0
        self._images = 1

    def start_epoch(self, num_images: int) -> None:
        """Begin an epoch of so many images."""
        self._images = max(num_images, 1)
        self._epoch_started = time.monotonic()

    def update(self, epoch: int, images: int, facts: Callable[[], tuple[str, str]]) -> None:
        """Redraw the bar, at most twice a second.

        Args:
            epoch: 0-based.
            images: seen in this epoch.
            facts: gives losses and memory as text; called only when the bar is redrawn, because
                reading a loss waits for the device.
        """
        now = time.monotonic()
        if not self._is_live or now - self._drawn < _REFRESH_SECONDS:
            return
        self._drawn = now
        losses, memory = facts()
        fraction = images / self._images
        speed = images / max(now - self._epoch_started, 1e-9)
        filled = round(fraction * _BAR_WIDTH)
        left = f"epoch {epoch + 1}/{self._epochs} "
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        # What a narrow terminal cuts off is last: the losses, which the epoch's line repeats.
        right = (
            f" {fraction:.0%}, {self._remaining(epoch + fraction)} left, "
            f"{three_digits(speed)} images/s, {memory}, {losses}"
        )
        width = shutil.get_terminal_size().columns - 1
        right = right[: max(0, width - len(left) - len(bar) - 2)]
        if self._has_colour:
            bar = f"\x1b[32m{bar}\x1b[0m"
        self._stream.write(f"\r\x1b[K{left}[{bar}]{right}")
        self._stream.flush()

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
        self.note(f"epoch {epoch + 1}/{self._epochs}: {', '.join(parts)}")

    def note(self, text: str) -> None:
        """Write one line that stays, such as a warning."""
        clear = "\r\x1b[K" if self._is_live else ""
        self._stream.write(f"{clear}{text}\n")
        self._stream.flush()

    def _remaining(self, epochs_done: float) -> str:
        trained = epochs_done - self._first_epoch
        seconds = time.monotonic() - self._started
        if trained <= 0:
            return "unknown time"
        return format_seconds(seconds / trained * (self._epochs - epochs_done))
