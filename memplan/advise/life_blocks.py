"""The blocks of a tape's life on a card, one by one, for pages that draw it."""

from __future__ import annotations

import numpy as np

from memplan import tape as tapes
from memplan.advise.at_peak import tensor_at
from memplan.answers import SIMULATED
from memplan.blocks import BlockLabel, BlockLives, LabelTable
from memplan.device.life import Program
from memplan.device.plan_fallback import PlanFallback
from memplan.device.replay import UNLIMITED_BYTES, Peaks, Simulator
from memplan.present.probe import operator_words
from memplan.tape import Int64, Tape

_ROUND = 512


def life_blocks(
    program: Program,
    tape: Tape,
    sizes: Int64,
    simulator: Simulator,
    peaks: Peaks,
    *,
    fallback: PlanFallback | None = None,
    origin: str = SIMULATED,
) -> BlockLives:
    """Return every block of a life on a card, and reserved memory as it went.

    A life that does not fit is drawn as on a card large enough, as its peaks are.

    Args:
        program: made from the tape.
        tape: for operators and modules.
        sizes: bytes by replayed event.
        simulator: the card.
        peaks: of the same life on it.
        fallback: fresh; plans of convolutions whose workspace finds no memory.
        origin: what the figures are.
    """
    outside = simulator.outside.num_bytes
    available = simulator.card.capacity_bytes - outside
    capacity = available if peaks.fits else UNLIMITED_BYTES
    result = simulator.run(program, sizes, capacity, fallback=fallback, timeline=True)
    assert result.reserved_timeline_bytes is not None
    if fallback is not None:
        sizes = fallback.applied(sizes)
    made, freed = _spans(program, sizes)
    labels, table = _labels(program, tape, sizes, made), LabelTable()
    about = tape.description
    return BlockLives(
        title=(
            f"{about.workload} at {about.image_size} px, micro-batch {about.micro_batch_size}, "
            f"{simulator.card.name}"
        ),
        origin=origin,
        num_events=len(program.kinds),
        made=made,
        freed=freed,
        num_bytes=-(-sizes[made] // _ROUND) * _ROUND,
        label=np.array([table.number(label) for label in labels], dtype=np.int64),
        labels=table.labels,
        phases=_phases(program, tape),
        reserved_bytes=result.reserved_timeline_bytes,
        context_bytes=outside,
        capacity_bytes=simulator.card.capacity_bytes,
    )


def _spans(program: Program, sizes: Int64) -> tuple[Int64, Int64]:
    """Return by block the replayed events that made and freed it.

    Scratch is alive at its own event alone; blocks of no bytes are left out.
    """
    kinds, blocks = program.kinds, program.blocks
    num_events = len(kinds)
    ends = np.full(int(blocks.max(initial=0)) + 1, num_events, dtype=np.int64)
    frees = np.flatnonzero(kinds == tapes.FREE)
    ends[blocks[frees]] = frees
    made = np.flatnonzero(
        ((kinds == tapes.ALLOCATE) | (kinds == tapes.SCRATCH)) & (sizes > 0)
    ).astype(np.int64)
    freed = np.where(kinds[made] == tapes.SCRATCH, made + 1, ends[blocks[made]])
    return made, freed


def _labels(program: Program, tape: Tape, sizes: Int64, events: Int64) -> list[BlockLabel]:
    """Return the label of the block that each event made; equal ones are made once."""
    rows = program.rows[events]
    blocks = tape.events.block[rows]
    categories = tape.block_category[blocks]
    tensors = categories if tape.block_tensor is None else tape.block_tensor[blocks]
    columns = (tape.events.operator[rows], categories, sizes[events], tensors)
    keys = zip(*(column.tolist() for column in columns), strict=True)
    known: dict[tuple[int, ...], BlockLabel] = {}
    labels = []
    for key, event in zip(keys, events.tolist(), strict=True):
        label = known.get(key)
        if label is None:
            label = known[key] = _label(program, tape, event, key[2])
        labels.append(label)
    return labels


def _label(program: Program, tape: Tape, event: int, num_bytes: int) -> BlockLabel:
    one = tensor_at(program, tape, event, num_bytes)
    row = program.rows[event]
    kind = tape.tensor_of(int(tape.events.block[row]))
    shape = " x ".join(map(str, one.shape)) if kind is None else kind.words
    return BlockLabel(
        band=one.category,
        tensor=shape,
        module=f"{one.module} {one.module_type}".strip(),
        operator=operator_words(one.operator),
        line=tape.line_of(int(tape.events.operator[row])),
    )


def _phases(program: Program, tape: Tape) -> tuple[tuple[str, str, int], ...]:
    """Return period, phase and first event of each stretch of a life."""
    operators = np.maximum(tape.events.operator[program.rows], 0)
    phases = tape.operators.phase[operators].astype(np.int64)
    key = program.periods * len(tapes.PHASES) + phases
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    return tuple(
        (tapes.PERIODS[program.periods[start]], tapes.PHASES[phases[start]], int(start))
        for start in starts
    )
