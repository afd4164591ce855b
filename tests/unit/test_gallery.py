"""The gallery in `reports/` is what its saved answers say: drawn anew, every page is the same."""

from pathlib import Path

import pypdf
import pytest

from memplan.answers import PlanAnswer, ProbeAnswer, load_answers
from memplan.present.diff import holdings_of
from memplan.report import write_report
from memplan.report.diff_pages import write_diff
from memplan.script_answer import ScriptAnswer

REPORTS = Path(__file__).parents[2] / "reports"
DATA = REPORTS / "data"
_KIND = {"probes": ProbeAnswer, "plans": PlanAnswer, "scripts": ScriptAnswer}


def _pages(path):
    """Return a document's pages as words."""
    return [" ".join(page.extract_text().split()) for page in pypdf.PdfReader(path).pages]


def _command(source, name):
    """Return the command of `scripts/reports`, which the last page states."""
    return f"memplan report reports/data/{source} --output reports/{name}.pdf --force"


@pytest.mark.parametrize(
    ("name", "source"), [("probe", "before"), ("plan", "plan"), ("script", "script")]
)
def test_answers_are_drawn_as_the_gallery_shows_them(tmp_path, name, source):
    """`scripts/reports` was run after the last change of pages or answers."""
    answers = load_answers(DATA / f"{source}.json")
    given = {k: [a for a in answers if isinstance(a, kind)] for k, kind in _KIND.items()}
    drawn = write_report(tmp_path / "drawn.pdf", **given, command=_command(f"{source}.json", name))

    assert _pages(REPORTS / f"{name}.pdf") == _pages(drawn)
    assert (REPORTS / f"{name}.pdf").stat().st_size < 2_000_000


def test_the_run_is_drawn_as_the_gallery_shows_it(tmp_path):
    """The records of a run that was trained are enough to draw it."""
    (plan,) = load_answers(DATA / "digits/plan.json")
    command = _command("digits", "run")
    drawn = write_report(
        tmp_path / "r.pdf", plans=[plan], run_folder=DATA / "digits", command=command
    )

    assert _pages(REPORTS / "run.pdf") == _pages(drawn)
    assert (REPORTS / "run.pdf").stat().st_size < 2_000_000


def test_the_diff_is_drawn_as_the_gallery_shows_it(tmp_path):
    """Two probes that differ in the optimizer."""
    pair = []
    for name in ("before", "after"):
        (answer,) = load_answers(DATA / f"{name}.json")
        pair.append(holdings_of(answer, f"reports/data/{name}.json"))
    write_diff(tmp_path / "d.pdf", [tuple(pair)])

    assert _pages(REPORTS / "diff.pdf") == _pages(tmp_path / "d.pdf")
