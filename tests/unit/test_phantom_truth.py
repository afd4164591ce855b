"""The prediction beside PyTorch's own code on a phantom card: a slice, and how it is told."""

import json
from dataclasses import replace

import pytest

from benchmarks import phantom_truth
from benchmarks.gpu.cases import Case
from benchmarks.phantom_life import IMPORTS, Comparison, compare, predicted_life
from benchmarks.phantom_sizes import noted_sizes
from memplan.device import catalogue
from memplan.errors import MemplanError
from memplan.phantom.child import PhantomChild

SMALL = Case(workload="yolov9-t", image_size=64, micro_batch_size=2)


@pytest.fixture(scope="module")
def child():
    """Return a child on a card with both kinds of engines."""
    with PhantomChild(catalogue.card("rtx-3090"), imports=IMPORTS) as child:
        yield child


def _compared(case, child):
    question = case.question(child.card)
    tape = question.record(case.micro_batch_size, question.step_spec)
    return compare(case, predicted_life(case, child.card, tape), child)


@pytest.mark.parametrize("changes", [{}, {"accumulation_steps": 2}])
def test_a_small_network_takes_on_the_phantom_what_is_predicted(child, changes):
    """Reserved bytes are equal, and nearly every block; no workspace differs."""
    found = _compared(replace(SMALL, **changes), child)

    assert found.predicted["reserved_peak_bytes"] == found.phantom["reserved_peak_bytes"]
    assert 0.95 < 2 * found.num_alike / (found.num_predicted + found.num_phantom)
    assert 0 < found.one_pixel.num_events == found.one_pixel.num_alike
    assert 0 < found.convolutions.num_events == found.convolutions.num_alike


@pytest.mark.parametrize("name", ["ssd300_vgg16", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_a_detector_takes_on_the_phantom_what_is_predicted(child, name):
    """Sizes that follow from values are told as recorded; every block is alike."""
    (case,) = (case for case in phantom_truth.cases() if case.workload == f"torchvision:{name}")
    question = case.question(child.card)
    with noted_sizes() as told:
        tape = question.record(case.micro_batch_size, question.step_spec)

    found = compare(case, predicted_life(case, child.card, tape), child, told)

    assert found.is_equal
    assert found.num_predicted == found.num_phantom == found.num_alike


def test_a_size_that_is_told_otherwise_is_refused(child):
    """A step that asks for other sizes than were recorded is not compared."""
    (case,) = (case for case in phantom_truth.cases() if "ssd300" in case.workload)
    question = case.question(child.card)
    with noted_sizes() as told:
        tape = question.record(case.micro_batch_size, question.step_spec)
    life = predicted_life(case, child.card, tape)

    with pytest.raises(MemplanError, match="The phantom card is asked for"):
        compare(case, life, child, [*told[:3], ("bincount", 3), *told[3:]])


def test_another_size_is_seen(child):
    """A prediction of another batch is not taken for the life of this one."""
    question = SMALL.question(child.card)
    tape = question.record(3, question.step_spec)
    found = compare(SMALL, predicted_life(SMALL, child.card, tape), child)

    assert 2 * found.num_alike / (found.num_predicted + found.num_phantom) < 0.9
    assert found.convolutions.num_alike < found.convolutions.num_events


def test_rows_are_kept_as_they_were(child):
    """What is written is read again, and told in a line."""
    found = _compared(SMALL, child)
    kept = Comparison.from_json(json.loads(json.dumps(found.to_json())))

    assert replace(found, differences=()) == kept
    assert phantom_truth._row(kept)[:2] == (SMALL.name, "rtx-3090 8.6")


def test_cases_have_names_of_their_own():
    """Rows are kept by name, so no two cases share one."""
    names = [case.name for case in phantom_truth.cases()]

    assert sorted(set(names)) == sorted(names)
