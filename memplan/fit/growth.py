"""Whether memory grows faster than affine in the batch, as recordings have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memplan import tape as tapes
from memplan.tape import Tape

# What rounding and reductions split among thread blocks make of a line.
_TOLERATED = 1.02


@dataclass(frozen=True)
class Growth:
    """How far a recording is above the line through smaller ones."""

    batch: int
    """The largest recorded."""
    line_batches: tuple[int, int]
    """Those that the line goes through."""
    factor: float
    """Bytes that its operators allocate, over what the line says."""


def faster_growth(recorded: Mapping[int, Tape]) -> Growth | None:
    """Return how much faster than affine memory grows; None where it does not.

    What counts is all that the operators of a life allocate, whether it lives at once or not: a
    peak that moves from one phase to another, or a loop of more rounds, is no faster growth.

    Args:
        recorded: tapes by micro-batch size.
    """
    # Batch 1 is the odd one: its tensors are contiguous in every layout.
    batches = sorted(recorded)[1 if len(recorded) > 3 and 1 in recorded else 0 :]
    if len(batches) < 3:
        return None
    first, last = batches[0], batches[-1]
    second = next((one for one in batches[1:-1] if 3 * one >= 4 * first), batches[1])
    at_first, at_second, at_last = (_allocated(recorded[one]) for one in (first, second, last))
    line = at_first + (at_second - at_first) * (last - first) / (second - first)
    if at_last <= _TOLERATED * max(line, at_first):
        return None
    return Growth(last, (first, second), at_last / max(line, at_first))


def _allocated(tape: Tape) -> int:
    events = tape.events
    return int(events.requested_bytes[events.kind == tapes.ALLOCATE].sum())
