"""Finds the largest batch that fits by recordings: it was recorded and fits, the next does not.

What is expected of a batch only says where to record next. So the answer holds however memory
grows: by squares, in steps, or from some size on. Two batches are recorded at a time, which two
cores do side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Larger ones are not looked for. Each allocation's bytes stay far below 2^63.
MOST_IMAGES = 1 << 20
# More than it takes to halve the bounds every second round: 2 * log2(MOST_IMAGES).
_MOST_ROUNDS = 64
# Between bounds, places are recorded this part of their distance to either side of the guess.
_CLOSING = 32
# Without a batch that is too large the next one is at most so many times the largest that fits.
_MOST_GROWTH = 64
# Checked on the way to a guess beyond them: a loop over a million images is recorded for hours.
# They are the same whatever is known, so that the batches asked for make no difference.
_ON_THE_WAY = (1 << 12, 1 << 16)


@dataclass(frozen=True)
class Verdict:
    """Whether a recorded batch fits, and what it takes."""

    fits: bool
    used_bytes: int


@dataclass(frozen=True)
class Largest:
    """The largest batch that was recorded and fits."""

    batch: int
    """0 where not even one image fits."""
    unchecked: str = ""
    """Why one image more was not checked; empty where it was recorded and does not fit."""

    @property
    def is_edge(self) -> bool:
        """Whether one image more was recorded and does not fit."""
        return not self.unchecked


Check = Callable[[Sequence[int]], Mapping[int, Verdict]]


def largest_fitting(
    check: Check,
    known: Mapping[int, Verdict],
    limit_bytes: int,
    *,
    guess: Callable[[], int] | None = None,
    failures: Mapping[int, str],
    most: int = MOST_IMAGES,
) -> Largest:
    """Return the largest batch that fits, recorded, with the next one recorded too.

    Args:
        check: records batches and returns a verdict for each that can be recorded.
        known: verdicts on batches recorded already.
        limit_bytes: what may be used; steers the search and decides nothing.
        guess: returns what is expected to be the largest by all that is known when it is called;
            None goes by the bytes known alone.
        failures: why batches could not be recorded; `check` adds to it.
        most: the largest that is looked into.
    """
    verdicts = dict(known)
    width, halved = most + 1, True
    for _ in range(_MOST_ROUNDS):
        low, high = _bounds(verdicts, failures, most)
        if high - low <= 1:
            break
        halved, width = 2 * (high - low) <= width, high - low
        top = _farthest(verdicts, low, high)
        if guess is not None:
            expected = guess()
            pair = at_first(expected, low)
            guess = guess if pair[0] < min(expected, high) else None
        else:
            place = _next_place(verdicts, low, high, limit_bytes, interpolates=halved)
            # Bounds on both sides of a good place close in on it at once.
            aside = (high - low) // _CLOSING if high in verdicts else 0
            pair = [place - aside, place + aside + 1]
        verdicts |= check(_within(pair, low, high, top, is_closed=high <= most))
    low, high = _bounds(verdicts, failures, most)
    if high > most:
        return Largest(low, f"batches above {most:,} were not looked into")
    if high in failures:
        return Largest(low, f"batch {high:,} could not be checked ({failures[high]})")
    if high - low > 1:
        return Largest(low, f"batches between {low:,} and {high:,} were not all looked into")
    return Largest(low)


def at_first(expected: int, low: int = 0) -> list[int]:
    """Return the two batches that are recorded first where one is expected to be the largest.

    Args:
        expected: the batch.
        low: one that is known to fit.
    """
    place = next((one for one in _ON_THE_WAY if low < one < expected), expected)
    return [place, place + 1]


def _bounds(
    verdicts: Mapping[int, Verdict], failures: Mapping[int, str], most: int
) -> tuple[int, int]:
    """Return the largest batch that fits, and the next that does not or cannot be recorded."""
    low = max((batch for batch, one in verdicts.items() if one.fits), default=0)
    over = [*(batch for batch, one in verdicts.items() if not one.fits), *failures]
    return low, min((batch for batch in over if batch > low), default=most + 1)


def _farthest(verdicts: Mapping[int, Verdict], low: int, high: int) -> int:
    """Return the largest batch worth recording next where no guess leads there."""
    return high if high in verdicts else min(high, _MOST_GROWTH * max(low, 1))


def _within(pair: Sequence[int], low: int, high: int, top: int, *, is_closed: bool) -> list[int]:
    """Return those of two places that are within the bounds.

    Where only one is, the middle stands in for the other if the upper bound is one that is known.
    The middle is at most the largest batch worth recording.
    """
    first, last = (min(max(place, low), high) for place in pair)
    inside = {place for place in (first, last) if low < place < high}
    middle = min((low + high) // 2, top)
    if not inside or (is_closed and len(inside) == 1):
        inside |= {max(middle, low + 1)}
    return sorted(inside)


def _next_place(
    verdicts: Mapping[int, Verdict], low: int, high: int, limit_bytes: int, *, interpolates: bool
) -> int:
    """Return where to record next: where the curve through known batches meets the limit.

    Else it is the middle, so that the bounds close in on any curve.
    """
    too_large = high in verdicts
    top = _farthest(verdicts, low, high)
    if not interpolates:
        return math.isqrt(max(low, 1) * top) if top > 8 * max(low, 1) else (low + top) // 2
    points = sorted((batch, one.used_bytes) for batch, one in verdicts.items())
    if not too_large:
        met = _met_beyond(points, low, limit_bytes)
        return min((low + high) // 2 if met >= high else met, top)
    return _met_between(points, low, high, limit_bytes)


def _met_beyond(points: Sequence[tuple[int, int]], low: int, limit_bytes: int) -> int:
    """Return where the line through two batches that fit meets the limit."""
    fitting = [point for point in points if point[0] <= low]
    if len(fitting) < 2:
        return 2 * max(low, 1)
    last, last_bytes = fitting[-1]
    # Neighbours tell more of rounding than of growth.
    apart = [point for point in fitting[:-1] if 4 * point[0] <= 3 * last]
    first, first_bytes = apart[-1] if apart else fitting[0]
    per_image = max((last_bytes - first_bytes) / (last - first), 1e-9)
    return min(MOST_IMAGES, last + int((limit_bytes - last_bytes) / per_image))


def _met_between(points: Sequence[tuple[int, int]], low: int, high: int, limit_bytes: int) -> int:
    """Return where the parabola through both bounds and a third batch meets the limit."""
    of = dict(points)
    if low not in of:
        of[low] = min(limit_bytes - 1, _at_zero(points))
    (x0, y0), (x1, y1) = (low, of[low]), (high, of[high])
    apart = [one for one in points if min(abs(one[0] - low), abs(one[0] - high)) * 8 >= high - low]
    slope, bend, x2 = (y1 - y0) / (x1 - x0), 0.0, x0
    if apart:
        x2, y2 = min(apart, key=lambda one: min(abs(one[0] - low), abs(one[0] - high)))
        bend = ((y2 - y1) / (x2 - x1) - slope) / (x2 - x0)
    inner, outer = float(low), float(high)
    while outer - inner > 0.5:
        at = (inner + outer) / 2
        value = y0 + slope * (at - x0) + bend * (at - x0) * (at - x1)
        inner, outer = (at, outer) if value <= limit_bytes else (inner, at)
    return int(inner)


def _at_zero(points: Sequence[tuple[int, int]]) -> int:
    """Return what the line through the two smallest batches says of none."""
    if len(points) < 2:
        return 0
    (x0, y0), (x1, y1) = points[:2]
    return max(0, y0 - (y1 - y0) * x0 // (x1 - x0))
