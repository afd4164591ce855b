"""What would make a training fit is tried as a plan would run it: all devices, the same images."""

import pytest
from trace_toy import Counted

from memplan.api import Question
from memplan.api.crowds import Crowds
from memplan.api.planning import plan_one, recordings_of
from memplan.api.question import silent
from memplan.api.remedies import NoPlanError, _Refused
from memplan.device import catalogue
from memplan.planner.search import NothingFitsError, search
from memplan.planner.space import Budget, Space
from memplan.spec import StepSpec

MIB = 1 << 20


@pytest.fixture(name="question", scope="module")
def _question():
    room = catalogue.card("t4").context_bytes + 200 * MIB
    return Question(
        workload=Counted(),
        gpus=("t4",),
        capacity_bytes=room,
        devices=2,
        spec=StepSpec(precision="fp32"),
    )


def test_a_change_that_changes_nothing_takes_what_the_search_said(question):
    """Two devices have a communicator and gradient buckets, in the search and in its remedies."""
    recordings, (simulator,) = recordings_of(question), question.simulators()
    space = Space(base=question.step_spec, effective_batch_size=4, nominal_batch_size=64, devices=2)
    budget = Budget(capacity_bytes=simulator.card.capacity_bytes, safety_fraction=0.9)
    with pytest.raises(NothingFitsError) as nothing:
        search(recordings, simulator, space, budget, say=silent)
    least = nothing.value.least
    refused = _Refused(
        question=question,
        simulator=simulator,
        space=space,
        budget=budget,
        least=least,
        recordings=recordings,
        crowds=Crowds.of(question, None, None),
    )

    peaks = refused.peaks(question, refused.tape())

    assert least.predicted.device_used_peak_bytes == peaks.device_used_peak_bytes
    assert 2 == least.split.devices


def test_a_larger_card_is_named_with_what_it_takes_there(question):
    """The change's bytes are those of a plan for that card with as many devices."""
    with pytest.raises(NoPlanError) as refusal:
        plan_one(question, effective_batch_size=2, safety_fraction=0.9, free=())
    change = next(one for one in refusal.value.answer.changes if one.what.startswith("--gpu"))
    own = Question(
        workload=Counted(), gpus=(change.what.split()[1],), devices=2, spec=question.spec
    )
    plan = plan_one(own, effective_batch_size=2, safety_fraction=0.9, free=())
    same = [one for one in plan.alternatives if one.split == refusal.value.answer.least.split]

    assert [change.device_used_peak_bytes] == [one.predicted.device_used_peak_bytes for one in same]
