"""Rates fitted to times are those that made the times."""

import numpy as np
import pytest
from trace_toy import Counted

from memplan.device.card import Rates
from memplan.device.catalogue import card
from memplan.errors import BadInputError
from memplan.evaluation.throughput import operator_seconds
from memplan.planner.rates import Stretch, fit_rates, stretches_of
from memplan.spec import StepSpec
from memplan.trace.record import record

TRUE = Rates(
    fp16_fraction=0.37,
    fp32_fraction=0.71,
    bandwidth_fraction=0.62,
    launch_seconds=3.3e-6,
    is_measured=True,
)


def stretch(precision, rng, noise=0.0):
    """Return a stretch of operators of all kinds, timed as `TRUE` says."""
    work = 10 ** rng.uniform(-7, -3, (2, 200))
    made = Stretch(precision, work[0], work[1], 1.0)
    seconds = made.predicted_seconds(TRUE) * np.exp(noise * rng.standard_normal())
    return Stretch(precision, work[0], work[1], seconds)


def test_the_rates_that_made_the_times_are_recovered():
    """Without noise, four rates come back from times of two precisions."""
    rng = np.random.default_rng(0)
    found = fit_rates([stretch(name, rng) for name in ("amp-fp16", "fp32") for _ in range(6)])

    assert ("amp-fp16", "fp32") == found.precisions
    for name in ("fp16_fraction", "fp32_fraction", "bandwidth_fraction", "launch_seconds"):
        assert pytest.approx(getattr(TRUE, name), rel=1e-3) == getattr(found.rates, name)
    assert found.median_error_fraction < 1e-4
    assert found.rates.is_measured
    assert Rates().bf16_fraction == found.rates.bf16_fraction


def test_noise_is_averaged():
    """Five per cent of noise leaves rates within a few per cent."""
    rng = np.random.default_rng(1)
    found = fit_rates([stretch("amp-fp16", rng, noise=0.05) for _ in range(40)])

    assert pytest.approx(TRUE.fp16_fraction, rel=0.1) == found.rates.fp16_fraction
    assert 0.01 < found.median_error_fraction < 0.08


def test_a_fraction_never_exceeds_the_whole():
    """Times below what the peak allows are not believed beyond it."""
    fast = Stretch("fp32", np.array([1.0]), np.array([0.0]), 0.5)

    fraction = fit_rates([fast]).rates.fp32_fraction
    assert pytest.approx(1.0, abs=1e-3) == fraction
    assert fraction <= 1.0


def test_nothing_measured_is_an_error():
    """There is no rate without a time."""
    with pytest.raises(BadInputError, match="Nothing was timed"):
        fit_rates([])


def test_a_tape_s_stretches_hold_all_its_timed_operators():
    """Sections and phases divide the operators; what was not timed or recorded is left out."""
    tape = record(Counted(), 4, StepSpec(precision="fp32"))
    workspace = np.zeros(len(tape.convolutions), dtype=np.int64)
    a100 = card("a100-80gb")
    seconds = {
        "micro_batch/forward": 1.0,
        "micro_batch/backward": 2.0,
        "micro_batch/transfer": 0.1,
        "update/optimizer_step": 0.5,
        "step/all": 9.0,
        "update/forward": 1.0,
    }

    found = stretches_of(tape, a100, workspace, seconds)

    assert [1.0, 2.0, 0.1, 0.5] == [one.seconds for one in found]
    predicted = sum(one.predicted_seconds(Rates()) for one in found)
    timed = np.isin(tape.operators.section, (1, 3))
    assert pytest.approx(operator_seconds(tape, a100, workspace)[timed].sum()) == predicted
