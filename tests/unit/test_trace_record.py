"""A recording of a toy holds the bytes that can be counted by hand, and no others."""

from collections import Counter

import numpy as np
import pytest
import torch
from trace_toy import Counted

from memplan import tape as tapes
from memplan.errors import BadInputError, UsageError
from memplan.fit.align import same_structure
from memplan.spec import StepSpec
from memplan.trace.record import record
from memplan.workload import OptimizerSettings

BATCH = 2
# Convolution 3 -> 4, batch norm's weight and bias, convolution 4 -> 8 and bias, linear and bias.
PARAMETERS = [3 * 4 * 9, 4, 4, 4 * 8 * 9, 8, 128 * 10, 10]
PARAMETER_BYTES = [4 * count for count in PARAMETERS]
# Running mean and variance, and the number of batches seen, int64.
BUFFER_BYTES = [16, 16, 8]
INPUT_BYTES = BATCH * 3 * 8 * 8 * 4
# What backward needs: the first convolution's output and the statistics of batch norm, ReLU's
# result, the second convolution's output, the linear's output; and the loss itself.
ACTIVATION_BYTES = [BATCH * 4 * 64 * 4, 16, 16, BATCH * 4 * 64 * 4, BATCH * 128 * 4, BATCH * 40, 4]


def _record(workload=None, batch=BATCH, **settings):
    return record(workload or Counted(), batch, StepSpec(**({"precision": "fp32"} | settings)))


def _allocated(tape, category, section=None):
    """Return the sizes of a category's blocks that are not empty, sorted."""
    events = tape.events
    rows = (events.kind == tapes.ALLOCATE) & (events.requested_bytes > 0)
    rows &= tape.block_category[events.block] == tapes.CATEGORY_INDEX[category]
    if section is not None:
        rows &= events.section == tapes.SECTIONS.index(section)
    return sorted(events.requested_bytes[rows].tolist())


def test_parameters_are_counted_to_the_byte():
    """Build allocates each parameter and buffer once, in float32."""
    tape = _record()

    assert sorted(PARAMETER_BYTES + BUFFER_BYTES) == _allocated(tape, "parameter")
    assert sum(PARAMETERS) == tape.description.parameters


def test_activations_are_counted_to_the_byte():
    """What forward keeps for backward is what the operators' formulas need, once each."""
    assert sorted(ACTIVATION_BYTES) == _allocated(_record(), "activation")


def test_gradients_are_counted_to_the_byte():
    """Each parameter gets one gradient of its size, and `release` frees them all."""
    tape = _record()
    events = tape.events
    gradients = tape.block_category[events.block] == tapes.CATEGORY_INDEX["gradient"]
    freed = (events.kind == tapes.FREE) & gradients

    assert sorted(PARAMETER_BYTES) == _allocated(tape, "gradient", "micro_batch")
    assert len(PARAMETERS) == freed.sum()
    assert {tapes.SECTIONS.index("release")} == set(events.section[freed].tolist())


def test_the_input_is_counted_to_the_byte():
    """The images are moved to the device once."""
    assert [INPUT_BYTES] == _allocated(_record(), "input")


@pytest.mark.parametrize(
    ("optimizer", "momentum", "copies"),
    [
        ("SGD", 0.0, 0),
        ("SGD", 0.9, 1),
        ("Adam", 0.9, 2),
        ("AdamW", 0.9, 2),
        ("RMSprop", 0.0, 1),
        ("LION", 0.9, 1),
    ],
)
def test_optimizer_state_appears_in_the_first_step_only(optimizer, momentum, copies):
    """SGD keeps one buffer a parameter, Adam two; the second step allocates none."""
    numbers = OptimizerSettings(momentum=momentum)
    spec = StepSpec(precision="fp32", optimizer=optimizer)
    tape = record(Counted(), 2, spec, numbers)

    assert sorted(PARAMETER_BYTES * copies) == _allocated(tape, "optimizer_state", "first_update")
    assert [] == _allocated(tape, "optimizer_state", "update")


def test_lion_holds_one_temporary_a_parameter():
    """Its step, as large as the parameters, lives beside them for the update, and no more."""
    tape = _record(optimizer="LION")
    kinds = ("temporary", "workspace", "activation")
    made = [size for kind in kinds for size in _allocated(tape, kind, "update")]

    assert sorted(PARAMETER_BYTES) == sorted(made)


def test_the_average_is_a_second_model():
    """Keeping an average allocates every parameter and buffer once more, at build."""
    one, two = _record(), _record(Counted(keeps_average=True))

    assert 2 * sum(_allocated(one, "parameter")) == sum(_allocated(two, "parameter", "build"))
    assert [] == _allocated(two, "parameter", "average")


@pytest.mark.parametrize("precision", ["fp32", "amp-fp16", "amp-bf16"])
def test_what_is_left_at_the_end_is_what_stays(precision):
    """After a step only parameters, averages, optimizer state and the scaler's scalars live."""
    tape = _record(Counted(keeps_average=True), precision=precision)
    events = tape.events
    live = Counter(events.block[events.kind == tapes.ALLOCATE].tolist())
    live.subtract(events.block[events.kind == tapes.FREE].tolist())
    sizes = np.zeros(len(tape.block_category), dtype=np.int64)
    allocates = (events.kind == tapes.ALLOCATE) & (events.asks == tapes.KNOWN)
    sizes[events.block[allocates]] = events.requested_bytes[allocates]
    left = sum(int(sizes[block]) for block, count in live.items() if count)
    # Loss scale and growth tracker, float32 and int32.
    scaler = 8 if precision == "amp-fp16" else 0

    assert set(live.values()) <= {0, 1}
    assert 2 * sum(PARAMETER_BYTES + BUFFER_BYTES) + sum(PARAMETER_BYTES) + scaler == left


def test_half_precision_halves_what_autocast_casts():
    """Under autocast the convolution's input and output are half, and its weight is cast once."""
    activations = _allocated(_record(precision="amp-fp16"), "activation")
    half_output = BATCH * 4 * 64 * 2

    assert BATCH * 4 * 64 * 4 not in activations
    assert activations.count(half_output) >= 2
    assert 3 * 4 * 9 * 2 in activations


def test_recording_twice_gives_the_same_tape():
    """No address, hash or garbage collection shows in a tape."""
    first = _record(precision="amp-fp16")

    for _ in range(5):
        second = _record(precision="amp-fp16")
        assert same_structure(first, second)
        assert np.array_equal(first.events.requested_bytes, second.events.requested_bytes)


def test_a_tape_knows_who_asked():
    """Each operator belongs to the module that ran, backward to the one that made its node."""
    tape = _record()
    operators = tape.operators
    of_convolution = {
        tapes.PHASES[phase]: tape.modules[module].path
        for name, module, phase in zip(
            operators.name, operators.module, operators.phase, strict=True
        )
        if "convolution" in tape.operator_names[name]
        and module >= 0
        and tape.modules[module].path == "3"
    }

    assert {"forward": "3", "backward": "3"} == of_convolution
    assert (BATCH, 8, 4, 4) == next(m.output_shape for m in tape.modules if m.path == "3")


def test_convolutions_are_counted_in_flops():
    """A forward convolution multiplies and adds once a weight and output place."""
    tape = _record()
    operators = tape.operators
    forward = [
        int(flops)
        for name, phase, flops in zip(operators.name, operators.phase, operators.flops, strict=True)
        if tape.operator_names[name] == "aten.convolution.default"
        and tapes.PHASES[phase] == "forward"
    ]

    assert [2 * BATCH * 64 * 4 * 27, 2 * BATCH * 16 * 8 * 36] == forward


def test_convolutions_ask_the_device_for_workspace():
    """Two forward convolutions, and the gradients that backward needs: no input's for the first."""
    kinds = Counter(problem.kind for problem in _record().convolutions)

    assert {"forward": 2, "input_gradient": 1, "weight_gradient": 2} == kinds


class _InPlace(Counted):
    def compute_loss(self, model, batch):
        x = model(batch["images"])
        if self.in_place:
            x.mul_(2).add_(1)
        loss = x.square().sum()
        return loss, loss.detach()[None]


def test_an_in_place_operator_allocates_nothing():
    """`mul_` and `add_` run on the device and leave its memory as it is."""
    tapes_of = []
    for in_place in (False, True):
        workload = _InPlace()
        workload.in_place = in_place
        tapes_of.append(_record(workload))
    forward = [tape.operators.phase == tapes.PHASES.index("forward") for tape in tapes_of]
    allocated = [
        sum(
            _allocated(tape, "activation", "micro_batch") + _allocated(tape, "input", "micro_batch")
        )
        for tape in tapes_of
    ]

    assert 2 == forward[1].sum() - forward[0].sum()
    assert allocated[0] == allocated[1]


class _Chooses(Counted):
    def compute_loss(self, model, batch):
        x = model(batch["images"])
        loss = x[x > 0].sum()
        return loss, loss.detach()[None]


class _Finds(Counted):
    def compute_loss(self, model, batch):
        x = model(batch["images"])
        loss = x.flatten()[(x > 0).flatten().nonzero()].sum()
        return loss, loss.detach()[None]


@pytest.mark.parametrize(
    ("workload", "operator"), [(_Chooses(), r"aten\.index"), (_Finds(), r"aten\.nonzero")]
)
def test_a_shape_that_depends_on_data_is_refused_by_name(workload, operator):
    """The operator is named, and what to do instead."""
    with pytest.raises(BadInputError, match=f"{operator}.*depends on data.*fixed output shape"):
        _record(workload)


def test_no_images_are_refused():
    """Batch 0 is a usage error."""
    with pytest.raises(UsageError, match="--batch 0 is below 1"):
        record(Counted(), 0)


@pytest.mark.parametrize(
    ("field", "value"), [("precision", "fp8"), ("memory_format", "channels-first")]
)
def test_settings_that_do_not_exist_are_refused(field, value):
    """The known values are listed."""
    with pytest.raises(UsageError, match=f"{value!r} is not one of"):
        StepSpec(**{field: value})


def test_recording_leaves_no_trace_in_the_process():
    """After a recording, tensors are real again and no module is watched."""
    _record()
    linear = torch.nn.Linear(2, 2)

    assert type(linear(torch.ones(1, 2)).detach()) is torch.Tensor
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.cuda.is_initialized()
