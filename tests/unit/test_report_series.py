"""What figures draw is computed right: bands, lines, residuals, module groups, positions."""

import dataclasses

import pytest
import report_samples

from memplan.answers import Timeline
from memplan.report import axes, frame, series

TIMELINE = Timeline(
    periods=(
        ("build", "transfer", 0),
        ("first_step", "forward", 1),
        ("first_step", "backward", 3),
    ),
    categories={
        "context": (5, 5, 5, 5),
        "activation": (0, 10, 20, 0),
        "parameter": (3, 3, 3, 3),
        "cached": (0, 0, 0, 20),
        "gradient": (0, 0, 0, 0),
    },
)


def test_bands_are_stacked_in_the_fixed_order():
    """Empty categories are left out and the rest ordered as in the palette."""
    names = [band.name for band, _ in series.stacked_bands(TIMELINE.categories)]

    assert ["parameter", "activation", "cached", "context"] == names


def test_an_unknown_category_is_unattributed():
    """A category this version has no colour for is added to unattributed, never dropped."""
    bands = series.stacked_bands({"novelty": (1, 2), "unattributed": (3, 4)})

    assert [("unattributed", [4, 6])] == [(band.name, values) for band, values in bands]


def test_reserved_leaves_out_the_context():
    """Reserved is every category but the context; device-used is all of them."""
    assert [3, 13, 23, 23] == series.reserved_line(TIMELINE)
    assert [8, 18, 28, 28] == series.device_line(TIMELINE)


def test_periods_join_their_phases():
    """A period spans its phases; the last ends with the samples."""
    spans = [(s.label, s.start, s.stop) for s in series.period_spans(TIMELINE)]

    assert [("build", 0, 1), ("first_step", 1, 4)] == spans


def test_residuals_are_bytes_off_the_line():
    """A residual is the reserved peak minus base and bytes an image times the batch."""
    probe = report_samples.sample_probe(batches=(2,))
    line = report_samples.BASE + 2 * report_samples.PER_IMAGE

    assert [(2, probe.batches[0].reserved_peak_bytes - line)] == series.residuals(probe)


def test_lines_split_where_the_recorded_batches_end():
    """Pieces share end points and say whether they lie within what was recorded."""
    points = [(1, 10), (2, 20), (3, 30), (4, 40)]

    expected = [(False, points[:2]), (True, points[1:3]), (False, points[2:])]
    assert expected == series.split_by_recorded(points, (2, 3))


def test_modules_are_summed_under_their_path():
    """A group holds its members' activations, their largest workspace and its own type."""
    groups = series.group_modules(report_samples.sample_modules(), depth=2)
    first = groups[0]

    assert ("model.0", "Conv", 4) == (first.path, first.type, first.num_modules)
    assert 100 * report_samples.MIB == first.workspace_bytes
    assert sum(m.activation_bytes for m in report_samples.sample_modules()) == sum(
        group.activation_bytes for group in groups
    )


def test_small_groups_become_others():
    """No byte is lost when the small groups are put together."""
    groups = series.group_modules(report_samples.sample_modules(), depth=2)
    few = series.largest_groups(groups, 5)

    assert "26 others" == few[-1].path
    assert sum(g.activation_bytes for g in groups) == sum(g.activation_bytes for g in few)


def test_depth_grows_until_there_is_something_to_see():
    """Two parts of a path are kept, more where a wrapper hides the blocks."""
    modules = report_samples.sample_modules()
    wrapped = [dataclasses.replace(m, path=f"module.net.{m.path}") for m in modules]

    assert 2 == series.readable_depth(modules)
    assert 4 == series.readable_depth(wrapped)
    assert 1 == series.readable_depth(())


def test_labels_are_spread_without_changing_order():
    """Labels closer than the gap move apart evenly, the others stay."""
    assert [0.5, 1.5, 9.0] == pytest.approx(axes.spread([0.9, 1.1, 9.0], 1.0))
    assert [2.0, 1.0] == pytest.approx(axes.spread([1.5, 1.5 - 1e-9], 1.0))


def test_wrapped_lines_fit_their_width():
    """No line is wider than asked, words are kept whole where they can be, nothing is lost."""
    text = "a few words and one-very-long-word-without-a-break-in-it of many letters"
    lines = frame.wrap(text, 1.2, 10)

    assert max(frame.text_width(line, 10) for line in lines) <= 1.2
    assert text.replace(" ", "") == "".join(lines).replace(" ", "")


def test_characters_without_a_glyph_are_escaped():
    """A path in a script the font lacks is written with escapes instead of boxes."""
    assert "run \\u8bad" == frame.printable("run \u8bad")
