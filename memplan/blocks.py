"""Every block of memory through a life: when it was made and freed, how large it is, and whose."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]

NO_FRAMES = "no frames recorded"
"""Stands for the line of a block whose recording has no stacks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLabel:
    """Whose a block is; what is not known is empty."""

    band: str
    """What it is counted under, such as its category."""
    tensor: str = ""
    """Shape and dtype, such as `16 x 64 x 56 x 56, float16`."""
    module: str = ""
    """Path and type of the module that was running."""
    operator: str = ""
    """That allocated it."""
    line: str = ""
    """`FILE:LINE function` of the user's source."""


@dataclass(frozen=True, kw_only=True)
class BlockLives:
    """Blocks as columns of equal length, and the moments they are drawn against.

    A block is alive after event `i` where `made <= i < freed`.
    """

    title: str
    origin: str
    """`predicted`, `simulated` or `measured`."""
    num_events: int
    made: Int64
    """Event that allocated it."""
    freed: Int64
    """Event that freed it; `num_events` where it lives to the end."""
    num_bytes: Int64
    """As rounded by the allocator."""
    label: Int64
    """Index into `labels`."""
    labels: tuple[BlockLabel, ...]
    phases: tuple[tuple[str, str, int], ...] = ()
    """Period, phase and first event of each stretch, in order."""
    reserved_bytes: Int64 = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Held from the driver after each event, `[events]`; empty where it is not known."""
    context_bytes: int = 0
    """Held outside the allocator."""
    capacity_bytes: int | None = None
    """Of the card; None where it is not known."""
    notes: tuple[str, ...] = ()
    """What a reader must know, a sentence each."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of what blocks are counted under, as they first appear among the labels."""
        return tuple(dict.fromkeys(label.band for label in self.labels))

    def allocated_bytes(self) -> Int64:
        """Return the bytes of all blocks alive after each event, int64 `[events]`."""
        change = np.zeros(self.num_events + 1, dtype=np.int64)
        np.add.at(change, self.made, self.num_bytes)
        np.add.at(change, self.freed, -self.num_bytes)
        total: Int64 = np.cumsum(change)[:-1]
        return total


class LabelTable:
    """Labels numbered as they first appear."""

    def __init__(self) -> None:
        self._index: dict[BlockLabel, int] = {}

    def number(self, label: BlockLabel) -> int:
        """Return the number of a label, a new one for a label not seen before."""
        return self._index.setdefault(label, len(self._index))

    @property
    def labels(self) -> tuple[BlockLabel, ...]:
        """All labels, by number."""
        return tuple(self._index)


def without_small(lives: BlockLives, most_blocks: int, stretches: int = 2000) -> BlockLives:
    """Return lives of bounded length: the largest blocks, and the others summed over stretches.

    Where some are summed, a block of each band stands in every stretch of events for the most that
    the small ones of the band hold in it.

    Args:
        lives: with any number of blocks.
        most_blocks: that are told apart.
        stretches: of events, in which small blocks are summed.
    """
    if len(lives.made) <= most_blocks:
        return lives
    order = np.argsort(-lives.num_bytes, kind="stable")
    kept, small = np.sort(order[:most_blocks]), order[most_blocks:]
    edges = np.linspace(0, lives.num_events, min(stretches, lives.num_events) + 1).astype(np.int64)
    table = LabelTable()
    for label in lives.labels:
        table.number(label)
    limit = int(lives.num_bytes[small].max())
    rows: list[tuple[int, int, int, int]] = []
    band_of = np.array([lives.bands.index(label.band) for label in lives.labels], dtype=np.int64)
    for number, band in enumerate(lives.bands):
        mine = small[band_of[lives.label[small]] == number]
        if not len(mine):
            continue
        number_of = table.number(
            BlockLabel(band=band, tensor=f"blocks of up to {limit:,} bytes, summed")
        )
        change = np.zeros(lives.num_events + 1, dtype=np.int64)
        np.add.at(change, lives.made[mine], lives.num_bytes[mine])
        np.add.at(change, lives.freed[mine], -lives.num_bytes[mine])
        most = np.maximum.reduceat(np.cumsum(change)[:-1], edges[:-1])
        rows += [
            (int(a), int(b), int(value), number_of)
            for a, b, value in zip(edges, edges[1:], most, strict=False)
            if value
        ]
    added = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    columns = (lives.made, lives.freed, lives.num_bytes, lives.label)
    made, freed, num_bytes, label_of = (
        np.concatenate([column[kept], more]) for column, more in zip(columns, added, strict=True)
    )
    note = (
        f"{len(small):,} blocks of up to {limit:,} bytes are summed: more than {most_blocks:,} "
        "are not told apart."
    )
    return replace(
        lives,
        made=made,
        freed=freed,
        num_bytes=num_bytes,
        label=label_of,
        labels=table.labels,
        notes=(*lives.notes, note),
    )
