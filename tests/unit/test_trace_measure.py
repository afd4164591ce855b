"""A life run for real follows the order in which lives are put together, and is timed by phase."""

import itertools

import pytest
import torch
from trace_toy import Counted

from memplan import tape as tapes
from memplan.device.life import Life, Program
from memplan.spec import StepSpec
from memplan.step.run import TrainingStep
from memplan.trace.measure import (
    Batches,
    OutsideGauge,
    Timing,
    measure,
    outside_by_phase,
    run_life,
    with_random_images,
)
from memplan.trace.record import record

CPU = torch.device("cpu")
PLAIN = StepSpec(precision="fp32")


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("validates", [False, True])
def test_sections_run_in_the_order_of_a_life(accumulates, validates):
    """What is measured is the life that is predicted, section by section."""
    workload = Counted(keeps_average=True, validates=validates)
    step = TrainingStep(workload, PLAIN, CPU)
    ran = []
    run_life(step, Batches.of(workload, 2), accumulates=accumulates, begin=ran.append)

    tape = record(workload, 2, PLAIN)
    program = Program(tape, Life(accumulates=accumulates))
    sections = tape.events.section[program.rows]
    planned = [
        "accumulation" if tapes.PERIODS[period] == "accumulation_step" else tapes.SECTIONS[section]
        for section, period, _ in (
            key for key, _ in itertools.groupby(
                zip(sections.tolist(), program.periods.tolist(), program.steps.tolist(),
                    strict=True)
            )
        )
    ]  # fmt: skip
    # A section leaves no event where it allocates nothing.
    quiet = set(ran) - set(planned)
    assert quiet <= {"update", "average", "checkpoint"}
    assert planned[1:] == [one for one in ran if one not in quiet]


def test_a_cpu_tells_times_and_nothing_of_memory():
    """Every phase of a step has its repeats; what only a card knows is None."""
    found, snapshot = measure(
        Counted(keeps_average=True), 2, PLAIN, CPU, accumulation_steps=3,
        timing=Timing(warmup=1, repeats=4),
    )  # fmt: skip

    phases = {"forward", "backward", "transfer"}
    wanted = {f"micro_batch/{name}" for name in phases}
    wanted |= {"update/optimizer_step", "average/average", "step/all"}
    assert wanted == set(found.seconds)
    assert {4} == {len(values) for values in found.seconds.values()}
    parts = sum(found.seconds[f"micro_batch/{name}"][0] for name in phases)
    assert 3 * parts <= found.seconds["step/all"][0]
    assert snapshot is None
    assert found.loss > 0
    assert (None, None, None, {}, "") == (
        found.allocated_peak_bytes,
        found.reserved_peak_bytes,
        found.device_used_peak_bytes,
        found.outside_bytes,
        found.out_of_memory,
    )


def test_without_timing_no_step_is_timed():
    """A verdict needs the life alone."""
    found, _ = measure(Counted(), 1, PLAIN, CPU)

    assert ({}, None) == (found.seconds, found.loss)


def test_no_step_begins_after_the_most_seconds():
    """A slow step is timed once."""
    found, _ = measure(
        Counted(), 1, PLAIN, CPU, timing=Timing(warmup=0, repeats=50, most_seconds=0.0)
    )

    assert 1 == len(found.seconds["step/all"])


def test_images_are_noise_and_labels_stay():
    """Four dimensions make an image; the same noise every time."""
    batch = {
        "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "labels": torch.zeros(2, dtype=torch.int64),
        "boxes": torch.full((2, 5, 4), 0.5),
    }
    found, again = with_random_images(batch), with_random_images(batch)

    assert found["images"].float().std() > 10
    assert torch.equal(found["images"], again["images"])
    assert found["labels"] is batch["labels"]
    assert found["boxes"] is batch["boxes"]


def test_memory_outside_the_allocator_is_unknown_without_a_card():
    """The same operators run; nothing is claimed of a card."""
    assert {} == outside_by_phase(CPU)
    assert OutsideGauge(None).read() is None
