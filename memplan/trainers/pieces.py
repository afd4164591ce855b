"""Into how many pieces batches are split, by what has found room before."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.errors import UsageError


@dataclass(frozen=True)
class GuardEvent:
    """A pass that found no room."""

    step: int
    """Passes that had ended before, of this guard."""
    num_pieces: int
    """Into how many pieces the batch was split when it found none."""
    message: str


class Pieces:
    """Remembers into how many pieces a batch is split, and tries the whole one again at times.

    Args:
        retry_after: passes after which the whole batch is tried again, >= 1; doubled each time
            that this finds no room again.

    Raises:
        UsageError: `retry_after` is not a whole number of 1 or more.
    """

    def __init__(self, retry_after: int) -> None:
        if type(retry_after) is not int or retry_after < 1:
            raise UsageError(f"retry_after={retry_after!r} is not a whole number of 1 or more.")
        self.events: list[GuardEvent] = []
        self.held = 1
        self._wait = self._first_wait = retry_after
        self.num_steps = self._since = 0

    def first(self) -> int:
        """Return into how many pieces the next batch is split to begin with."""
        return 1 if self._since >= self._wait else self.held

    def refused(self, num_pieces: int, message: str) -> None:
        """Note that a batch in so many pieces found no room."""
        self.events.append(GuardEvent(self.num_steps, num_pieces, message))

    def done(self, num_pieces: int, *, at_first: int) -> None:
        """Note that a batch got through in so many pieces, after `at_first` to begin with."""
        is_trial = at_first < self.held
        self.num_steps += 1
        if is_trial and num_pieces > 1:
            self._wait *= 2
        elif num_pieces == 1:
            self._wait = self._first_wait
        self._since = self._since + 1 if num_pieces == self.held and not is_trial else 0
        self.held = num_pieces

    def smaller(self) -> None:
        """Split the next batches into twice as many pieces, before memory runs out."""
        self.held *= 2
        self._since = 0
