"""The life of a training, put together from the sections of a tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from memplan import tape as tapes
from memplan.device.plan_fallback import NO_KEY
from memplan.tape import Events, Int64, Tape


@dataclass(frozen=True, kw_only=True)
class Life:
    """Which parts of a recorded life are replayed."""

    accumulates: bool = False
    """Whether gradients of several micro-batches are summed before a step."""
    validates: bool = True
    """Whether validation runs between epochs, where it was recorded, and a checkpoint is saved."""
    trains: bool = True
    """Whether steps are trained; else the micro-batch is a forward pass alone, run again and again,
    as `memplan.trace.inference` records it."""
    num_steps: int = 3
    """Optimizer steps, >= 2. Validation comes before the last one, which meets a cache that
    validation has shaped."""


@dataclass(frozen=True)
class _Part:
    """One section as it runs once."""

    period: str
    section: str
    """Index name of `tape.SECTIONS`, or `accumulation`: a micro-batch with gradients present."""
    step: int
    """Number of the optimizer step, 0-based; what comes between two counts to the later one."""
    copy: int
    """Which copy of the section's blocks it uses."""


def _schedule(life: Life, recorded: set[str]) -> list[_Part]:
    """Return the parts of a life in order."""
    if not life.trains:
        passes = [_Part("inference", "micro_batch", n, 2 * n) for n in range(life.num_steps)]
        return [_Part("build", "build", 0, 0), *passes]
    validates = life.validates and "validation" in recorded
    parts = [_Part("build", "build", 0, 0)]
    for number in range(life.num_steps):
        copy = 2 * number
        if validates and number == life.num_steps - 1:
            parts.append(_Part("validation", "validation", number, 1))
            if "checkpoint" in recorded:
                parts.append(_Part("checkpoint", "checkpoint", number, 1))
        period = "first_step" if number == 0 else "steady_step"
        parts.append(_Part(period, "micro_batch", number, copy))
        if life.accumulates:
            parts.append(_Part("accumulation_step", "accumulation", number, copy + 1))
        update = "first_update" if number == 0 else "update"
        parts += [_Part(period, name, number, copy) for name in (update, "release", "average")]
    return _with_bucket_rebuild(parts) if "bucket_rebuild" in recorded else parts


def _with_bucket_rebuild(parts: list[_Part]) -> list[_Part]:
    """Return the parts with DDP's buckets made anew before the second forward."""
    forwards = [i for i, one in enumerate(parts) if one.section in ("micro_batch", "accumulation")]
    second = forwards[1]
    rebuild = _Part(parts[second].period, "bucket_rebuild", parts[second].step, 0)
    return [*parts[:second], rebuild, *parts[second:]]


def _lasting_blocks(tape: Tape) -> npt.NDArray[np.bool_]:
    """Return by block whether it stays once allocated.

    That is a block never freed, and one that a section leaves to whichever comes later to free:
    only gradients, and DDP's first buckets, are meant to pass from one section to another.
    """
    events = tape.events
    born = np.full(len(tape.block_category), -1, dtype=np.int64)
    allocates = events.kind == tapes.ALLOCATE
    born[events.block[allocates]] = events.section[allocates]
    frees = events.kind == tapes.FREE
    freed_blocks, freed_in = events.block[frees], events.section[frees]
    as_meant = born[freed_blocks] == freed_in
    for first, later in (("micro_batch", "release"), ("build", "bucket_rebuild")):
        is_first = born[freed_blocks] == tapes.SECTIONS.index(first)
        as_meant |= is_first & (freed_in == tapes.SECTIONS.index(later))
    lasting = np.ones(len(tape.block_category), dtype=bool)
    lasting[freed_blocks[as_meant]] = False
    lasting[events.block[events.kind == tapes.SCRATCH]] = False
    return lasting


@dataclass(frozen=True)
class _Crowding:
    """Where a micro-batch's sizes grow with the objects in its images."""

    rows: Int64
    """By row of the tape's events: the same event of the crowded micro-batch, else the row."""
    few: int
    """Objects in each image of the micro-batch."""
    many: int
    """Objects in each image of the crowded one; as `few` where none was recorded."""

    @classmethod
    def of(cls, tape: Tape, lasting: npt.NDArray[np.bool_]) -> _Crowding:
        """Match the two micro-batches of a tape, event by event.

        Args:
            tape: holds both.
            lasting: blocks that appear once in a life, in the first micro-batch only.
        """
        events, about = tape.events, tape.description
        rows = np.arange(len(events.kind))
        few, many = max(1, about.objects_per_image), about.crowded_objects_per_image
        if many <= few:
            return cls(rows, few, few)
        one, other = (
            np.flatnonzero(events.section == tapes.SECTIONS.index(name))
            for name in ("micro_batch", "crowded_micro_batch")
        )
        one = one[~lasting[events.block[one]]]
        if not _are_alike(tape, one, other):
            return cls(rows, few, few)
        rows[one] = other
        return cls(rows, few, many)

    def share(self, objects: int) -> float:
        """Return how far a number of objects lies from `few` towards `many`, or beyond."""
        if self.many == self.few:
            return 0.0
        return (max(1, objects) - self.few) / (self.many - self.few)


def _are_alike(tape: Tape, one: Int64, other: Int64) -> bool:
    """Return whether two stretches of events differ in their sizes only."""
    events, operators = tape.events, tape.operators
    # Every launch has an index of its own.
    convolution = np.where(events.asks == tapes.CONVOLUTION, events.about, 0)
    return len(one) == len(other) and all(
        np.array_equal(column[one], column[other])
        for column in (events.kind, events.asks, convolution, operators.name[events.operator])
    )


@dataclass(frozen=True)
class DeviceBytes:
    """What a card answers to the questions on a tape, bytes."""

    convolutions: Int64
    """Workspace by index of the tape's convolutions."""
    matrix: int
    """Workspace of the matrix library."""
    light_matrix: int
    """Workspace of its light interface."""
    launches: Int64
    """Scratch of each of the tape's launches, `[questions, launches]` in the order of
    `tape.QUESTIONS`; 0 for the questions that are not of a launch's kind."""

    @classmethod
    def none(cls, tape: Tape) -> DeviceBytes:
        """Return the answers of a card that wants no scratch at all."""
        nothing = np.zeros(len(tape.convolutions), dtype=np.int64)
        none = np.zeros((len(tapes.QUESTIONS), len(tape.launches)), dtype=np.int64)
        return cls(nothing, 0, 0, none)

    def filled(self, requested: Int64, events: Events) -> Int64:
        """Return bytes by event, the answers filled in.

        Args:
            requested: bytes by event, 0 where the device is asked.
            events: the tape's, which say what is asked about what.
        """
        sizes = requested.astype(np.int64)
        asks, about = events.asks, events.about
        sizes[asks == tapes.MATRIX_WORKSPACE] = self.matrix
        sizes[asks == tapes.LIGHT_MATRIX_WORKSPACE] = self.light_matrix
        convolves, launches = asks == tapes.CONVOLUTION, asks >= tapes.FIRST_BUFFER
        sizes[convolves] = self.convolutions[about[convolves]]
        sizes[launches] = self.launches[asks[launches], about[launches]]
        return sizes


class Program:
    """A tape's sections put together to a life, ready to be replayed with any sizes.

    A block that a section allocates and a later one of the same step frees gets an id of its own
    in each step; one that stays to the end (optimizer state, library workspace) is allocated the
    first time only. Accumulating runs the micro-batch with gradients present: each gradient is
    freed at once, having been added to what is there.

    Args:
        tape: gives the structure; its sizes are not used.
        life: which parts to replay.
    """

    def __init__(self, tape: Tape, life: Life) -> None:
        self._tape = tape
        self.num_steps = life.num_steps
        """Optimizer steps in the life."""
        events = tape.events
        self._lasting = _lasting_blocks(tape)
        self._of_build = np.zeros_like(self._lasting)
        self._of_build[events.block[events.section == 0]] = True
        recorded = {tapes.SECTIONS[section] for section in np.unique(events.section)}
        self._crowding = _Crowding.of(tape, self._lasting)
        rows, kinds, blocks, periods, steps = [], [], [], [], []
        for part in _schedule(life, recorded):
            its_rows, its_kinds, its_blocks = self._part(part.section, part.copy)
            rows.append(its_rows)
            kinds.append(its_kinds)
            blocks.append(its_blocks)
            periods.append(np.full(len(its_rows), tapes.PERIODS.index(part.period)))
            steps.append(np.full(len(its_rows), part.step))
        self.rows = np.concatenate(rows)
        """Rows of the tape's events, in the order they are replayed."""
        self.kinds = np.concatenate(kinds)
        self.blocks = np.concatenate(blocks)
        self.periods = np.concatenate(periods)
        self.asks = events.asks[self.rows]
        """By replayed event, an index into `tape.QUESTIONS`."""
        self.about = events.about[self.rows]
        crowded = self._crowding.rows[self.rows]
        self._varies = np.flatnonzero(crowded != self.rows)
        self._crowded_rows = crowded[self._varies]
        self.steps = np.concatenate(steps)
        """Number of the optimizer step, 0-based, by replayed event."""

    def _part(self, section: str, copy: int) -> tuple[Int64, Int64, Int64]:
        """Return rows, kinds and block ids of one section as it runs in one step."""
        events = self._tape.events
        accumulates = section == "accumulation"
        recorded = "micro_batch" if accumulates else section
        rows = np.flatnonzero(events.section == tapes.SECTIONS.index(recorded))
        kinds = events.kind[rows].astype(np.int64)
        blocks = events.block[rows].astype(np.int64)
        keeps = np.isin(kinds, (tapes.KEEP_GRADIENT, tapes.KEEP_COPY))
        if accumulates:
            copies = blocks[kinds == tapes.KEEP_COPY]
            kinds[kinds == tapes.KEEP_GRADIENT] = tapes.FREE
            keep = ~(np.isin(blocks, copies) | (kinds == tapes.KEEP_COPY))
        else:
            keep = ~keeps
        lasting = self._lasting[blocks]
        keep &= ~(lasting & (kinds == tapes.FREE))
        if copy:
            keep &= ~lasting & ~self._of_build[blocks]
        rows, kinds, blocks, lasting = rows[keep], kinds[keep], blocks[keep], lasting[keep]
        moved = ~(lasting | self._of_build[blocks])
        return rows, kinds, blocks + moved * copy * len(self._lasting)

    def sizes(
        self,
        requested: Int64,
        device: DeviceBytes,
        objects: Sequence[int] = (),
    ) -> Int64:
        """Return each replayed event's bytes, the device's answers filled in.

        Args:
            requested: bytes by row of the tape's events.
            device: what the card answers at the same batch.
            objects: in the fullest image of each optimizer step's batches, in order; the last one
                holds for all later steps. Empty takes the batch as it was recorded. It counts only
                where a crowded micro-batch was recorded.
        """
        full = device.filled(requested, self._tape.events)
        sizes: Int64 = full[self.rows]
        if objects and len(self._varies):
            shares = np.array([self._crowding.share(count) for count in objects])
            rise = full[self._crowded_rows] - sizes[self._varies]
            share = shares[np.minimum(self.steps[self._varies], len(shares) - 1)]
            sizes[self._varies] += np.rint(rise * share).astype(np.int64)
        return sizes

    def largest_varying_bytes(self, requested: Int64, objects: int) -> int:
        """Return the largest block whose size depends on the objects in an image.

        Args:
            requested: bytes by row of the tape's events.
            objects: in the fullest image.
        """
        few = requested[self.rows[self._varies]]
        rise = requested[self._crowded_rows] - few
        at_objects = few + rise * self._crowding.share(objects)
        return int(at_objects[rise > 0].max(initial=0))

    def place(self, event: int) -> tuple[str, str, str]:
        """Return period, phase and module path of a replayed event."""
        operator = max(int(self._tape.events.operator[self.rows[event]]), 0)
        operators = self._tape.operators
        module = int(operators.module[operator])
        path = self._tape.modules[module].path if module >= 0 else ""
        period = tapes.PERIODS[self.periods[event]]
        return period, tapes.PHASES[operators.phase[operator]], path

    @cached_property
    def plan_keys(self) -> Int64:
        """By replayed event, what PyTorch keeps a convolution's plan for, int64 `[events]`.

        Equal where it keeps one plan for both; `NO_KEY` where an event asks for no convolution's
        workspace. `convolution_of` turns a key into the convolution.
        """
        phases = self._tape.operators.phase
        operator = np.maximum(self._tape.events.operator[self.rows], 0)
        in_backward = (phases[operator] if len(phases) else 0) == tapes.PHASES.index("backward")
        # Backward runs in a thread of its own, and each thread keeps its own plans.
        keys = 2 * self.about.astype(np.int64) + in_backward
        return np.where(self.asks == tapes.CONVOLUTION, keys, NO_KEY)

    @staticmethod
    def convolution_of(key: int) -> int:
        """Return the index among the tape's convolutions of a key that is none of `NO_KEY`."""
        return key // 2

    def live_by_category(self, sizes: Int64) -> npt.NDArray[np.int64]:
        """Return bytes held by category after each replayed event, `[categories, events]`.

        Scratch counts while it is held. Bytes are rounded to the allocator's blocks of 512.
        """
        rounded = -(-sizes // 512) * 512
        of_block = np.zeros(int(self.blocks.max(initial=0)) + 1, dtype=np.int64)
        allocates = self.kinds == tapes.ALLOCATE
        of_block[self.blocks[allocates]] = rounded[allocates]
        delta = np.where(
            allocates, rounded, np.where(self.kinds == tapes.FREE, -of_block[self.blocks], 0)
        )
        category = self._tape.block_category[self.blocks % len(self._tape.block_category)]
        live = np.zeros((len(tapes.CATEGORIES), len(sizes)), dtype=np.int64)
        for index in range(len(tapes.CATEGORIES)):
            live[index] = np.cumsum(np.where(category == index, delta, 0))
        scratch = self.kinds == tapes.SCRATCH
        live[tapes.CATEGORY_INDEX["workspace"], scratch] += rounded[scratch]
        return live
