"""What grew between two answers: signs, order, kinds of files, and pages."""

import dataclasses

import pypdf
import pytest
import report_samples
from matplotlib.figure import Figure

from memplan.errors import BadInputError
from memplan.present.diff import change_words, changes, diff_json, diff_sections, holdings_of
from memplan.report.diff_pages import draw_changes, write_diff
from memplan.units import MIB

PROBE = report_samples.sample_probe()


def _grown():
    """The same probe with 100 MiB more activations and 10 MiB fewer inputs."""
    categories = dict(PROBE.categories_at_peak)
    categories["activation"] += 100 * MIB
    categories["input"] -= 10 * MIB
    rows = tuple(
        dataclasses.replace(r, device_used_peak_bytes=r.device_used_peak_bytes + 90 * MIB)
        for r in PROBE.batches
    )
    return dataclasses.replace(PROBE, categories_at_peak=categories, batches=rows)


def _pair():
    return holdings_of(PROBE, "a.json"), holdings_of(_grown(), "b.json")


def test_changes_are_largest_first_and_leave_out_what_stayed():
    """What is new began at nothing, what is gone ends there."""
    found = changes({"a": 5, "same": 1, "gone": 3}, {"a": 7, "same": 1, "new": 9})

    assert [("new", 0, 9), ("gone", 3, 0), ("a", 5, 7)] == found


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(MIB, 2 * MIB, "+1.00 MiB (+100.0%)"), (0, MIB, "+1.00 MiB"), (MIB, MIB, "0 B")],
)
def test_a_change_has_its_sign(before, now, expected):
    """A share only where there was something before."""
    assert expected == change_words(before, now)


def test_two_probes_differ_by_category():
    """The headline is the device-used peak's, the table the categories'."""
    sections = diff_sections(*_pair())
    table = next(one.table for one in sections if one.title == "By category")

    assert "90.0 MiB more device-used" in sections[0].sentences[0]
    assert ["activation", "input"] == [row[0] for row in table.rows]
    assert "+100 MiB" in table.rows[0][-1]
    assert "-10.0 MiB" in table.rows[1][-1]
    assert "By module: nothing changed." in [s for one in sections for s in one.sentences]


def test_json_has_the_same_in_bytes():
    """Every change by kind, before and now."""
    found = diff_json(*_pair())
    first = found["changes"]["category"][0]

    assert "memplan.diff/1" == found["schema"]
    assert "activation" == first["name"]
    assert 100 * MIB == first["now_bytes"] - first["before_bytes"]


def test_plans_compare_and_other_things_do_not():
    """A plan has peaks; a string is no answer."""
    plan = report_samples.sample_plan()

    assert "As much device-used" in diff_sections(*[holdings_of(plan, "p.json")] * 2)[0].text
    with pytest.raises(BadInputError, match="nothing that can be compared"):
        holdings_of("text", "x.json")


def test_bars_go_right_for_growth_and_left_for_less():
    """The bar's length is the change in bytes."""
    axes = Figure(figsize=(6, 3)).add_axes((0.3, 0.2, 0.6, 0.7))
    draw_changes(axes, [("a", MIB, 5 * MIB), ("b", 2 * MIB, 0)])

    assert [4 * MIB, -2 * MIB] == [bar.get_width() for bar in axes.patches]
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]


def test_pages_say_what_grew(tmp_path):
    """Numbers, bars and tables of the pair; a pair without a change too."""
    one, other = _pair()
    write_diff(tmp_path / "d.pdf", [(one, other), (one, one)])
    pages = [page.extract_text() for page in pypdf.PdfReader(tmp_path / "d.pdf").pages]

    assert "90.0 MiB more device-used" in pages[0]
    assert "Change by category" in pages[0]
    assert any("As much device-used" in page for page in pages)
