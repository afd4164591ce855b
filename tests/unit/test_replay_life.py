"""A life put together from sections equals the same life recorded as it happens."""

from functools import partial

import numpy as np
import pytest
from memplan_models import torchvision as classifiers
from memplan_models.yolov9.workload import YoloV9
from trace_toy import Counted, live_bytes, record_run, signature, train

from memplan import tape as tapes
from memplan.device.life import DeviceBytes, Life, Program
from memplan.spec import StepSpec
from memplan.trace.record import record

SETTINGS = {
    "amp-fp16": {},
    "fp32": {"precision": "fp32"},
    "bf16-channels-last": {"precision": "amp-bf16", "memory_format": "channels-last"},
    "adam": {"optimizer": "Adam"},
    "recompute": {"recompute": ("0", "3")},
}


def _assembled(tape, life):
    """Return the stream of a life put together from the tape's sections."""
    program = Program(tape, life)
    sizes = tape.events.requested_bytes[program.rows]
    return signature(program.kinds, program.blocks, sizes, program.asks, program.about), program


def _recorded(workload, batch, settings, run):
    events = record_run(workload, batch, settings, run)
    return signature(events.kind, events.block, events.requested_bytes, events.asks, events.about)


def _first_difference(one, other):
    """Return where two streams part, with their neighbourhoods; None where they are equal."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index, one[max(0, index - 3) : index + 4], other[max(0, index - 3) : index + 4]
    return None if len(one) == len(other) else (min(len(one), len(other)), len(one), len(other))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_steps_put_together_equal_two_steps_recorded(name, accumulation_steps):
    """First and second step, with and without accumulation: the same events in the same order."""
    workload = Counted(keeps_average=True)
    settings = StepSpec(**SETTINGS[name])

    assembled, _ = _assembled(
        record(workload, 2, settings), Life(accumulates=accumulation_steps > 1, num_steps=2)
    )
    recorded = _recorded(workload, 2, settings, train(2, accumulation_steps))

    assert _first_difference(recorded, assembled) is None


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_residual_network_put_together_equals_one_recorded(accumulation_steps):
    """The law holds where activations are shared and gradients meet, as in ResNet-18."""
    workload = classifiers.FAMILY.make("resnet18", image_size=64)
    settings = StepSpec()

    assembled, _ = _assembled(
        record(workload, 2, settings), Life(accumulates=accumulation_steps > 1, num_steps=2)
    )
    recorded = _recorded(workload, 2, settings, train(2, accumulation_steps))

    assert _first_difference(recorded, assembled) is None


def test_a_third_step_is_like_the_second():
    """Nothing grows from step to step: a life of two steps stands for any number."""
    workload = Counted(keeps_average=True)

    two = _recorded(workload, 2, StepSpec(), train(2, 1))
    three = _recorded(workload, 2, StepSpec(), train(3, 1))
    extra = len(three) - len(two)

    assert two == three[: len(two)]
    assert two[-extra:] == three[-extra:]


def test_validation_put_together_frees_what_it_allocates():
    """Validation leaves the memory as it found it, and the step after it runs as before it."""
    tape = record(Counted(keeps_average=True, validates=True), 2)

    with_validation, program = _assembled(tape, Life())
    without, _ = _assembled(tape, Life(validates=False, num_steps=2))

    assert live_bytes(without)[-1] == live_bytes(with_validation)[-1]
    assert {"validation"} <= {tapes.PERIODS[period] for period in np.unique(program.periods)}
    assert without == with_validation[: len(without)]


def test_an_accumulation_step_holds_the_gradients_that_are_there():
    """During the second micro-batch each gradient lives twice for a moment, then once."""
    workload = Counted()
    tape = record(workload, 2, StepSpec(precision="fp32"))
    parameters_bytes = 4 * tape.description.parameters

    lines, program = _assembled(tape, Life(accumulates=True))
    live = live_bytes(lines)
    at = partial(np.flatnonzero)
    first = at(program.periods == tapes.PERIODS.index("first_step"))
    second = at(program.periods == tapes.PERIODS.index("accumulation_step"))
    before = first[first < second[0]][-1]
    steps = np.split(second, np.flatnonzero(np.diff(second) > 1) + 1)

    assert live[before] == live[steps[0][-1]]
    assert live[first[0] - 1] + parameters_bytes == live[before]


def test_every_block_of_a_life_is_freed_at_most_once():
    """A free always follows the allocation it belongs to (`signature` checks it as it goes)."""
    tape = record(Counted(keeps_average=True, validates=True), 2)

    _, program = _assembled(tape, Life(accumulates=True))
    freed = program.blocks[program.kinds == tapes.FREE]

    assert len(set(freed.tolist())) == len(freed)


def test_steps_with_more_objects_equal_those_recorded_so():
    """Recorded with 20 and 40 objects, a step with 33 has the sizes of one recorded with 33."""
    few, exact = (
        record(YoloV9("yolov9-t", image_size=64, objects_per_image=objects), 2)
        for objects in (20, 33)
    )
    program = Program(few, Life(num_steps=2))
    none = DeviceBytes.none(few)
    rows = program.rows[program.periods == tapes.PERIODS.index("steady_step")]
    of_micro_batch = few.events.section[rows] == tapes.SECTIONS.index("micro_batch")

    at_33 = program.sizes(few.events.requested_bytes, none, (20, 33))
    as_recorded = program.sizes(few.events.requested_bytes, none)
    steady = program.periods == tapes.PERIODS.index("steady_step")

    assert (at_33[~steady] == as_recorded[~steady]).all()
    assert (at_33[steady] != as_recorded[steady]).any()
    expected = np.where(few.events.asks == tapes.KNOWN, exact.events.requested_bytes, 0)
    assert (expected[rows][of_micro_batch] == at_33[steady][of_micro_batch]).all()
