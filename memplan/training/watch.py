"""What a run's memory is about to do, and why: told from a reading after each step.

No device and no torch: readings go in, findings come out. Four things are told apart:

- *leak*: what stays allocated between steps grows, steadily;
- *fragmentation*: what the allocator holds grows steadily, and what is allocated does not;
- *crowded batch*: one step takes much more than the usual one, and what stays does not grow;
- *another process*: what is used on the device beyond what this process holds grows.

A trend is looked for in the whole history since the last change, kept in at most 32 blocks: where
these are full, neighbours are joined. So a leak of a few KiB a step is found as surely as one of a
GiB, later.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum

_MOST_BLOCKS = 32
_QUARTERS = 4
_SETTLING = 5  # readings after a change: optimizer state, libraries and caches come to be
_FEWEST = 32  # readings before a trend is believed
_HORIZON = 10  # times what was seen of a trend is how far it is believed to go on
_SOON = 100  # steps within which memory that runs out is worth acting on
_USUAL = 64  # readings that say what a usual step takes
_CROWDED = 1.25  # times what a usual step adds to what stays
_FREE_FRACTION = 0.03  # of the card: with less of it free, what others do is urgent
OTHERS_BYTES = 128 << 20  # more of others than this is told: libraries loaded late take less
_STEADY = 0.75  # times the mean rise is the least that the newest must be
_SMALL_BYTES = 1 << 20  # a growth below is an allocator's rounding
_LARGER = 1.05  # times what was told before is worth telling again


class Cause(StrEnum):
    """Why memory is about to run out."""

    LEAK = "leak"
    FRAGMENTATION = "fragmentation"
    CROWDED = "crowded batch"
    OTHERS = "another process"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Memory between two steps, bytes."""

    step: int
    """Of the optimizer, since the run began."""
    allocated_bytes: int
    """What stays: allocated now."""
    allocated_peak_bytes: int
    """Highest allocated since the reading before."""
    reserved_bytes: int
    """Held by the allocator now."""
    device_used_bytes: int
    """Used on the device now, by all processes; as last asked."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was noticed."""

    cause: Cause
    grown_bytes: int
    """By how much, since it began."""
    bytes_a_step: int
    """How fast it grows; 0 where it came at once."""
    steps_left: int | None
    """Until there is no room left at this rate; None where it does not grow on."""
    is_urgent: bool
    """Whether memory may run out within steps."""


@dataclass
class _Block:
    """Readings in a row."""

    count: int
    first_step: int
    last_step: int
    stays: int
    """Least allocated between steps."""
    peak: int
    """Highest allocated."""
    reserved: int
    """Most held."""

    def join(self, other: _Block) -> None:
        """Take in the block that follows."""
        self.count += other.count
        self.last_step = other.last_step
        self.stays = min(self.stays, other.stays)
        self.peak = max(self.peak, other.peak)
        self.reserved = max(self.reserved, other.reserved)


class _History:
    """Readings since the last change, in blocks of equal length."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.length = 1
        self.count = 0

    def add(self, reading: Reading) -> bool:
        """Add a reading; return whether a block came to its end."""
        self.count += 1
        block = _Block(
            1,
            reading.step,
            reading.step,
            reading.allocated_bytes,
            reading.allocated_peak_bytes,
            reading.reserved_bytes,
        )
        if self.blocks and self.blocks[-1].count < self.length:
            self.blocks[-1].join(block)
        else:
            if len(self.blocks) == _MOST_BLOCKS:
                self._halve()
            self.blocks.append(block)
        return self.blocks[-1].count == self.length

    def _halve(self) -> None:
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            first.join(second)
        self.blocks = self.blocks[::2]
        self.length *= 2

    @property
    def span(self) -> int:
        """Steps from the first reading to the last."""
        return self.blocks[-1].last_step - self.blocks[0].first_step

    def quarters(self) -> list[_Block]:
        """Return whole blocks joined to four, the oldest first; without those that do not fit."""
        each = len(self.blocks) // _QUARTERS
        blocks = self.blocks[len(self.blocks) - each * _QUARTERS :]
        joined = []
        for at in range(0, len(blocks), each):
            first, *rest = blocks[at : at + each]
            block = _Block(**vars(first))
            for other in rest:
                block.join(other)
            joined.append(block)
        return joined


def _rise(values: list[int], quarters: list[_Block]) -> float:
    """Return bytes a step by which values of the quarters rise; 0 where they do not, or level off.

    A cache that fills and a batch that is larger than all before rise too, but less and less.
    """
    rises = [after - before for before, after in itertools.pairwise(values)]
    total = values[-1] - values[0]
    if min(rises) <= 0 or total < _SMALL_BYTES // 16 or rises[-1] * len(rises) < total * _STEADY:
        return 0.0
    return total / max(quarters[-1].first_step - quarters[0].first_step, 1)


class Watch:
    """Finds out from readings what memory is about to do.

    Args:
        capacity_bytes: of the device.
        predicted_peak_bytes: allocated, of the plan; None without one.
        last_step: the run's last step of the optimizer; None where nobody knows.
    """

    def __init__(
        self,
        capacity_bytes: int,
        *,
        predicted_peak_bytes: int | None = None,
        last_step: int | None = None,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._predicted = predicted_peak_bytes
        self.last_step = last_step
        """As the run sees it now; None where nobody knows."""
        self._crowd_bytes = 0  # of the largest that was told
        self._trends: dict[Cause, Finding] = {}  # as last told
        self._others: int | None = None  # what others held when things were in order
        self.forget()

    def forget(self) -> None:
        """Begin anew, after a change of what a step takes: its micro-batch, an emptied cache."""
        self._settling = _SETTLING
        self._history = _History()
        self._usual: deque[Reading] = deque(maxlen=_USUAL)
        self._adds = 0.0  # what a usual step takes beyond what stays

    def add(self, reading: Reading) -> Finding | None:
        """Take a reading; return what it shows, where that is new."""
        if self._settling:
            self._settling -= 1
            return None
        finding = self._find_others(reading) or self._find_crowd(reading) or self._find_end(reading)
        self._usual.append(reading)
        is_whole = self._history.add(reading)
        if finding is None and is_whole and self._history.count >= _FEWEST:
            finding = self._find_trend(reading)
        return finding

    def _find_others(self, reading: Reading) -> Finding | None:
        others = reading.device_used_bytes - reading.reserved_bytes
        if self._others is None or others < self._others:
            self._others = others
        grown = others - self._others
        if grown < OTHERS_BYTES:
            return None
        self._others = others
        free = self.capacity_bytes - reading.device_used_bytes
        is_urgent = free < self.capacity_bytes * _FREE_FRACTION
        return _found(Cause.OTHERS, grown, is_urgent=is_urgent)

    def _find_crowd(self, reading: Reading) -> Finding | None:
        """Tell a step that took much more than others, where another such may not fit."""
        if self._history.count < 16:
            return None
        if not self._history.count % 16:  # sorting takes longer than all else here
            self._adds = statistics.median(map(_added, self._usual))
        more = int(_added(reading) - self._adds)
        if _added(reading) < _CROWDED * max(self._adds, 1) or more < _SMALL_BYTES:
            return None
        room = self._room(reading)
        is_above = self._predicted is not None and reading.allocated_peak_bytes > self._predicted
        if not (is_above or more > room) or more < self._crowd_bytes * _LARGER:
            return None
        self._crowd_bytes = more
        return _found(Cause.CROWDED, more, is_urgent=more > room)

    def _find_trend(self, reading: Reading) -> Finding | None:
        """Tell a growth that the run does not outlast."""
        quarters = self._history.quarters()
        stays = _rise([one.stays for one in quarters], quarters)
        if stays:
            grown = quarters[-1].stays - quarters[0].stays
            return self._trend(Cause.LEAK, grown, stays, reading)
        held = _rise([one.reserved for one in quarters], quarters)
        grown = quarters[-1].reserved - quarters[0].reserved
        needed = quarters[-1].peak - quarters[0].peak
        if not held or grown < _SMALL_BYTES or needed * 2 > grown:
            return None
        return self._trend(Cause.FRAGMENTATION, grown, held, reading)

    def _trend(self, cause: Cause, grown: int, rate: float, reading: Reading) -> Finding | None:
        left = int(self._left_bytes(cause, reading) / rate)
        outlasts = self.last_step is not None and reading.step + left > self.last_step
        if cause in self._trends or outlasts or left > _HORIZON * self._history.span:
            return None
        found = Finding(
            cause=cause,
            grown_bytes=grown,
            bytes_a_step=max(round(rate), 1),
            steps_left=left,
            is_urgent=left <= _SOON,
        )
        self._trends[cause] = found
        return found

    def _find_end(self, reading: Reading) -> Finding | None:
        """Tell once more of a growth that was told, where memory is about to run out."""
        for cause, told in self._trends.items():
            left = self._left_bytes(cause, reading) // told.bytes_a_step
            if left <= _SOON and not told.is_urgent:
                found = replace(told, steps_left=left, is_urgent=True)
                self._trends[cause] = found
                return found
        return None

    def _left_bytes(self, cause: Cause, reading: Reading) -> int:
        if cause is Cause.LEAK:
            return self._room(reading)
        return max(self.capacity_bytes - reading.device_used_bytes, 0)

    def _room(self, reading: Reading) -> int:
        """Return what more could be allocated than the last step did at most."""
        others = reading.device_used_bytes - reading.reserved_bytes
        return max(self.capacity_bytes - others - reading.allocated_peak_bytes, 0)

    def acted(self, cause: Cause) -> None:
        """Begin anew after something was done about a cause: where it goes on, it is told again."""
        self._trends.pop(cause, None)
        if cause is Cause.CROWDED:
            self._crowd_bytes = 0
        self.forget()


def _added(reading: Reading) -> int:
    return reading.allocated_peak_bytes - reading.allocated_bytes


def _found(cause: Cause, grown: int, *, is_urgent: bool) -> Finding:
    return Finding(
        cause=cause, grown_bytes=grown, bytes_a_step=0, steps_left=None, is_urgent=is_urgent
    )
