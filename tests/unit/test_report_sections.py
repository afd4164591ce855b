"""Terminal and PDF show the same sections: every sentence and every cell of one is in the other."""

import dataclasses

import pytest
import report_samples

from memplan.plan_answers import (
    CardChoice,
    CardOption,
    CommandChange,
    CommandFit,
    Edge,
    ImageOption,
    SecondCard,
)
from memplan.present.plan import plan_sections
from memplan.present.probe import probe_sections
from memplan.present.section import Section, Table
from memplan.report.frame import BOTTOM, LEFT, WIDTH, text_width
from memplan.report.pages import report_figures
from memplan.report.sections_page import sections_figures
from memplan.report.theme import BOX_INCHES, PAPERS, on_paper
from memplan.spec import Split, StepSpec
from memplan.units import GIB

SPEC = StepSpec()
SPLIT = Split(micro_batch_size=8, accumulation_steps=8)
COMMON = {"spec": SPEC, "split": SPLIT, "device_used_peak_bytes": 5 * GIB}
RUN = {**COMMON, "budget_bytes": 20 * GIB, "images_per_second": 61.5}


def _plan():
    """A plan of which everything was asked."""
    change = CommandChange(
        options="--batch 8", command="memplan train --batch 8", runs_official=True,
        memory_change_bytes=-GIB, time_change_fraction=0.031, **COMMON,
    )  # fmt: skip
    fit = CommandFit(
        command="memplan train --batch 64", validation_batch_size=128, peak_period="first_step",
        images_per_second=77.0, fits=False, fits_card=False, over_bytes=3 * GIB,
        changes=(change,), assumptions=("Taken for granted: 20 objects.",), **COMMON,
    )  # fmt: skip
    edge = Edge(
        headroom_bytes=GIB, card_headroom_bytes=2 * GIB, expected_objects=41,
        objects_within_budget=333, objects_within_card=444, objects_tried=1000,
        validation_batch_size=16, validation_within_budget=57, validation_tried=64,
        next_micro_batch_size=9, next_peak_bytes=30 * GIB, multi_scale_side=960,
        multi_scale_peak_bytes=19 * GIB,
    )  # fmt: skip
    image = ImageOption(way="one image at a time", img=2048, time_factor=9.5, **RUN)
    card = CardOption(
        name="h200", capacity_bytes=140 * GIB, fits=True, images_per_joule=1.25, watts=700, **RUN
    )
    cards = CardChoice(
        cards=(card,), smallest="h200", fastest="h200", best_value="h200", value="images/s a watt"
    )
    second = SecondCard(
        spec=SPEC, split=SPLIT, first_rank_peak_bytes=7 * GIB, other_rank_peak_bytes=6 * GIB,
        bucket_bytes=GIB, images_per_second=111.0, ratio=1.83, epoch_seconds=600.0,
        epoch_seconds_alone=1100.0,
    )  # fmt: skip
    return dataclasses.replace(
        report_samples.sample_plan(), fit=fit, edge=edge, largest_image=(image,), cards=cards,
        second_card=second,
    )  # fmt: skip


def _words(figures):
    """Return all words of pages, in order, and a set of whole texts."""
    texts = [text.get_text() for figure in figures for text in figure.texts]
    return " ".join(" ".join(texts).split()), set(texts)


def _missing(sections, figures):
    """Return what sections say and pages do not."""
    words, texts = _words(figures)
    said = [line for one in sections for line in (*one.sentences, *one.after)]
    cells = [cell for one in sections if one.table for row in one.table.rows for cell in row]
    lines = [line for line in said if " ".join(line.split()) not in words]
    return lines + [cell for cell in cells if cell and cell not in texts]


def test_the_pdf_says_all_that_the_terminal_says():
    """Near the edge, command, largest image, second card and cards included."""
    plan, probe = _plan(), report_samples.sample_probe()
    sections = [*plan_sections(plan), *probe_sections(probe)]
    text = "\n".join(section.text for section in sections)
    figures = report_figures([probe], [plan], None, "memplan plan")

    assert [] == _missing(sections, figures)
    for words in ("333", "2048 px", "1.83 times", "fastest h200", "does not fit", "57 exceed"):
        assert words in text


@pytest.mark.parametrize("paper", PAPERS)
def test_a_long_section_goes_on_on_further_pages_within_their_edges(paper):
    """Two hundred rows of wide cells; nothing is left out and nothing leaves the page."""
    rows = tuple((f"row {i}", f"{'wide ' * 12}{i}", str(i)) for i in range(200))
    table = Table(header=("Name", "What", "Number"), rows=rows, left=2)
    section = Section(title="Much", sentences=("word " * 400,), table=table)
    with on_paper(paper):
        figures = sections_figures("Title", "", [section])
    _, texts = _words(figures)

    assert [] == [row[0] for row in rows if row[0] not in texts]
    for text in (text for figure in figures for text in figure.texts):
        x, y = text.get_position()
        page = text.get_figure(root=True).get_size_inches()
        margins = [(whole - box) / 2 for whole, box in zip(page, BOX_INCHES, strict=True)]
        width = text_width(text.get_text(), text.get_fontsize(), weight=text.get_fontweight())
        right = x * page[0] - margins[0] + (0 if text.get_ha() == "right" else width)
        assert right <= LEFT + WIDTH + 0.05
        assert (1 - y) * page[1] - margins[1] <= BOTTOM + 0.05


def test_narrow_sections_stand_beside_each_other_and_wide_ones_alone():
    """Headings of the first two share a line; the third is below both."""
    small = Table(header=("Name", "Number"), rows=(("a", "1"), ("b", "2")))
    wide = Table(header=("Name", "What"), rows=(("c", "wide " * 30),), left=2)
    sections = [
        Section(title="One", table=small),
        Section(title="Two", sentences=("Few words.",)),
        Section(title="Three", table=wide),
    ]
    (figure,) = sections_figures("Title", "", sections)
    at = {text.get_text(): text.get_position() for text in figure.texts}

    assert at["One"][1] == at["Two"][1]
    assert at["One"][0] < at["Two"][0]
    assert at["Three"][1] < min(at["b"][1], at["Few words."][1])
    assert at["One"][0] == at["Three"][0]
