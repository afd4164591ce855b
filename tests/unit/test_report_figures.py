"""Figures hold what they promise; read from the artists, not from pixels."""

import dataclasses

import numpy as np
import pytest
import report_samples
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from memplan.present.run_record import read_run
from memplan.report import theme
from memplan.report.alternatives import alternatives_figure
from memplan.report.batches import batches_figure, draw_batches
from memplan.report.categories import category_table, draw_categories
from memplan.report.modules import modules_figure
from memplan.report.run import training_figure
from memplan.report.run_memory import draw_live_memory
from memplan.report.series import device_line, reserved_line
from memplan.report.settings import settings_table
from memplan.report.timeline import draw_timeline, timeline_figure

PROBE = report_samples.sample_probe()


def _axes():
    return Figure(figsize=(8, 4)).add_axes((0.1, 0.1, 0.8, 0.8))


def _texts(figure):
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]


def test_life_is_stacked_in_the_palettes_order_and_colours():
    """Each band of the life is one filled area in its colour, bottom to top."""
    axes = _axes()
    draw_timeline(axes, PROBE.timeline, capacity_bytes=24 << 30, card="rtx-3090")
    drawn = [
        (c.get_label(), to_hex(c.get_facecolor()[0]).upper())
        for c in axes.collections
        if not c.get_label().startswith("_")
    ]

    present = [b for b in theme.BANDS if b.name in PROBE.timeline.categories]
    assert [(band.label, band.fill) for band in present] == drawn


def test_top_of_the_stack_is_device_used_memory():
    """The highest vertex of the uppermost band is the device-used peak, in bytes."""
    axes = _axes()
    draw_timeline(axes, PROBE.timeline, capacity_bytes=24 << 30, card="rtx-3090")
    context = next(c for c in axes.collections if c.get_label() == "context")
    reserved = next(line for line in axes.lines if line.get_label() == "reserved")

    assert max(device_line(PROBE.timeline)) == context.get_paths()[0].vertices[:, 1].max()
    assert max(reserved_line(PROBE.timeline)) == np.max(reserved.get_ydata())


def test_a_life_that_does_not_fit_has_a_cross():
    """A cross marks the first sample above the capacity; a life that fits has none."""
    labels = []
    for capacity_bytes in (8 << 30, 24 << 30):
        axes = _axes()
        draw_timeline(axes, PROBE.timeline, capacity_bytes=capacity_bytes, card="a card")
        labels.append([line.get_label() for line in axes.lines])

    assert "out of memory" in labels[0]
    assert "out of memory" not in labels[1]


def test_life_page_names_phases_units_and_capacity():
    """Periods and phases stand above the plot, the axis has a unit, the capacity a value."""
    texts = _texts(timeline_figure(PROBE))

    assert {"first step", "forward", "backward", "Memory (GiB)"} <= set(texts)
    assert any("capacity of rtx-3090 23.6 GiB" in text for text in texts)


def test_batch_page_has_each_cards_capacity_and_largest_batch():
    """Every card gets a panel with its dashed capacity, its largest batch and residuals."""
    cards = [PROBE, report_samples.sample_probe(report_samples.A100)]
    figure = batches_figure(cards)
    texts = _texts(figure)

    assert 4 == len(figure.axes)
    assert {"rtx-3090", "a100-80gb", "Peak (GiB)", "Residual (MiB)"} <= set(texts)
    assert {"capacity 23.6 GiB", "capacity 79.3 GiB", "Micro-batch (images)"} <= set(texts)
    assert any("largest that fits: 31\n" in text for text in texts)
    assert any("largest that fits: 109\n79.2 GiB by the line" in text for text in texts)


def test_batches_beyond_the_recorded_ones_are_dotted():
    """A line is solid between the smallest and largest recorded batch only."""
    axes = _axes()
    draw_batches(axes, PROBE, top_bytes=50 << 30)
    solid = [line for line in axes.lines if line.get_label().strip("_") == "reserved"]
    spans = {line.get_linestyle(): list(line.get_xdata()) for line in solid}

    assert [2, 3, 4, 5] == spans["-"]
    assert 64 == spans["--"][-1]


def test_batches_that_do_not_fit_are_crosses():
    """Every cross lies on an evaluated batch above the capacity."""
    axes = _axes()
    draw_batches(axes, PROBE, top_bytes=50 << 30)
    crosses = next(line for line in axes.lines if line.get_label() == "out of memory")

    assert min(crosses.get_ydata()) > PROBE.gpu.capacity_bytes
    assert set(crosses.get_xdata()) <= set(range(32, 65))


def test_a_single_batch_draws_without_a_line_of_its_own():
    """One evaluated batch is a marker on the straight line of the fit."""
    axes = _axes()
    draw_batches(axes, report_samples.sample_probe(batches=(16,)), top_bytes=30 << 30)
    reserved = next(line for line in axes.lines if line.get_label() == "reserved")

    assert ([16], "D") == (list(reserved.get_xdata()), reserved.get_marker())


def test_memory_axes_start_at_zero():
    """No plot of memory hides its base."""
    for figure in (timeline_figure(PROBE), batches_figure([PROBE])):
        lows = [a.get_ylim()[0] for a in figure.axes if a.get_ylabel().startswith(("Mem", "Peak"))]
        assert [0.0] == lows


def test_modules_are_bars_with_the_largest_on_top():
    """Fifteen modules and the others; the bars' lengths are bytes, largest first."""
    axes = modules_figure([PROBE]).axes[0]
    widths = [bar.get_width() for bar in axes.patches]

    assert 16 == len(widths)
    assert sorted(widths[:15], reverse=True) == widths[:15]
    assert axes.yaxis_inverted()
    assert "model.0  Conv" == axes.get_yticklabels()[0].get_text()


def test_categories_fill_one_bar_a_card():
    """Segments lie end to end and sum to all categories."""
    axes = _axes()
    draw_categories(axes, [PROBE], width=8)
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    starts = [bar.get_x() for bar in axes.patches]

    assert [0, *ends[:-1]] == starts
    assert sum(PROBE.categories_at_peak.values()) == ends[-1]


def test_category_table_has_units_and_a_total():
    """The header names card and unit; the shares are of the sum."""
    header, rows = category_table([PROBE])

    assert ["Category", "rtx-3090 (GiB)", "share"] == header
    assert ["activation", "8.75", "85.9%"] in rows
    assert "100.0%" == rows[-2][-1]


def test_settings_table_has_a_column_a_card():
    """A card on which nothing fits has dashes, the others their figures with units."""
    nothing = dataclasses.replace(PROBE, recommended=None, largest_batch=0)
    header, rows = settings_table([PROBE, nothing])
    cells = {row[0]: row[1:] for row in rows}

    assert ["", "rtx-3090", "rtx-3090"] == header
    assert ["31", "none"] == cells["Largest micro-batch that fits"]
    assert ["12.44", "\u2013"] == cells["Predicted peak device-used (GiB)"]


def test_chosen_alternative_is_marked_within_the_budget():
    """The chosen point is the plan's own, and the budget is a dashed line."""
    plan = report_samples.sample_plan()
    axes = alternatives_figure(plan).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    used = plan.predicted.device_used_peak_bytes

    assert [used] == list(lines["chosen"].get_xdata())
    assert len(plan.alternatives) == len(lines["alternatives"].get_xdata())
    assert "Peak device-used (GiB)" == axes.get_xlabel()
    assert any(list(line.get_xdata()) == [plan.budget_bytes] * 2 for line in axes.lines)


def test_run_page_has_losses_and_map(tmp_path):
    """Training losses, validation losses and mAP each have a panel with named curves."""
    figure = training_figure(read_run(report_samples.write_run_folder(tmp_path / "exp")))
    titles = [axes.get_title(loc="left") for axes in figure.axes]

    assert ["mAP on the validation images", "Training losses", "Validation losses"] == titles
    assert {"mAP 0.5:0.95", "box loss", "Epoch"} <= set(_texts(figure))


def test_measured_memory_is_dots_and_predicted_a_line(tmp_path):
    """Shape tells measured from predicted."""
    axes = _axes()
    draw_live_memory(axes, read_run(report_samples.write_run_folder(tmp_path / "exp")))
    style = {line.get_label(): (line.get_marker(), line.get_linestyle()) for line in axes.lines}

    assert ("s", "None") == style["reserved, measured"]
    assert "None" == style["reserved, predicted"][0]
    assert "None" != style["reserved, predicted"][1]


@pytest.mark.parametrize("name", ["results.csv", "memory.csv"])
def test_a_missing_table_is_no_error(tmp_path, name):
    """A run that stopped early still has a record of the rest."""
    folder = report_samples.write_run_folder(tmp_path / "exp")
    (folder / name).unlink()
    run = read_run(folder)

    assert (name == "memory.csv") == bool(run.scores)
    assert (name == "results.csv") == bool(run.memory)


def test_columns_that_were_not_measured_are_absent(tmp_path):
    """A CPU run's empty fields are not drawn as zero."""
    folder = report_samples.write_run_folder(tmp_path / "exp", measured=False)

    assert {"predicted"} == {origin for origin, _ in read_run(folder).memory}


def test_a_cpu_runs_host_memory_is_drawn_as_measured(tmp_path):
    """Empty device columns are left out; resident host memory is dots over the run's steps."""
    lines = ["epoch,step,phase,predicted_reserved_bytes,live_reserved_bytes,host_resident_bytes"]
    lines += [f"1,{step},train,,,{500 << 20}" for step in (1, 10, 20)]
    (tmp_path / "memory.csv").write_text("\n".join(lines) + "\n")
    axes = _axes()
    draw_live_memory(axes, read_run(tmp_path))

    assert ["host-resident, measured"] == [line.get_label() for line in axes.lines]
    assert [1, 10, 20] == list(axes.lines[0].get_xdata())
    assert "Memory (MiB)" == axes.get_ylabel()


def test_a_large_card_does_not_squeeze_a_small_one():
    """Capacities of 24 and 80 GiB lie at the same height, whatever the batches of each."""
    cards = [PROBE, report_samples.sample_probe(report_samples.A100)]
    panels = [axes for axes in batches_figure(cards).axes if axes.get_ylabel() == "Peak (GiB)"]
    shares = [
        card.gpu.capacity_bytes / axes.get_ylim()[1]
        for card, axes in zip(cards, panels, strict=True)
    ]

    assert shares[0] == pytest.approx(shares[1])
    assert shares[0] > 0.6
