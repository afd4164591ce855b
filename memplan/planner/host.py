"""A plan for training on the processor: the micro-batch that host memory holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memplan import tape as tapes
from memplan.answers import GpuFacts, PlanAnswer, Predicted, Setting, WorkloadFacts
from memplan.device.life import Life
from memplan.errors import InfeasibleError, MemplanError
from memplan.evaluation.evaluate import evaluate
from memplan.host_memory import available_host_bytes
from memplan.processes import num_cores
from memplan.spec import Split, StepSpec
from memplan.units import format_bytes, three_digits

if TYPE_CHECKING:
    from memplan.workload import Workload

# A margin for what the tape does not hold: oneDNN's scratch and re-ordered weights, loader
# processes, and other programs that start meanwhile.
MEMORY_SHARE = 0.8
# 14 to 32 images/s of yolov9-t at 160 pixels on two cores of a server came to 7 to 19 GFLOP/s a
# core, channels-last above contiguous; it decides nothing here.
_RATE_PER_CORE = 12e9  # FLOP/s


Recorder = Callable[["Workload", int, StepSpec], tapes.Tape]
"""Records a step of a workload at a micro-batch size, run as a spec says."""


@dataclass(frozen=True)
class _Life:
    """What a training's life holds at one micro-batch size."""

    tape: tapes.Tape
    peak_bytes: int
    peak_phase: str


def plan_for_host(
    workload: Workload,
    spec: StepSpec,
    record: Recorder,
    *,
    effective_batch: int | None = None,
    images: int | None = None,
    available_bytes: int | None = None,
    command: str = "",
) -> PlanAnswer:
    """Return the largest micro-batch that host memory holds, and the accumulation that goes on top.

    Micro-batches are tried from the effective batch downwards through its divisors, so that a step
    sees exactly the images asked for. Larger ones are faster on a processor too.

    Args:
        workload: what is trained.
        spec: how a step runs; in fp32 whatever it says, as there is no other precision.
        record: returns the tape of a step so set at a micro-batch size.
        effective_batch: images a step; None takes the workload's nominal batch.
        images: training images in an epoch, for its duration; None leaves that out.
        available_bytes: host memory; None asks the system.
        command: the line that runs the plan.

    Raises:
        InfeasibleError: not even one image at once fits.

    Limits: live tensors are counted, not the scratch of the processor's libraries, for which a
    fifth of the available memory is left. The speed is a rough rate, not a measurement.
    """
    started = time.monotonic()
    capacity = available_host_bytes() if available_bytes is None else available_bytes
    budget = int(capacity * MEMORY_SHARE)
    effective = effective_batch or workload.nominal_batch_size
    spec = replace(spec, precision="fp32")
    # An epoch's images are the most that can ever be at once.
    candidates = [micro for micro in _divisors(effective) if micro <= max(images or effective, 1)]
    life = None
    for micro in candidates:
        try:
            life = _life(record(workload, micro, spec), accumulates=effective > micro)
        except MemplanError:  # more at once than the step can run
            if micro == candidates[-1]:
                raise
            continue
        if life.peak_bytes <= budget:
            break
    else:
        assert life is not None
        raise InfeasibleError(
            f"{workload.name} at {workload.image_size} pixels needs "
            f"{format_bytes(life.peak_bytes)} (predicted) for one image at once, but the budget is "
            f"{format_bytes(budget)}, {MEMORY_SHARE:.0%} of the available host memory. "
            "Lower --img, or add --recompute all."
        )
    setting = _setting(workload, spec, life, effective, images)
    return PlanAnswer(
        workload=_facts(life.tape, spec),
        gpu=GpuFacts(
            name="cpu",
            capacity_bytes=capacity,
            context_bytes=0,
            context_uncertainty_bytes=0,
            source="host memory",
        ),
        **{name: getattr(setting, name) for name in vars(setting)},
        budget_bytes=budget,
        headroom_bytes=budget - life.peak_bytes,
        alternatives=(),  # there is nothing to compare with
        command=command,
        versions=life.tape.description.versions,
        seconds=round(time.monotonic() - started, 3),
        notes=_notes(capacity),
    )


def _notes(capacity_bytes: int) -> tuple[str, ...]:
    memory = (
        f"The plan is for host memory: {format_bytes(capacity_bytes)} are available, of which "
        f"{MEMORY_SHARE:.0%} may be taken."
    )
    speed = (
        f"Images per second assume {three_digits(_RATE_PER_CORE / 1e9)} GFLOP/s a core, a rough "
        "figure that was not measured on this machine."
    )
    return memory, speed


def _divisors(number: int) -> list[int]:
    """Return the divisors, largest first."""
    return [part for part in range(number, 0, -1) if number % part == 0]


def _life(tape: tapes.Tape, *, accumulates: bool) -> _Life:
    # A device's workspaces are not the processor's.
    own = evaluate(tape, Life(accumulates=accumulates), None)
    peak = int(own.live_bytes.argmax())
    return _Life(tape, int(own.live_bytes[peak]), own.program.place(peak)[1])


def _setting(
    workload: Workload, spec: StepSpec, life: _Life, effective: int, images: int | None
) -> Setting:
    description, operators = life.tape.description, life.tape.operators
    micro = description.micro_batch_size
    of_step = operators.section == tapes.SECTIONS.index("micro_batch")
    flops = max(int(operators.flops[of_step].sum()), 1)
    speed = micro * _RATE_PER_CORE * num_cores() / flops
    return Setting(
        spec=spec,
        split=Split(micro_batch_size=micro, accumulation_steps=effective // micro),
        nominal_batch_size=workload.nominal_batch_size,
        predicted=Predicted(
            allocated_peak_bytes=life.peak_bytes,
            reserved_peak_bytes=life.peak_bytes,
            device_used_peak_bytes=life.peak_bytes,
            peak_phase=life.peak_phase,
            images_per_second=speed,
            epoch_seconds=None if images is None else images / speed,
        ),
    )


def _facts(tape: tapes.Tape, spec: StepSpec) -> WorkloadFacts:
    description = tape.description
    return WorkloadFacts(
        name=description.workload,
        img=description.image_size,
        spec=spec,
        parameters=description.parameters,
        objects_per_image=description.objects_per_image,
    )
