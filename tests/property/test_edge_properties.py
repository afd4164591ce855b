"""Whatever memory does with the batch: what is answered fits when recorded, and no more does."""

import functools
import random

import pytest
from growth_toy import Growing

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

ROOMY = CARD.with_capacity(CARD.context_bytes + 552 * MIB)


def fits(workload, batch, card):
    """Return whether a batch, recorded by itself, fits a card."""
    return replay(record(workload, batch, SETTINGS), card).fits


def drawn(seed):
    """Return a workload, batches and a card: linear, quadratic, stepwise terms, each there or not.

    Drawn from a seed alone. Hypothesis draws other values in each process, and one case that never
    ends would be shrunk for as long as the tests may take.
    """
    of = random.Random(seed)
    workload = Growing(
        width=of.choice([1 << 16, 1 << 18]),
        pairs=of.choice([0, 0, 8]),
        pair_copies=of.choice([1, 40]),
        chunk=of.choice([0, 0, 8, 32]),
        threshold=of.choice([0, 0, 20, 70]),
        odd=of.random() < 0.5,
    )
    batches = sorted({of.randint(1, 40) for _ in range(of.randint(1, 3))})
    return workload, batches, CARD.with_capacity(CARD.context_bytes + of.randint(40, 600) * MIB)


# An even batch takes less than the odd one before it; nothing was said of a million then.
FALLING = (Growing(width=1 << 18, chunk=32, odd=True), [8, 19, 22], ROOMY)


@pytest.mark.parametrize("batches", [(1, 8), (37, 37)])
def test_where_odd_batches_take_more_the_largest_even_one_is_found(batches):
    """Many an even batch fits whose next does not; the answer hangs on none that was asked for."""
    card = CARD.with_capacity(CARD.context_bytes + 175 * MIB)
    workload = Growing(width=1 << 16, chunk=32, odd=True)
    predictor = Predictor(
        lambda batch: record(workload, batch, SETTINGS), [Simulator(card)], Life(), *batches
    )

    assert 88 == predictor.largest_batch(0).batch


@pytest.mark.parametrize(
    ("workload", "batches", "card"), [FALLING, *map(drawn, range(30))], ids=range(31)
)
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


@pytest.mark.parametrize("effective", [16, 60, 96])
@pytest.mark.parametrize("seed", range(100, 105))
def test_the_chosen_plan_fits_when_recorded(seed, effective):
    """Whatever was read off other batches, the plan's own recording stays within the budget."""
    workload, _, card = drawn(seed)
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
