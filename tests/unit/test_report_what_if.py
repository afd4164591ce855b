"""What would change a probe's answer, and how far predictions of its kind of card were off."""

import csv
import dataclasses

import pytest
import report_samples
from matplotlib.figure import Figure
from trace_toy import Counted

import memplan
from benchmarks.card_truth import page
from benchmarks.card_truth.shipped import SHIPPED, shipped_text
from benchmarks.common import RESULTS
from memplan.advise import Question
from memplan.advise.what_if import changes
from memplan.answers import ProbeAnswer
from memplan.present.published import accuracy_section, farthest_off, published, rows_like
from memplan.present.what_if import change_words, ranked, what_if_section
from memplan.report.accuracy_page import accuracy_figure, draw_errors
from memplan.report.what_if_page import draw_changes, what_if_figure
from memplan.spec import StepSpec

PROBE = report_samples.sample_probe()


def _axes():
    return Figure(figsize=(8, 4)).add_axes((0.3, 0.1, 0.6, 0.8))


@pytest.fixture(scope="module")
def answer():
    """A probe of the counted network that says what changes would do."""
    return memplan.probe(
        Counted(validates=True), gpu="rtx-3090", batch=4, precision="fp32", what_if=True
    )


def test_changes_are_what_a_plan_would_try_and_another_optimizer():
    """fp32 in place of half precision is none: it only takes more."""
    question = Question(workload=Counted(), gpus=("t4",), spec=StepSpec(optimizer="AdamW"))
    options = [change.options for change in changes(question)]

    assert [
        "--precision amp-bf16",
        "--memory-format channels-last",
        "--optimizer SGD",
        "--allocator expandable_segments:True",
    ] == [one for one in options if "recompute" not in one]


def test_first_stands_the_training_as_asked(answer):
    """Its figures are those of the batch's row and of the edge."""
    (row,) = answer.batches
    asked = answer.what_if[0]

    assert "" == asked.options
    assert row.device_used_peak_bytes == asked.device_used_peak_bytes
    assert answer.largest_batch == asked.largest_batch


def test_a_change_is_what_a_probe_of_it_says(answer):
    """AdamW keeps two numbers a parameter; the replay of the change has them."""
    one = next(one for one in answer.what_if if one.options == "--optimizer AdamW")
    probe = memplan.probe(
        Counted(validates=True), gpu="rtx-3090", batch=4, precision="fp32", optimizer="AdamW"
    )

    assert probe.batches[0].device_used_peak_bytes == one.device_used_peak_bytes
    assert probe.batches[0].allocated_peak_bytes == one.allocated_peak_bytes
    assert abs(probe.largest_batch - one.largest_batch) <= 1
    assert () == probe.what_if


def test_changes_are_saved_and_read_back(answer):
    """They are part of the answer's JSON."""
    assert answer.what_if == ProbeAnswer.from_json(answer.to_json()).what_if


def test_those_that_save_most_come_first_and_refused_ones_last():
    """As asked stands above all."""
    rows = ranked(PROBE)

    assert ["as asked", "lean", "AdamW", "amp-bf16"] == [change_words(r, rows[0]) for r in rows]


def test_the_section_says_what_is_saved_and_why_not():
    """A saving has no sign, more memory has a minus; the reason for a refusal is a sentence."""
    section = what_if_section(PROBE)
    saves = {row[0]: row[2] for row in section.table.rows}

    assert {"as asked": "", "lean": "4.98", "AdamW": "-0.25", "amp-bf16": "-"} == saves
    assert "For the first: --lean" in section.after
    assert "amp-bf16: No card here has it." in section.after


def test_without_changes_there_is_neither_section_nor_page():
    """A plain probe is as short as before."""
    assert "" == what_if_section(dataclasses.replace(PROBE, what_if=())).text


def test_bars_are_the_peaks_in_bytes():
    """A refused change has an empty bar."""
    axes = _axes()
    rows = ranked(PROBE)
    draw_changes(axes, rows, capacity_bytes=PROBE.gpu.capacity_bytes)

    assert [row.device_used_peak_bytes for row in rows] == [bar.get_width() for bar in axes.patches]


def test_the_page_has_savings_and_largest_batches_of_each_card():
    """Two cards, each with its numbers beside the bars."""
    other = report_samples.sample_probe(report_samples.A100)
    texts = {text.get_text() for text in what_if_figure([PROBE, other]).texts}

    assert {"rtx-3090 (23.6 GiB)", "a100-80gb (79.3 GiB)", "lean", "4.98", "50", "Saves"} <= texts


def test_the_package_ships_the_rows_of_the_benchmark():
    """`python -m benchmarks.card_truth` writes both; neither goes without the other."""
    assert shipped_text(page.read_csv(RESULTS / f"{page.NAME}.csv")) == SHIPPED.read_text()


def test_a_kind_of_card_has_the_rows_of_its_compute_capability():
    """An RTX 3090 is told of the RTX 3060, which is of its generation."""
    rows = rows_like(report_samples.RTX_3090)

    assert {"rtx-3060-12gb"} == {row.card for row in rows}
    assert len(rows) == sum(one["compute_capability"] == "8.6" for one in _shipped())


def _shipped():
    return list(csv.DictReader(SHIPPED.read_text().splitlines()))


def test_where_there_is_no_row_it_says_so_and_shows_all():
    """Nobody published a training on such a card with its memory."""
    gpu = dataclasses.replace(report_samples.A100, name="h200", compute_capability="9.0")

    assert () == rows_like(gpu)
    assert accuracy_section(gpu).sentences[0].startswith("No published training on a card of")
    assert accuracy_figure(gpu).axes


def test_errors_beyond_the_axis_stand_at_its_edge():
    """Every training that did not run out has a mark."""
    axes = _axes()
    rows = published()
    draw_errors(axes, rows)
    heights = [y for line in axes.lines for y in line.get_ydata() if line.get_marker() != "None"]

    assert sum(not row.ran_out for row in rows) == len(heights)
    assert max(map(abs, heights)) <= 0.4


def test_the_worst_rows_have_their_source():
    """Largest error first."""
    rows = farthest_off(published(), 3).rows

    assert 3 == len(rows)
    assert all(row[-1] for row in rows)
    assert sorted((abs(float(row[5][:-1])) for row in rows), reverse=True) == [
        abs(float(row[5][:-1])) for row in rows
    ]
