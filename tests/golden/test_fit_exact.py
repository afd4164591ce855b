"""Tapes recorded at two batches give the very tape of a third, for every network that matters.

Each network is recorded at three batches, two even and one odd. Two of them make a program, and the
program evaluated at the third is held against its recording, event by event: once within the range
(odd) and once beyond it (even). Images are small, because a recording's time is per operator.
"""

from functools import partial

import numpy as np
import pytest
from memplan_models import torchvision as classifiers
from memplan_models.yolov9 import names
from memplan_models.yolov9.workload import FAMILY

from memplan.fit.affine import Piece, fit
from memplan.fit.align import aligned
from memplan.parallel import map_processes
from memplan.trace.record import record

LOW, ODD, HIGH = 6, 11, 20
# A batch with more objects runs the same operators once more, so one network is enough for it.
CROWDED = "yolov9-s"

# Scratch of these is no line in the batch: as many thread blocks share the work as a row fills, and
# nothing is taken below a threshold. All else of theirs, and everything of other operators, is.
SCRATCH_IN_STEPS = {"aten.index_put.default"}

NETWORKS = [
    *((FAMILY.make, name, 64) for name in names()),
    *((classifiers.FAMILY.make, name, 64) for name in ("resnet50", "convnext_tiny", "swin_t")),
    (classifiers.FAMILY.make, "vit_b_16", 224),
    *((classifiers.FAMILY.make, name, 64) for name in ("mobilenet_v3_large", "efficientnet_b0")),
    *((classifiers.FAMILY.make, name, 64) for name in ("regnet_y_400mf", "vgg16")),
]


@pytest.fixture(params=NETWORKS, ids=[name for _, name, _ in NETWORKS], scope="module")
def tapes(request):
    """A network's tapes by batch."""
    make, name, image_size = request.param
    workload = make(name, image_size=image_size)
    if name != CROWDED:
        workload.make_crowded_batch = lambda _: None
    batches = [LOW, ODD, HIGH]
    made = map_processes(partial(record, workload), batches, doing="recording steps")
    return dict(zip(batches, made, strict=True))


def _program(low, high):
    """Return the program that two tapes make."""
    pair = aligned(low, high)

    assert pair is not None, "the structure changed"
    return Piece(*pair)


def _operators_off(expected, actual):
    """Return the operators whose bytes differ between two tapes that are the same otherwise."""
    pair = aligned(expected, actual)

    assert pair is not None, "the structure changed"
    expected, actual = pair
    for name in ("kind", "block", "asks", "about", "operator", "section"):
        assert np.array_equal(getattr(expected.events, name), getattr(actual.events, name)), name
    assert expected.description == actual.description
    assert expected.convolutions == actual.convolutions
    assert expected.launches == actual.launches
    assert expected.modules == actual.modules
    assert np.array_equal(expected.block_category, actual.block_category)
    assert np.array_equal(expected.operators.flops, actual.operators.flops)
    assert np.array_equal(expected.operators.moved_bytes, actual.operators.moved_bytes)
    off = np.flatnonzero(expected.events.requested_bytes != actual.events.requested_bytes)
    names = expected.operators.name[expected.events.operator[off]]
    return {expected.operator_names[name] for name in names}


@pytest.mark.slow
def test_a_program_of_two_tapes_is_exact_at_a_third(tapes):
    """Kinds, blocks, bytes and convolutions are those recorded, odd or even, inside or beyond.

    Only the scratch of a few operators is not, and the fit that sees all three names them.
    """
    odd = _operators_off(tapes[ODD], _program(tapes[LOW], tapes[HIGH]).tape(ODD))
    even = _operators_off(tapes[HIGH], _program(tapes[LOW], tapes[ODD]).tape(HIGH))
    fitted = fit(lambda batches: {b: tapes[b] for b in batches}, LOW, HIGH, lambda *_: ODD)

    assert (odd | even) <= SCRATCH_IN_STEPS
    assert odd == set(fitted.residual_bytes)
    assert (LOW, ODD, HIGH) == fitted.recorded_batches
    assert [(LOW, HIGH)] == [(piece.first_batch, piece.last_batch) for piece in fitted.pieces]
