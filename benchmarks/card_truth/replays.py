"""A recorded life replayed on a card, with what the card's convolutions leave open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memplan.device.card import Card
from memplan.device.life import DeviceBytes, Life, Program
from memplan.device.one_by_one import OneByOne
from memplan.device.replay import Peaks, Simulator
from memplan.tape import Tape

ONE_BY_ONE = "1x1 workspaces"
BENCHMARK = "1x1 workspaces, the plan cudnn.benchmark takes"


def replays(
    tape: Tape,
    card: Card,
    life: Life | None = None,
    *,
    objects: Sequence[int] = (),
    has_matrix_workspace: bool = True,
) -> list[Peaks]:
    """Return the peaks of a life: first as memplan predicts them, then all that is left open.

    Left open are the workspaces of 1x1 convolutions and, under `cudnn.benchmark`, which of the
    plans it times it takes.

    Args:
        tape: of the workload.
        card: where it runs.
        life: which parts are replayed; None takes validation but no accumulation.
        objects: in the fullest image of each step; empty takes the batch as it was recorded.
        has_matrix_workspace: False where PyTorch is too old to give cuBLAS one.
    """
    about = tape.description
    simulator = Simulator(
        card,
        torch_version=about.versions.get("torch", "2.11.0"),
        cudnn_benchmark=about.spec.cudnn_benchmark,
    )
    program = Program(tape, life or Life())
    asked = simulator.device_bytes(tape.convolutions, tape.launches)
    if not has_matrix_workspace:
        asked = replace(asked, matrix=0, light_matrix=0)
    found = []
    for answers in _answers(simulator, tape, asked):
        for one_by_one in OneByOne:
            workspaces = one_by_one.applied(tape.convolutions, answers.convolutions)
            sizes = program.sizes(
                tape.events.requested_bytes, replace(answers, convolutions=workspaces), objects
            )
            found.append(simulator.peaks(program, sizes))
    return found


def _answers(simulator: Simulator, tape: Tape, asked: DeviceBytes) -> list[DeviceBytes]:
    """Return what the card may answer; under `cudnn.benchmark` the most and the least."""
    if not simulator.oracle.benchmark:
        return [asked]
    least = [one.least_bytes for one in simulator.oracle.benchmark_many(tape.convolutions)]
    return [asked, replace(asked, convolutions=np.array(least, dtype=np.int64))]


def predicted(found: Sequence[int], uncertainty_bytes: int = 0) -> dict[str, Any]:
    """Return a row's prediction and the range it leaves open.

    Args:
        found: bytes, in the order of `replays`.
        uncertainty_bytes: of what all of them contain, either way.
    """
    return {
        "predicted_bytes": found[0],
        "low_bytes": min(found) - uncertainty_bytes,
        "high_bytes": max(found) + uncertainty_bytes,
    }
