"""A plan for training on the processor: the micro-batch that host memory holds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memplan import tape as tapes
from memplan.answers import GpuFacts, PlanAnswer, Predicted, Setting, WorkloadFacts
from memplan.device.life import DeviceBytes, Life, Program
from memplan.errors import InfeasibleError, MemplanError
from memplan.host_memory import available_host_bytes
from memplan.processes import num_cores
from memplan.units import format_bytes, three_digits

if TYPE_CHECKING:
    from memplan.spec import StepSpec
    from memplan.workload import OptimizerSettings, Workload

# A margin for what the tape does not hold: oneDNN's scratch and re-ordered weights, loader
# processes, and other programs that start meanwhile.
MEMORY_SHARE = 0.8
# 14 to 32 images/s of yolov9-t at 160 pixels on two cores of a server came to 7 to 19 GFLOP/s a
# core, channels-last above contiguous; it decides nothing here.
_RATE_PER_CORE = 12e9  # FLOP/s


@dataclass(frozen=True)
class _Life:
    """What a training's life holds at one micro-batch size."""

    tape: tapes.Tape
    peak_bytes: int
    peak_phase: str


def plan_for_host(
    workload: Workload,
    *,
    optimizer: OptimizerSettings,
    effective_batch: int | None = None,
    memory_format: str = "channels-last",
    recompute: tuple[str, ...] = (),
    images: int | None = None,
    available_bytes: int | None = None,
    command: str = "",
) -> PlanAnswer:
    """Return the largest micro-batch that host memory holds, and the accumulation that goes on top.

    Micro-batches are tried from the effective batch downwards through its divisors, so that a step
    sees exactly the images asked for. Larger ones are faster on a processor too.

    Args:
        workload: what is trained, in fp32.
        optimizer: as training builds it.
        effective_batch: images a step; None takes the workload's nominal batch.
        memory_format: channels-last is what processors' convolutions are fastest with.
        recompute: paths of modules that recompute their activations.
        images: training images in an epoch, for its duration; None leaves that out.
        available_bytes: host memory; None asks the system.
        command: the line that runs the plan.

    Raises:
        InfeasibleError: not even one image at once fits.

    Limits: live tensors are counted, not the scratch of the processor's libraries, for which a
    fifth of the available memory is left. The speed is a rough rate, not a measurement.
    """
    from memplan.spec import StepSpec

    started = time.monotonic()
    capacity = available_host_bytes() if available_bytes is None else available_bytes
    budget = int(capacity * MEMORY_SHARE)
    effective = effective_batch or workload.nominal_batch_size
    settings = StepSpec(
        precision="fp32",
        memory_format=memory_format,
        optimizer=optimizer,
        recompute=recompute,
    )
    # An epoch's images are the most that can ever be at once.
    candidates = [micro for micro in _divisors(effective) if micro <= max(images or effective, 1)]
    life = None
    for micro in candidates:
        try:
            life = _record(workload, micro, settings, accumulates=effective > micro)
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
    setting = _setting(workload, life, effective, images)
    return PlanAnswer(
        workload=_facts(life.tape),
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


def _record(workload: Workload, micro: int, settings: StepSpec, *, accumulates: bool) -> _Life:
    from memplan.trace.record import record

    tape = record(workload, micro, settings)
    program = Program(tape, Life(accumulates=accumulates))
    # A device's workspaces are not the processor's.
    sizes = program.sizes(tape.events.requested_bytes, DeviceBytes.none(tape))
    live = program.live_by_category(sizes).sum(axis=0)
    peak = int(live.argmax())
    return _Life(tape, int(live[peak]), program.place(peak)[1])


def _setting(workload: Workload, life: _Life, effective: int, images: int | None) -> Setting:
    description, operators = life.tape.description, life.tape.operators
    micro = description.micro_batch_size
    of_step = operators.section == tapes.SECTIONS.index("micro_batch")
    flops = max(int(operators.flops[of_step].sum()), 1)
    speed = micro * _RATE_PER_CORE * num_cores() / flops
    return Setting(
        micro_batch_size=micro,
        accumulation_steps=effective // micro,
        effective_batch_size=effective,
        nominal_batch_size=workload.nominal_batch_size,
        precision="fp32",
        memory_format=description.memory_format,
        recompute=description.recompute,
        allocator="",
        devices=1,
        predicted=Predicted(
            allocated_peak_bytes=life.peak_bytes,
            reserved_peak_bytes=life.peak_bytes,
            device_used_peak_bytes=life.peak_bytes,
            peak_phase=life.peak_phase,
            images_per_second=speed,
            epoch_seconds=None if images is None else images / speed,
        ),
    )


def _facts(tape: tapes.Tape) -> WorkloadFacts:
    description = tape.description
    return WorkloadFacts(
        name=description.workload,
        img=description.image_size,
        precision=description.precision,
        memory_format=description.memory_format,
        optimizer=description.optimizer,
        recompute=description.recompute,
        parameters=description.parameters,
        objects_per_image=description.objects_per_image,
        assigner_parts=description.assigner_parts,
    )
