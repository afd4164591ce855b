"""Answers what a chosen setting looks like inside: its phases, its recomputed blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from memplan import tape as tapes
from memplan.answers import BlockSaving, PhasePeak
from memplan.device.life import Life
from memplan.device.replay import Simulator
from memplan.errors import MemplanError
from memplan.evaluation.evaluate import evaluate
from memplan.evaluation.throughput import operator_seconds
from memplan.spec import StepSpec
from memplan.tape import Tape


def phase_peaks(
    simulator: Simulator, tape: Tape, objects: Sequence[int], *, accumulates: bool
) -> tuple[PhasePeak, ...]:
    """Return the most that tensors hold in each phase of a life, in its order.

    Args:
        simulator: the card, whose workspaces count.
        tape: at the chosen micro-batch size.
        objects: in the fullest image of each step.
        accumulates: whether gradients of several micro-batches are summed before a step.
    """
    own = evaluate(tape, Life(accumulates=accumulates), simulator, objects)
    program, live = own.program, own.live_bytes
    operators = np.maximum(tape.events.operator[program.rows], 0)
    phases = tape.operators.phase[operators]
    found: list[PhasePeak] = []
    for period_index, period in enumerate(tapes.PERIODS):
        here = program.periods == period_index
        for phase_index, phase in enumerate(tapes.PHASES):
            held = live[here & (phases == phase_index)]
            if len(held):
                peak = PhasePeak(period=period, phase=phase, allocated_peak_bytes=int(held.max()))
                found.append(peak)
    return tuple(found)


def block_savings(
    record: Callable[[StepSpec], Tape], simulator: Simulator, spec: StepSpec
) -> tuple[BlockSaving, ...]:
    """Return what recomputing each of a setting's blocks buys and costs.

    What a block keeps is counted in a recording in which nothing recomputes; the input that a
    recomputed block keeps after all counts as its predecessor's.

    Args:
        record: returns the tape of a configuration at the chosen micro-batch size.
        simulator: the card, whose rates give the time.
        spec: the chosen one.
    """
    if not spec.recompute:
        return ()
    try:
        tape = record(replace(spec, recompute=()))
    except MemplanError:  # a step that is too large for anything but recomputing
        return ()
    events, operators = tape.events, tape.operators
    device = simulator.device_bytes(tape.convolutions, tape.launches)
    seconds = operator_seconds(tape, simulator.card, device.convolutions)
    section, forward = tapes.SECTIONS.index("micro_batch"), tapes.PHASES.index("forward")
    runs = (operators.section == section) & (operators.phase == forward)
    kept = (
        (events.section == section)
        & (events.kind == tapes.ALLOCATE)
        & (tape.block_category[events.block] == tapes.CATEGORY_INDEX["activation"])
    )
    found = []
    for path in spec.recompute:
        inside = np.array([_is_in(module.path, path) for module in tape.modules] + [False])
        in_block = inside[operators.module] & runs
        mine = kept & in_block[np.maximum(events.operator, 0)]
        found.append(
            BlockSaving(
                path=path,
                activation_bytes=int(events.requested_bytes[mine].sum()),
                forward_seconds=float(seconds[in_block].sum()),
            )
        )
    return tuple(found)


def _is_in(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")
