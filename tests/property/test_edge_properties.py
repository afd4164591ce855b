"""Whatever memory does with the batch: what is answered fits when recorded, and no more does."""

import functools

from growth_toy import Growing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memplan.device import catalogue
from memplan.device.life import Life
from memplan.device.replay import Simulator, replay
from memplan.errors import InfeasibleError
from memplan.fit.predictor import Predictor
from memplan.planner.search import Budget, Space, fits_budget, search
from memplan.spec import StepSpec
from memplan.trace.record import record

MIB = 1 << 20
CARD = catalogue.card("rtx-3090")
SETTINGS = StepSpec(precision="fp32")

# Linear, quadratic, stepwise and piecewise terms, each there or not.
workloads = st.builds(
    Growing,
    width=st.sampled_from([1 << 16, 1 << 18]),
    pairs=st.sampled_from([0, 0, 8]),
    pair_copies=st.sampled_from([1, 40]),
    chunk=st.sampled_from([0, 0, 8, 32]),
    threshold=st.sampled_from([0, 0, 20, 70]),
    odd=st.booleans(),
)
asked = st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True).map(sorted)
room = st.integers(40, 600).map(lambda size: CARD.with_capacity(CARD.context_bytes + size * MIB))

ROOMY = CARD.with_capacity(CARD.context_bytes + 552 * MIB)


def fits(workload, batch, card):
    """Return whether a batch, recorded by itself, fits a card."""
    return replay(record(workload, batch, SETTINGS), card).fits


@settings(max_examples=25, deadline=None, derandomize=True)
@given(workloads, asked, room)
# An even batch takes less than the odd one before it; nothing was said of a million then.
@example(Growing(width=1 << 18, chunk=32, odd=True), [8, 19, 22], ROOMY)
def test_the_largest_batch_fits_when_recorded_and_the_next_does_not(workload, batches, card):
    """Of random workloads on cards of random size, from whichever batches were asked about."""
    predictor = Predictor(
        lambda batch: record(workload, batch, SETTINGS),
        [Simulator(card)],
        Life(),
        batches[0],
        batches[-1],
    )
    found = predictor.largest_batch(0)

    assert found.is_edge
    assert not found.batch or fits(workload, found.batch, card)
    assert not fits(workload, found.batch + 1, card)
    for batch in (found.batch, found.batch + 1):
        if batch:
            expected = replay(record(workload, batch, SETTINGS), card)
            assert expected.device_used_peak_bytes == (
                predictor.peaks(0, batch).device_used_peak_bytes
            )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(workloads, room, st.sampled_from([16, 60, 96]))
def test_the_chosen_plan_fits_when_recorded(workload, card, effective):
    """Whatever was read off other batches, the plan's own recording stays within the budget."""
    space = Space(
        base=SETTINGS,
        effective_batch_size=effective,
        nominal_batch_size=64,
        rounding_fraction=0.05,
    )
    budget = Budget(capacity_bytes=card.capacity_bytes, safety_fraction=0.05)

    def recorder_of(configuration):
        return functools.partial(record, workload, spec=configuration)

    try:
        outcome = search(recorder_of, Simulator(card), space, budget, say=lambda _: None)
    except InfeasibleError:
        tape = record(workload, 1, SETTINGS)
        life = Life(accumulates=effective > 1)
        assert not fits_budget(replay(tape, card, life=life), budget)
        return
    chosen = outcome.chosen
    tape = record(workload, chosen.split.micro_batch_size, SETTINGS)
    peaks = replay(tape, card, life=Life(accumulates=chosen.split.accumulates))

    assert fits_budget(peaks, budget)
    assert peaks.device_used_peak_bytes == chosen.predicted.device_used_peak_bytes
