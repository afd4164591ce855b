"""The largest tensors that are alive at a life's peak: what they are and who made them."""

from __future__ import annotations

import math

import numpy as np

from memplan import tape as tapes
from memplan.answers import TensorAtPeak
from memplan.device.life import Program
from memplan.tape import Int64, Tape

_ELEMENT_BYTES = (4, 2, 8, 1)


def tensors_at_peak(
    program: Program, tape: Tape, sizes: Int64, peak_event: int, count: int = 15
) -> tuple[TensorAtPeak, ...]:
    """Return the largest blocks alive right after an event of a life, largest first.

    Args:
        program: made from the tape.
        tape: for operators and modules.
        sizes: bytes by replayed event.
        peak_event: index of a replayed event.
        count: at most so many.
    """
    live = _live(program, peak_event)
    largest = live[np.argsort(-sizes[live], kind="stable")][:count]
    return tuple(tensor_at(program, tape, int(event), int(sizes[event])) for event in largest)


def held_at_peak(
    program: Program, tape: Tape, sizes: Int64, peak_event: int
) -> dict[str, dict[str, int]]:
    """Return bytes alive right after an event by `category`, `module` and `operator`.

    Args:
        program: made from the tape.
        tape: for operators and modules.
        sizes: bytes by replayed event.
        peak_event: index of a replayed event.
    """
    groups: dict[str, dict[str, int]] = {"category": {}, "module": {}, "operator": {}}
    for event in _live(program, peak_event):
        one = tensor_at(program, tape, int(event), int(sizes[event]))
        names = {
            "category": one.category,
            "module": one.module or "(outside modules)",
            "operator": one.operator,
        }
        for kind, name in names.items():
            groups[kind][name] = groups[kind].get(name, 0) + one.num_bytes
    return groups


def _live(program: Program, peak_event: int) -> Int64:
    """Return the replayed events that allocated what is alive right after an event."""
    kinds, blocks = program.kinds[: peak_event + 1], program.blocks[: peak_event + 1]
    last = np.full(int(program.blocks.max(initial=0)) + 1, -1, dtype=np.int64)
    # Later events overwrite earlier ones: what a block's last event so far is.
    matters = np.flatnonzero((kinds == tapes.ALLOCATE) | (kinds == tapes.FREE))
    last[blocks[matters]] = matters
    last = last[last >= 0]
    live = last[kinds[last] == tapes.ALLOCATE]
    if kinds[peak_event] == tapes.SCRATCH:
        live = np.append(live, peak_event)
    return np.asarray(live, dtype=np.int64)


def tensor_at(program: Program, tape: Tape, event: int, num_bytes: int) -> TensorAtPeak:
    """Return what a replayed event allocates, as far as a tape tells.

    Args:
        program: made from the tape.
        tape: for operators and modules.
        event: index of a replayed event that allocates.
        num_bytes: that it takes.
    """
    row = int(program.rows[event])
    operator = int(tape.events.operator[row])
    owner = int(tape.operators.module[operator])
    module = tape.modules[owner] if owner >= 0 else None
    category = tape.block_category[tape.events.block[row]]
    is_scratch = program.kinds[event] == tapes.SCRATCH
    kind = tape.tensor_of(int(tape.events.block[row]))
    shape = kind.shape if kind else () if module is None else module.output_shape
    element = 0 if is_scratch else _element_bytes(shape, num_bytes)
    return TensorAtPeak(
        num_bytes=num_bytes,
        category="workspace" if is_scratch else tapes.CATEGORIES[category],
        operator=tape.operator_names[int(tape.operators.name[operator])],
        phase=tapes.PHASES[int(tape.operators.phase[operator])],
        module="" if module is None else module.path,
        module_type="" if module is None else module.type,
        shape=shape if element else (),
        element_bytes=element,
    )


def _element_bytes(shape: tuple[int, ...], num_bytes: int) -> int:
    """Return the bytes of an element if the block holds exactly such a shape, else 0."""
    numel = math.prod(shape) if shape else 0
    return next((size for size in _ELEMENT_BYTES if numel and numel * size == num_bytes), 0)
