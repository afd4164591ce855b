"""When the blocks of a micro-batch live, and what recomputing changes in that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.planner.layers import MICRO_BATCHES, deaths_of
from memplan.tape import Int64, Tape


@dataclass(frozen=True)
class Lives:
    """When blocks live, as first and last point; by row of the events that allocate them."""

    rows: Int64
    born: Int64
    gone: Int64
    owner: Int64
    """Index of the path by whose choice a block lives, -1 for none."""

    def of(self, owner: int) -> Lives:
        """Return the lives that one choice decides."""
        mine = self.owner == owner
        return Lives(self.rows[mine], self.born[mine], self.gone[mine], self.owner[mine])


@dataclass(frozen=True)
class Effect:
    """What recomputing does, as seen in one recording."""

    tape: Tape
    gains: Lives
    """As blocks live when their owner is recomputed, rows of `tape`."""
    drops: Lives
    """As the same blocks live when it is not, rows of the plain tape."""
    inserted_of: Int64
    """By operator of `tape`: the path that a repeated forward belongs to, -1 for all others."""


@dataclass(frozen=True)
class Lifetimes:
    """When the blocks of a micro-batch live in the plain tape, and what choices change."""

    num_points: int
    rows: Int64
    born: Int64
    gone: Int64
    effects: tuple[Effect, ...]


def lives_of(
    tape: Tape, places: npt.NDArray[np.float64], points: npt.NDArray[np.float64], owners: Int64
) -> Lives:
    """Return the lives of what is allocated in the micro-batch; to its end where it stays."""
    events = tape.events
    births = np.flatnonzero(
        np.isin(events.kind, (tapes.ALLOCATE, tapes.SCRATCH)) & (events.section == MICRO_BATCHES[0])
    )
    blocks = events.block[births]
    made = np.maximum(events.operator[births].astype(np.int64), 0)
    born = np.searchsorted(points, places[made], side="left")
    death = deaths_of(tape)[blocks]
    is_scratch = events.kind[births] == tapes.SCRATCH
    last = len(points) - 1
    ends = np.searchsorted(points, places[np.maximum(death, 0)], side="left")
    gone = np.where(is_scratch, born, np.where(death < 0, last, np.minimum(ends, last)))
    owner = owners[blocks] if len(owners) else np.full(len(blocks), -1, dtype=np.int64)
    return Lives(births, np.minimum(born, last), np.maximum(gone, np.minimum(born, last)), owner)
