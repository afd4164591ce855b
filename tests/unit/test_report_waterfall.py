"""Activations along the network and the largest tensors: order, sums, and what a tensor is."""

from types import SimpleNamespace

import numpy as np
import pytest
import report_samples
from matplotlib.figure import Figure

from memplan import tape as tapes
from memplan.advise.at_peak import tensors_at_peak
from memplan.report.series import along_network, group_modules
from memplan.report.waterfall import draw_waterfall, joined_steps, waterfall_figure
from memplan.tape import ModuleRecord

MODULES = report_samples.sample_modules()


def test_steps_run_along_the_network_and_end_at_the_sum():
    """Each bar stands where the one before it ended; the last ends at all activations."""
    axes = Figure(figsize=(8, 4)).add_axes((0.1, 0.1, 0.8, 0.8))
    groups = along_network(MODULES, depth=2)
    draw_waterfall(axes, groups)
    bars = axes.patches

    assert ["model.0", "model.1", "model.2"] == [group.path for group in groups[:3]]
    assert [0, *(bar.get_y() + bar.get_height() for bar in bars[:-1])] == pytest.approx(
        [bar.get_y() for bar in bars]
    )
    assert sum(m.activation_bytes for m in MODULES) == bars[-1].get_y() + bars[-1].get_height()


def test_many_steps_are_joined_without_losing_a_byte():
    """Neighbours become one step named after both ends."""
    groups = along_network(MODULES, depth=2)
    few = joined_steps(groups, 5)

    assert 5 == len(few)
    assert sum(g.activation_bytes for g in group_modules(MODULES, depth=2)) == sum(
        step.activation_bytes for step in few
    )
    assert any(" .. " in step.path for step in few)


def test_page_lists_tensors_with_shape_module_and_operator():
    """The table has size, category, shape, place and operator of each."""
    texts = {text.get_text() for text in waterfall_figure(report_samples.sample_probe()).texts}

    assert "16 x 64 x 160 x 160, 2 B" in texts
    assert "model.1.cv1.conv Conv2d, forward" in texts
    assert "convolution" in texts


def test_what_is_alive_at_the_peak_is_what_was_not_freed_before():
    """Of three blocks one is freed before the peak, one allocated after it; scratch counts."""
    kinds = np.array([tapes.ALLOCATE, tapes.ALLOCATE, tapes.FREE, tapes.SCRATCH, tapes.ALLOCATE])
    blocks = np.array([0, 1, 0, 2, 3])
    program = SimpleNamespace(kinds=kinds, blocks=blocks, rows=np.arange(5))
    tape = SimpleNamespace(
        events=SimpleNamespace(operator=np.zeros(5, int), block=blocks),
        operators=SimpleNamespace(module=np.zeros(1, int), name=np.zeros(1, int),
                                  phase=np.full(1, tapes.PHASES.index("forward"))),
        modules=(ModuleRecord(path="conv", type="Conv2d", output_shape=(4, 25)),),
        operator_names=("aten.convolution.default",),
        block_category=np.full(4, tapes.CATEGORY_INDEX["activation"]),
        tensor_of=lambda _: None,
    )  # fmt: skip
    alive = tensors_at_peak(program, tape, np.array([900, 200, 0, 500, 700]), 3)

    assert [500, 200] == [one.num_bytes for one in alive]
    assert ["workspace", "activation"] == [one.category for one in alive]
    assert [(), (4, 25)] == [one.shape for one in alive]
    assert [0, 2] == [one.element_bytes for one in alive]
