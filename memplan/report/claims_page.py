"""An article's claims, each beside memplan's own figure and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from memplan._version import __version__
from memplan.report import theme
from memplan.report.fonts import MONO, SANS
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    line_height,
    new_page,
    number_pages,
    rule,
    wrap,
    write,
)
from memplan.report.pages import save_pages

_VERDICT_COLOURS = {
    "holds": theme.GREEN,
    "depends": theme.BLUE,
    "does not hold": theme.VERMILION,
}
_CLAIM_WIDTH, _FIGURE_WIDTH = 2.65, 3.7
_GAP = 0.25
_SIZE = 9.5


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, what memplan finds, and what follows."""

    text: str
    """What the article says."""
    found: tuple[str, ...]
    """memplan's figures, one a step that was recorded, each with its origin."""
    verdict: str
    """`holds`, `depends` or `does not hold`."""
    why: str


@theme.themed
def claims_figures(
    title: str, subtitle: str, claims: Sequence[Claim], facts: Sequence[tuple[str, str]]
) -> list[Figure]:
    """Return the pages: claims as rows, then how the figures came about.

    Args:
        title: of the pages.
        subtitle: what was recorded.
        claims: in the article's order.
        facts: names and what is said of them; `Command` is set in a fixed width.
    """
    figures = [new_page(title, subtitle)]
    y = _heading(figures[-1])
    for claim in claims:
        if y + _height(claim) > BOTTOM:
            figures.append(new_page(f"{title} (cont.)", subtitle))
            y = _heading(figures[-1])
        y = _write_claim(figures[-1], claim, y)
    figures.append(new_page("How these figures came about"))
    y = TOP
    for name, text in facts:
        family = MONO if name == "Command" else SANS
        write(figures[-1], LEFT, y, name, weight="bold")
        for line in wrap(text, WIDTH - 1.6, theme.BODY_POINTS, family=family):
            write(figures[-1], LEFT + 1.6, y, line, family=family)
            y += line_height(theme.BODY_POINTS)
        y += 0.12
    number_pages(figures, f"memplan {__version__}")
    return figures


def write_claims(path: Path, figures: Sequence[Figure]) -> None:
    """Write the pages as a PDF, replacing what is there.

    Raises:
        BadInputError: the file cannot be written.
    """
    save_pages(path, figures, "memplan: an article's claims")


def _columns() -> tuple[float, float, float]:
    """Return the left edges of claim, figures and verdict, inches."""
    second = LEFT + _CLAIM_WIDTH + _GAP
    return LEFT, second, second + _FIGURE_WIDTH + _GAP


def _heading(figure: Figure) -> float:
    for left, name in zip(_columns(), ("Claim", "memplan's figure", "Verdict"), strict=True):
        write(figure, left, TOP + 0.05, name, weight="bold")
    rule(figure, LEFT, TOP + 0.13, WIDTH, strong=True)
    return TOP + 0.36


def _lines(claim: Claim) -> tuple[list[str], list[str], list[str]]:
    """Return the wrapped lines of claim, figures and reason."""
    found = [line for one in claim.found for line in wrap(one, _FIGURE_WIDTH, _SIZE)]
    width = LEFT + WIDTH - _columns()[2]
    return wrap(claim.text, _CLAIM_WIDTH, _SIZE), found, wrap(claim.why, width, _SIZE)


def _height(claim: Claim) -> float:
    text, found, why = _lines(claim)
    return max(len(text), len(found), len(why) + 1) * line_height(_SIZE) + 0.2


def _write_claim(figure: Figure, claim: Claim, top: float) -> float:
    """Write one row and return where the next may begin, inches."""
    text, found, why = _lines(claim)
    first, second, third = _columns()
    step = line_height(_SIZE)
    for left, lines, start in ((first, text, top), (second, found, top), (third, why, top + step)):
        for i, line in enumerate(lines):
            write(figure, left, start + i * step, line, size=_SIZE)
    colour = _VERDICT_COLOURS[claim.verdict]
    write(figure, third, top, claim.verdict, size=_SIZE + 1, weight="bold", colour=colour)
    end = top + _height(claim)
    rule(figure, LEFT, end - 0.2, WIDTH)
    return end
