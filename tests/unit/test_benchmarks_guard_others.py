"""The faults that other people's remedies are compared by, on those that need no other package."""

import pytest

from benchmarks.guard_others_faults import BATCH, KINDS, NOTHING, STEPS
from benchmarks.guard_others_runs import run

_PLAIN, _GUARD, _TRAIN = (
    "a loop with nothing around it",
    "memplan.guard around that loop",
    "memplan train",
)
_FORWARD, _STEP, _VALIDATION = KINDS[2], KINDS[6], KINDS[7]


def test_a_run_that_nothing_hits_takes_the_recipes_steps():
    """24 of 8 samples each, none extra."""
    outcome = run(NOTHING, _PLAIN)

    assert ("", STEPS, 0.0) == (outcome.died, len(outcome.log.steps), outcome.extra_steps)


def test_a_loop_with_nothing_around_it_dies_where_it_is_hit():
    """After twelve steps, with the error that was raised."""
    outcome = run(_FORWARD, _PLAIN)

    assert ("OutOfMemoryError", 12) == (outcome.died, len(outcome.log.steps))
    assert outcome.recovery_seconds is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [(_FORWARD, _GUARD), (_STEP, _GUARD), (_FORWARD, _TRAIN), (_VALIDATION, _TRAIN)],
)
def test_memplan_loses_no_step_and_keeps_the_batch(kind, name):
    """Hit, and through to the end with the recipe's samples."""
    outcome = run(kind, name)

    assert "" == outcome.died
    assert outcome.log.raised
    assert [BATCH] * STEPS == [len(one) for one in outcome.log.steps]
