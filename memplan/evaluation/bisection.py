"""Bisection: the last number of a range for which something holds."""

from __future__ import annotations

from collections.abc import Callable


def last_holding(
    holds: Callable[[int], bool],
    low: int,
    high: int,
    *,
    guess: Callable[[int, int], int | None] | None = None,
    step: int = 1,
) -> int:
    """Return the last number that holds, between one taken to hold and one taken not to.

    Guesses and halves in turn, so that the bounds close in however bad the guesses are.

    Args:
        holds: whether a number holds; true up to some number, but for what chance does.
        low: taken to hold; not asked about.
        high: taken not to hold; not asked about.
        guess: returns, for the bounds, where the last one is expected; None has no idea.
        step: numbers asked about are multiples of it, as `low` and `high` are where it is not 1.
    """
    guesses = True
    while high - low > step:
        place = guess(low, high) if guess is not None and guesses else None
        middle = (low + high) // 2 // step * step if place is None else place
        middle = min(max(low + step, middle), high - step)
        low, high = (middle, high) if holds(middle) else (low, middle)
        guesses = not guesses
    return low


def most_within(
    bytes_at: Callable[[int], int], limit_bytes: int, low: int, high: int
) -> int | None:
    """Return the largest number whose bytes stay within a limit.

    Bytes are nearly a line, but for what the allocator rounds, so places are interpolated.

    Args:
        bytes_at: device bytes at a number, rising but for small steps down.
        limit_bytes: not to be exceeded.
        low: a number that is taken to stay within.
        high: the largest to try.

    Returns:
        The number; None where `high` stays within, `low` where no other tried one does.
    """
    if bytes_at(high) <= limit_bytes:
        return None

    def on_the_line(low: int, high: int) -> int:
        at_low, at_high = bytes_at(low), bytes_at(high)
        share = (limit_bytes - at_low) / max(1, at_high - at_low)
        return low + int(share * (high - low))

    return last_holding(lambda one: bytes_at(one) <= limit_bytes, low, high, guess=on_the_line)
