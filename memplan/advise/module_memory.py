"""What each module of a model takes, without its children."""

from __future__ import annotations

import numpy as np

from memplan import tape as tapes
from memplan.answers import ModuleMemory
from memplan.tape import Int64, Tape


def module_memory(tape: Tape, workspace_bytes: Int64) -> tuple[ModuleMemory, ...]:
    """Return what each module keeps for backward, asks for, and computes, without its children."""
    events, operators = tape.events, tape.operators
    in_step = events.section == tapes.SECTIONS.index("micro_batch")
    phase = operators.phase[events.operator]
    forward = tapes.PHASES.index("forward")
    owner = operators.module[events.operator]
    kept = (
        in_step
        & (phase == forward)
        & (events.kind == tapes.ALLOCATE)
        & (tape.block_category[events.block] == tapes.CATEGORY_INDEX["activation"])
        & (owner >= 0)
    )
    activation = np.zeros(len(tape.modules), dtype=np.int64)
    np.add.at(activation, owner[kept], events.requested_bytes[kept])
    asks = in_step & (events.asks == tapes.CONVOLUTION) & (owner >= 0)
    workspace = np.zeros(len(tape.modules), dtype=np.int64)
    np.maximum.at(workspace, owner[asks], workspace_bytes[events.about[asks]])
    computes = (
        (operators.section == tapes.SECTIONS.index("micro_batch"))
        & (operators.phase == forward)
        & (operators.module >= 0)
    )
    flops = np.zeros(len(tape.modules), dtype=np.int64)
    np.add.at(flops, operators.module[computes], operators.flops[computes])
    return tuple(
        ModuleMemory(
            path=module.path,
            type=module.type,
            output_shape=module.output_shape,
            activation_bytes=int(activation[index]),
            workspace_bytes=int(workspace[index]),
            forward_flops=int(flops[index]),
        )
        for index, module in enumerate(tape.modules)
    )
