"""A step's time is the roofline over its operators, and never less than their launches."""

from dataclasses import replace

import numpy as np
import pytest
from trace_toy import Counted

from memplan import tape as tapes
from memplan.device import catalogue
from memplan.device.card import Rates
from memplan.evaluation.throughput import (
    images_per_second,
    operator_seconds,
)
from memplan.evaluation.waves import wasted_by_operator
from memplan.spec import StepSpec
from memplan.trace.record import record

UNMEASURED = Rates()
LAUNCH_SECONDS = UNMEASURED.launch_seconds
BANDWIDTH_FRACTION = UNMEASURED.bandwidth_fraction


@pytest.fixture(scope="module")
def tape():
    """The counted toy's tape at four images, in single precision."""
    return record(Counted(), 4, StepSpec(precision="fp32"))


@pytest.fixture
def card():
    """An RTX 3090."""
    return catalogue.card("rtx-3090")


def loaded(tape, *, flops=None, moved=None):
    """Return the tape with other work in each of its operators."""
    operators = tape.operators
    counts = {"flops": flops, "moved_bytes": moved}
    changed = {
        name: np.full_like(getattr(operators, name), value) for name, value in counts.items()
    }
    return replace(tape, operators=replace(operators, **changed))


def no_workspace(tape):
    """Return workspaces of no bytes."""
    return np.zeros(len(tape.convolutions), dtype=np.int64)


def test_short_operators_cost_their_launch(tape, card):
    """The toy's operators are all shorter than a launch."""
    seconds = operator_seconds(tape, card, no_workspace(tape))

    assert (len(tape.operators.flops),) == seconds.shape
    assert LAUNCH_SECONDS == seconds.min() == seconds.max()


def test_arithmetic_and_memory_bound_operators_cost_their_peak_rates(tape, card):
    """Work divided by the reachable part of the rate, whichever is longer."""
    busy = loaded(tape, flops=10**12, moved=0)
    moving = loaded(tape, flops=0, moved=10**11)

    convolves = np.array(["convolution" in name for name in tape.operator_names])
    peaks = np.where(convolves[tape.operators.name], card.tf32_flops, card.fp32_flops)
    idle = wasted_by_operator(tape, card.multiprocessors)
    arithmetic = idle * 10**12 / (UNMEASURED.fp32_fraction * peaks)
    memory = 10**11 / (BANDWIDTH_FRACTION * card.bandwidth_bytes_per_second)
    assert pytest.approx(arithmetic) == operator_seconds(busy, card, no_workspace(tape))
    assert pytest.approx(memory) == operator_seconds(moving, card, no_workspace(tape))
    both = operator_seconds(loaded(tape, flops=10**12, moved=10**11), card, no_workspace(tape))
    assert pytest.approx(np.maximum(arithmetic, memory)) == both


def test_convolutions_use_tf32_where_they_may(tape):
    """Single precision is TF32's rate for convolutions, unless that is switched off."""
    card = catalogue.card("a100-80gb")
    busy = loaded(tape, flops=10**12, moved=0)
    strict = replace(
        busy,
        description=replace(
            busy.description, spec=replace(busy.description.spec, allow_tf32=False)
        ),
    )

    seconds = operator_seconds(busy, card, no_workspace(tape))
    without = operator_seconds(strict, card, no_workspace(tape))

    ratios = set(np.round(seconds / without, 6))
    assert {1.0, round(card.fp32_flops / card.tf32_flops, 6)} == ratios
    idle = wasted_by_operator(tape, card.multiprocessors)
    assert pytest.approx(idle * 10**12 / (0.5 * card.fp32_flops)) == without


def test_measured_rates_replace_the_assumed_ones(tape, card):
    """Each of the three figures of a calibrated card takes effect where it decides."""
    rates = Rates(fp32_fraction=0.25, bandwidth_fraction=0.5, launch_seconds=1e-5, is_measured=True)
    measured = replace(card, rates=rates)

    def ratios(one):
        before, after = (operator_seconds(one, c, no_workspace(tape)) for c in (card, measured))
        return set(np.round(after / before, 6))

    assert {2.0} == ratios(tape)
    assert {2.0} == ratios(loaded(tape, flops=10**12, moved=0))
    assert {1.7} == ratios(loaded(tape, flops=0, moved=10**11))


def test_workspace_is_moved_in_both_directions(tape, card):
    """Only the operators that ask for a workspace get longer, by writing and reading it."""
    asked = np.unique(tape.events.operator[tape.events.asks == tapes.CONVOLUTION])
    workspace = np.full(len(tape.convolutions), 10**9, dtype=np.int64)

    seconds = operator_seconds(tape, card, workspace)

    longer = np.flatnonzero(seconds > LAUNCH_SECONDS)
    assert len(asked) > 0
    assert list(asked) == list(longer)
    rate = BANDWIDTH_FRACTION * card.bandwidth_bytes_per_second
    assert 2e9 / rate <= seconds[longer].min()


def test_rate_is_images_over_launches(tape, card):
    """The toy's rate is its images over the launches of the sections that a step runs."""
    sections = [tapes.SECTIONS[index] for index in tape.operators.section]
    micro = sections.count("micro_batch")
    once = sum(sections.count(name) for name in ("update", "release", "average"))

    for steps in (1, 8):
        rate = images_per_second(tape, card, no_workspace(tape), steps)
        assert pytest.approx(4 * steps / ((steps * micro + once) * LAUNCH_SECONDS)) == rate


def test_accumulation_shares_the_update(tape, card):
    """More micro-batches to an optimizer step are faster an image, never slower."""
    rates = [images_per_second(tape, card, no_workspace(tape), n) for n in (1, 2, 4, 64)]

    assert sorted(set(rates)) == rates


def test_faster_cards_are_faster(tape):
    """Where the work counts, the order of cards is that of their peaks."""
    busy = replace(loaded(tape, flops=10**12, moved=0))
    names = ["t4", "rtx-3090", "h200"]
    rates = [images_per_second(busy, catalogue.card(n), no_workspace(tape), 1) for n in names]

    assert sorted(set(rates)) == rates
