"""Small convolutions leave a part of a card idle; large ones do not."""

from dataclasses import replace

import numpy as np
import pytest
from trace_toy import Counted

from memplan import tape as tapes
from memplan.convolution import ConvolutionProblem
from memplan.evaluation.waves import wasted, wasted_by_operator
from memplan.spec import StepSpec
from memplan.trace.record import record

PROBLEM = ConvolutionProblem(
    kind="forward",
    dtype="float16",
    input=(1, 64, 16, 16),
    weight=(64, 64, 3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
)


def test_tiles_are_dealt_to_multiprocessors():
    """256 x 64 results are four tiles of 64 x 64: four of them fill four multiprocessors."""
    assert 1.0 == wasted(PROBLEM, 4)
    assert 2.0 == wasted(PROBLEM, 8)
    assert 20.0 == wasted(PROBLEM, 80)


def test_the_last_wave_is_paid_in_full():
    """Five images are 20 tiles; on 16 multiprocessors that is two waves of which 12 stand idle."""
    assert pytest.approx(32 / 20) == wasted(replace(PROBLEM, input=(5, 64, 16, 16)), 16)


@pytest.mark.parametrize("channels", [16, 48, 64, 200])
def test_a_huge_batch_wastes_hardly_anything(channels):
    """Whatever the number of channels, waves are full in the end."""
    problem = replace(PROBLEM, input=(4096, 64, 16, 16), weight=(channels, 64, 3, 3))

    assert 1.0 <= wasted(problem, 80) < 1.02


def test_images_never_wait_longer_in_a_larger_batch_of_full_waves():
    """Twice the images waste no more, as their tiles fill at least as many waves."""
    factors = [wasted(replace(PROBLEM, input=(2**n, 64, 16, 16)), 80) for n in range(12)]

    assert sorted(factors, reverse=True) == factors


def test_a_weight_gradient_fills_the_card():
    """Its long sums are split among thread blocks; an input gradient counts by its own shape."""
    assert 1.0 == wasted(replace(PROBLEM, kind="weight_gradient"), 80)
    strided = replace(PROBLEM, stride=(2, 2), kind="input_gradient")
    assert wasted(PROBLEM, 80) == wasted(strided, 80)
    assert wasted(replace(strided, kind="forward"), 80) == 4 * wasted(PROBLEM, 80)


def test_only_convolutions_waste():
    """Each operator has a factor: 1 for what is no convolution, a mean for two passes."""
    tape = record(Counted(), 4, StepSpec(precision="fp32"))

    factors = wasted_by_operator(tape, 80)

    convolves = tape.events.asks == tapes.CONVOLUTION
    asks = np.unique(tape.events.operator[convolves])
    assert (len(tape.operators.flops),) == factors.shape
    assert set(np.flatnonzero(factors > 1)) <= set(asks)
    assert factors.min() == 1.0 < factors.max()
    backward = [
        index
        for index in asks
        if "backward" in tape.operator_names[tape.operators.name[index]]
        and convolves[tape.events.operator == index].sum() == 2
    ]
    for index in backward:
        subjects = tape.events.about[convolves & (tape.events.operator == index)]
        passes = [wasted(tape.convolutions[one], 80) for one in subjects]
        assert pytest.approx(np.mean(passes)) == factors[index]
