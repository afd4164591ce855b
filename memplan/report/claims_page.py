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
    write_lines,
)
from memplan.report.pages import save_pages

_VERDICT_COLOURS = {
    "holds": theme.GREEN,
    "depends": theme.BLUE,
    "does not hold": theme.VERMILION,
}
_CLAIM_WIDTH, _FIGURE_WIDTH = 2.65, 3.7
_GAP = 0.25
_SIZES = (9.5, 9.0, 8.5)
"""Of claims, points: the largest that needs no more pages than the others."""
_FACT_INDENT, _FACTS_APART = 1.6, 0.15


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
    drawn = [_pages(title, subtitle, claims, facts, size) for size in _SIZES]
    figures = min(drawn, key=len)  # of as many pages, the largest text
    number_pages(figures, f"memplan {__version__}")
    return figures


def _pages(
    title: str,
    subtitle: str,
    claims: Sequence[Claim],
    facts: Sequence[tuple[str, str]],
    size: float,
) -> list[Figure]:
    """Return the pages with claims in a text size, points; facts share the last if they can."""
    figures = [new_page(title, subtitle)]
    y = _heading(figures[-1])
    for claim in claims:
        if y + _height(claim, size) > BOTTOM:
            figures.append(new_page(f"{title} (cont.)", subtitle))
            y = _heading(figures[-1])
        y = _write_claim(figures[-1], claim, y, size)
    heading = "How these figures came about"
    under = y + _FACTS_APART
    if under + line_height(theme.LEAD_POINTS) + _facts_height(facts) <= BOTTOM + 0.2:
        write(figures[-1], LEFT, under, heading, size=theme.LEAD_POINTS, weight="bold")
        _write_facts(figures[-1], facts, under + line_height(theme.LEAD_POINTS) + 0.05)
    else:
        figures.append(new_page(heading))
        _write_facts(figures[-1], facts, TOP)
    return figures


def _fact_lines(fact: tuple[str, str]) -> tuple[list[str], str]:
    """Return a fact's wrapped lines and their family of fonts."""
    family = MONO if fact[0] == "Command" else SANS
    return wrap(fact[1], WIDTH - _FACT_INDENT, theme.BODY_POINTS, family=family), family


def _facts_height(facts: Sequence[tuple[str, str]]) -> float:
    num_lines = sum(len(_fact_lines(fact)[0]) for fact in facts)
    return num_lines * line_height(theme.BODY_POINTS) + 0.12 * len(facts)


def _write_facts(figure: Figure, facts: Sequence[tuple[str, str]], y: float) -> None:
    """Write names and what is said of them, from a baseline downwards, inches."""
    for fact in facts:
        lines, family = _fact_lines(fact)
        write(figure, LEFT, y, fact[0], weight="bold")
        y = write_lines(figure, LEFT + _FACT_INDENT, y, lines, family=family) + 0.12


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


def _lines(claim: Claim, size: float) -> tuple[list[str], list[str], list[str]]:
    """Return the wrapped lines of claim, figures and reason."""
    found = [line for one in claim.found for line in wrap(one, _FIGURE_WIDTH, size)]
    width = LEFT + WIDTH - _columns()[2]
    return wrap(claim.text, _CLAIM_WIDTH, size), found, wrap(claim.why, width, size)


def _height(claim: Claim, size: float) -> float:
    text, found, why = _lines(claim, size)
    return max(len(text), len(found), len(why) + 1) * line_height(size) + 0.2


def _write_claim(figure: Figure, claim: Claim, top: float, size: float) -> float:
    """Write one row and return where the next may begin, inches."""
    text, found, why = _lines(claim, size)
    first, second, third = _columns()
    step = line_height(size)
    for left, lines, start in ((first, text, top), (second, found, top), (third, why, top + step)):
        write_lines(figure, left, start, lines, size=size)
    colour = _VERDICT_COLOURS[claim.verdict]
    write(figure, third, top, claim.verdict, size=size + 1, weight="bold", colour=colour)
    end = top + _height(claim, size)
    rule(figure, LEFT, end - 0.2, WIDTH)
    return end
