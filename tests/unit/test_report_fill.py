"""How pages are filled: none is half empty, and what is short goes under what is there."""

import functools
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from memplan.answers import PlanAnswer, ProbeAnswer, load_answers
from memplan.present.diff import holdings_of
from memplan.present.run_record import read_run
from memplan.present.section import Section, Table
from memplan.report.diff_pages import diff_figures
from memplan.report.facts_page import facts_figures
from memplan.report.frame import BOTTOM, LEFT, TOP, WIDTH, new_page, write
from memplan.report.pages import report_figures
from memplan.report.sections_page import sections_figures
from memplan.report.theme import drawing, on_paper
from memplan.script_answer import ScriptAnswer
from tests.unit import report_samples

DATA = Path(__file__).parents[2] / "reports" / "data"
# "About half": of what lies between title and footer.
LEAST_FILLED = 0.48
GALLERY = ("before", "plan", "script", "run", "diff")


def _filled(figure):
    """Return which share of a page's height its artists reach down to, the footer aside."""
    height = figure.get_size_inches()[1]
    places = [height * (1 - text.get_position()[1]) for text in figure.texts]
    places += [height - axes.get_tightbbox().y0 / figure.dpi for axes in figure.axes]
    return (max(place for place in places if place < BOTTOM + 0.2) - TOP) / (BOTTOM - TOP)


@functools.cache
def _figures(name):
    """Return the pages of one of the gallery's reports."""
    with on_paper("a4"), drawing():
        return _drawn(name)


def _drawn(name):
    if name == "diff":
        pair = [holdings_of(load_answers(DATA / f"{n}.json")[0], n) for n in ("before", "after")]
        return diff_figures(*pair)
    answers = load_answers(DATA / ("digits/plan.json" if name == "run" else f"{name}.json"))
    probes, plans, scripts = (
        [one for one in answers if isinstance(one, kind)]
        for kind in (ProbeAnswer, PlanAnswer, ScriptAnswer)
    )
    run = read_run(DATA / "digits") if name == "run" else None
    return report_figures(probes, plans, run, "memplan report", scripts)


@pytest.mark.parametrize("name", GALLERY)
def test_no_page_of_the_gallery_is_half_empty(name):
    """Whatever is drawn or written on a page reaches below its middle, or nearly."""
    shares = [_filled(figure) for figure in _figures(name)]

    assert [] == [(i, share) for i, share in enumerate(shares, 1) if share < LEAST_FILLED]


@pytest.mark.parametrize("name", GALLERY)
def test_no_words_of_the_gallery_lie_on_others(name):
    """Titles, labels, ticks and cells: of no two do the extents share more than an edge."""
    found = []
    for number, figure in enumerate(_figures(name), 1):
        with drawing():
            figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
        for (one, box), (other, beside) in combinations(boxes, 2):
            shared = Bbox.intersection(box, beside)
            if shared is not None and shared.width > 2 and shared.height > 3:
                found.append((number, one, other))

    assert [] == found


def _texts(figure):
    return [text.get_text() for text in figure.texts]


def _page(end):
    """Return a page with a line at a height, inches."""
    figure = new_page("First")
    write(figure, LEFT, end, "What is there")
    return figure


def _small(title, count=3):
    rows = tuple((f"{title} {i}", str(i)) for i in range(count))
    return Section(title=title, table=Table(header=("Name", "Number"), rows=rows))


@pytest.mark.parametrize("end", [2.0, 6.5])
def test_sections_go_under_a_page_where_all_have_room(end):
    """There the title is a heading and no page is made; else the page stays as it was."""
    after = _page(end)
    figures = sections_figures("Words", "", [_small("One"), _small("Two")], after=after)

    assert (["First", "What is there"] == _texts(after)) == (end > 6)
    assert end > 6 or figures == []
    words = [text for figure in (after, *figures) for text in _texts(figure)]
    assert 1 == words.count("Words")
    assert {"One 2", "Two 2"} <= set(words)


def test_columns_hold_their_tables_whole_and_above_the_footer():
    """Four narrow tables fill a page in two columns: none is parted, none leaves the page."""
    sections = [_small(title, count) for title, count in (("A", 6), ("B", 9), ("C", 7), ("D", 8))]
    (figure,) = sections_figures("Words", "", sections)
    height = figure.get_size_inches()[1]

    assert 4 == _texts(figure).count("Name")
    assert all(height * (1 - text.get_position()[1]) <= BOTTOM + 0.05 for text in figure.texts)
    assert 2 == len({text.get_position()[0] for text in figure.texts if text.get_text() in "ABCD"})


def test_a_long_narrow_table_is_two_halves_beside_each_other():
    """Every row is there once, the second half right of the first."""
    section = _small("Row", 30)
    (figure,) = sections_figures("Words", "", [section])
    at = {text.get_text(): text.get_position() for text in figure.texts}

    assert all(at[row[0]] for row in section.table.rows)
    assert at["Row 0"][1] == at["Row 15"][1]
    assert at["Row 0"][0] < at["Row 15"][0] < (LEFT + WIDTH) / figure.get_size_inches()[0]


@pytest.mark.parametrize(
    ("end", "num_options", "num_pages", "is_shared"),
    [(2.0, 1, 0, True), (3.5, 60, 1, True), (7.0, 1, 1, False)],
)
def test_facts_share_a_page_that_is_half_empty(end, num_options, num_pages, is_shared):
    """Under little all of them, under more the first, under a full page none; each fact once."""
    probe, after = report_samples.sample_probe(), _page(end)
    command = "memplan probe " + "--option value " * num_options
    figures = facts_figures([probe], [], command, after=after)
    words = [text for figure in (after, *figures) for text in _texts(figure)]

    assert num_pages == len(figures)
    assert is_shared == ("Command" in _texts(after))
    assert all(words.count(name) == 1 for name in ("Command", "Card", "Versions", "Time taken"))
    assert all(_filled(figure) >= LEAST_FILLED for figure in (after, *figures))
