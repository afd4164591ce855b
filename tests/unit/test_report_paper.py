"""Paper of pages and fonts of names: A4 or Letter, and scripts that the usual font lacks."""

import pypdf
import pytest
import report_samples
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from memplan.report import fonts, theme, write_report
from memplan.report.frame import new_page, printable, text_width, write
from memplan.report.pages import save_pages

NAME = "\u6a21\u578b"  # "model" in Chinese


@pytest.mark.parametrize(("paper", "points"), [("a4", (842, 595)), ("letter", (792, 612))])
def test_pages_are_of_the_paper_asked_for(tmp_path, paper, points):
    """All of them; millimetres round to whole points."""
    plan = report_samples.sample_plan()
    path = write_report(tmp_path / "r.pdf", plans=[plan], command="memplan plan", paper=paper)
    sizes = {tuple(map(round, page.mediabox[2:])) for page in pypdf.PdfReader(path).pages}

    assert {points} == sizes


@pytest.mark.parametrize(
    ("variables", "paper"),
    [
        ({}, "a4"),
        ({"LANG": "de_DE.UTF-8"}, "a4"),
        ({"LANG": "en_US.UTF-8"}, "letter"),
        ({"LANG": "en_US.UTF-8", "LC_PAPER": "de_DE.UTF-8"}, "a4"),
        ({"LANG": "de_DE", "PAPERSIZE": "letter"}, "letter"),
        ({"PAPERSIZE": "foolscap", "LANG": "C.UTF-8"}, "a4"),
    ],
)
def test_the_usual_paper_is_that_of_the_place(monkeypatch, variables, paper):
    """`PAPERSIZE` goes before the locale, and what neither tells is A4."""
    for name in ("LC_ALL", "LC_PAPER", "LANG", "PAPERSIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert paper == theme.usual_paper()


def test_cyrillic_and_greek_are_written_with_the_usual_font():
    """It has them."""
    assert "\u043c\u043e\u0434\u0435\u043b\u044c \u03b1" == printable(
        "\u043c\u043e\u0434\u0435\u043b\u044c \u03b1"
    )


@pytest.fixture
def without_other_fonts(monkeypatch):
    """This machine with no font but matplotlib's own."""
    kept = [one for one in font_manager.fontManager.ttflist if one.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", kept)
    fonts.forget()
    yield
    fonts.forget()


@pytest.fixture
def other_font(tmp_path, request):
    """The same with a font of two Chinese characters, in TrueType outlines."""
    request.getfixturevalue("without_other_fonts")
    path = tmp_path / "other.ttf"
    _make_font(path)
    font_manager.fontManager.addfont(path)
    fonts.forget()


def _make_font(path):
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"u{ord(one):04X}" for one in NAME)]
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    pen.lineTo((100, 800))
    pen.lineTo((900, 800))
    pen.closePath()
    glyph = pen.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(one): name for one, name in zip(NAME, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(
        {"familyName": "Noto Sans Test", "styleName": "Regular", "psName": "NotoSansTest"}
    )
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.mark.usefixtures("without_other_fonts")
def test_without_a_font_names_are_written_as_code_points():
    """Nothing becomes a row of empty boxes."""
    assert r"run \u6a21\u578b" == printable(f"run {NAME}")


@pytest.mark.usefixtures("other_font")
def test_an_installed_font_writes_what_the_usual_one_lacks(tmp_path, caplog):
    """The name is text in the PDF, in an embedded TrueType font."""
    assert f"run {NAME}" == printable(f"run {NAME}")
    assert text_width(NAME, 10) == pytest.approx(2 * 10 / 72, rel=0.05)
    with theme.drawing():
        figure = new_page("A page")
        write(figure, 1.0, 2.0, f"run {NAME}")
    save_pages(tmp_path / "p.pdf", [figure])
    (page,) = pypdf.PdfReader(tmp_path / "p.pdf").pages
    embedded = page["/Resources"]["/Font"].values()

    assert f"run {NAME}" in page.extract_text()
    assert {"/Type0"} == {font.get_object()["/Subtype"] for font in embedded}
    assert any("Noto" in font.get_object()["/BaseFont"] for font in embedded)
    assert [] == caplog.records  # it has no bold weight, of which matplotlib would tell
