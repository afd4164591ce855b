"""The prediction beside PyTorch's own code on a phantom card: a slice, and how it is told."""

import json
from dataclasses import replace

import pytest

from benchmarks import phantom_truth
from benchmarks.gpu.cases import Case
from benchmarks.phantom_life import IMPORTS, Comparison, compare, predicted_life
from memplan.device import catalogue
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
