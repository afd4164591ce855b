"""An empty page with its title, and text, tables and axes placed on it in inches."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from memplan.report import theme
from memplan.report.fonts import SANS, families, has_glyph

LEFT = 0.5
"""Left and right margin within the box that every paper holds, inches."""
WIDTH = theme.BOX_INCHES[0] - 2 * LEFT
TOP = 1.5
"""Where a page's content starts under its title, inches from the top edge."""
BOTTOM = theme.BOX_INCHES[1] - 0.65
"""Where a page's content ends above its footer, inches from the top edge."""


def new_page(title: str, subtitle: str = "") -> Figure:
    """Return an empty page with a title and up to two quiet lines under it."""
    figure = Figure(figsize=theme.page_inches(), facecolor=theme.PAPER)
    size = theme.TITLE_POINTS
    while size > theme.HEADING_POINTS and text_width(title, size, weight="bold") > WIDTH:
        size -= 1
    write(figure, LEFT, 0.78, shorten(title, WIDTH, size, weight="bold"), size=size, weight="bold")
    quiet = theme.BODY_POINTS
    while quiet > theme.SUBTITLE_POINTS and text_width(subtitle, quiet) > WIDTH:
        quiet -= 0.25  # rather than a second line of one word
    for i, line in enumerate(wrap(subtitle, WIDTH, quiet)[:2]):
        write(figure, LEFT, 1.04 + 0.2 * i, line, size=quiet, colour=theme.QUIET_INK)
    return figure


def page_title(figure: Figure) -> str:
    """Return the title of a page, which is what was written on it first."""
    return figure.texts[0].get_text() if figure.texts else ""


def number_pages(figures: Sequence[Figure], footer: str) -> None:
    """Write `footer` and "n of N" at the foot of every page."""
    y = theme.BOX_INCHES[1] - 0.3
    for i, figure in enumerate(figures, start=1):
        style = {"size": theme.SMALL_POINTS, "colour": theme.QUIET_INK}
        write(figure, LEFT, y, shorten(footer, WIDTH - 1, theme.SMALL_POINTS), **style)  # type: ignore[arg-type]
        right = f"{i} of {len(figures)}"
        write(figure, LEFT + WIDTH, y, right, align="right", **style)  # type: ignore[arg-type]


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return new axes; all four in inches, `left` and `top` from the box's upper left corner."""
    page_width, page_height = figure.get_size_inches()
    x, y = on_page(figure, left, top + height)
    return figure.add_axes((x, y, width / page_width, height / page_height))


def content_end(figure: Figure) -> float:
    """Return how far down a page is filled, inches from the box's upper edge, its footer aside."""
    height = float(figure.get_size_inches()[1])
    above = (height - theme.BOX_INCHES[1]) / 2
    places = [text.get_position()[1] for text in figure.texts]
    places += [float(np.min(line.get_ydata())) for line in figure.lines]
    lowest = [height * (1 - place) for place in places]
    for axes in figure.axes:
        extent = axes.get_tightbbox()
        lowest += [] if extent is None else [height - extent.y0 / figure.dpi]
    return max(lowest, default=above + TOP) - above


def on_page(figure: Figure, left: float, top: float) -> tuple[float, float]:
    """Return a place in the box that every paper holds, inches, as fractions of the page.

    Args:
        figure: the page.
        left: from the box's left edge, inches.
        top: from the box's upper edge, inches.
    """
    page_width, page_height = figure.get_size_inches()
    box_width, box_height = theme.BOX_INCHES
    x = left + (page_width - box_width) / 2
    y = top + (page_height - box_height) / 2
    return x / page_width, 1 - y / page_height


def write(
    figure: Figure,
    left: float,
    baseline: float,
    text: str,
    *,
    size: float = theme.BODY_POINTS,
    colour: str = theme.INK,
    weight: str = "normal",
    align: Literal["left", "center", "right"] = "left",
    family: str = SANS,
) -> Text:
    """Write one line; position in inches from the box's upper left corner."""
    x, y = on_page(figure, left, baseline)
    return figure.text(
        x,
        y,
        printable(text, family),
        fontsize=size,
        color=colour,
        fontweight=weight,
        ha=align,
        va="baseline",
        family=families(family),
    )


def write_lines(
    figure: Figure,
    left: float,
    baseline: float,
    lines: Sequence[str],
    *,
    size: float = theme.BODY_POINTS,
    colour: str = theme.INK,
    weight: str = "normal",
    family: str = SANS,
) -> float:
    """Write lines under each other and return the baseline after the last, inches."""
    for line in lines:
        write(figure, left, baseline, line, size=size, colour=colour, weight=weight, family=family)
        baseline += line_height(size)
    return baseline


def line_height(size: float) -> float:
    """Return the distance of two baselines, inches, for text of `size` points."""
    return 1.45 * size / 72


def rule(figure: Figure, left: float, y: float, width: float, *, strong: bool = False) -> None:
    """Draw a thin horizontal line; inches from the box's upper left corner."""
    start, at = on_page(figure, left, y)
    stop, _ = on_page(figure, left + width, y)
    line = Line2D(
        [start, stop],
        [at, at],
        color=theme.QUIET_INK if strong else theme.RULE,
        linewidth=0.9 if strong else 0.5,
    )
    figure.add_artist(line)


@functools.lru_cache(maxsize=1 << 15)
def text_width(text: str, size: float, *, weight: str = "normal", family: str = SANS) -> float:
    """Return the width of one line, inches."""
    if not text:
        return 0.0
    properties = FontProperties(family=families(family), weight=weight, size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(
        printable(text, family), properties, ismath=False
    )
    return float(width) / 72


def printable(text: str, family: str = SANS) -> str:
    r"""Return `text` with each character that no font has written as `\uXXXX`."""
    text = " ".join(text.split("\n"))
    return "".join(
        c if c.isprintable() and has_glyph(c, family) else f"\\u{ord(c):04x}" for c in text
    )


def wrap(
    text: str, width: float, size: float, *, weight: str = "normal", family: str = SANS
) -> list[str]:
    """Return `text` as lines no wider than `width` inches; a long word is cut."""
    lines: list[str] = []
    line = ""
    for raw in text.split():
        word = raw
        joined = f"{line} {word}" if line else word
        if text_width(joined, size, weight=weight, family=family) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while text_width(word, size, weight=weight, family=family) > width and len(word) > 1:
            cut = _longest_prefix(word, width, size, weight=weight, family=family)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line] if line else lines


def _longest_prefix(word: str, width: float, size: float, *, weight: str, family: str) -> int:
    """Return how many characters of `word` fit in `width` inches, at least one."""

    def is_wider(cut: int) -> bool:
        return text_width(word[:cut], size, weight=weight, family=family) > width

    # By halves: a word of thousands of letters is measured a dozen times.
    return 1 + bisect.bisect_left(range(2, len(word)), True, key=is_wider)


def shorten(
    text: str, width: float, size: float, *, weight: str = "normal", family: str = SANS
) -> str:
    """Return `text`, its middle replaced by an ellipsis where it is wider than `width` inches."""
    if text_width(text, size, weight=weight, family=family) <= width:
        return text

    def keeping(keep: int) -> str:
        head = (keep + 1) // 2
        return f"{text[:head]}…{text[len(text) - (keep - head) :]}"

    def is_wider(keep: int) -> bool:
        return text_width(keeping(keep), size, weight=weight, family=family) > width

    keep = 1 + bisect.bisect_left(range(2, len(text)), True, key=is_wider)
    return keeping(keep) if keep > 1 else "…"


def draw_table(
    figure: Figure,
    left: float,
    top: float,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    align: str,
    size: float = theme.BODY_POINTS,
    gap: float = 0.28,
    emphasised: int | None = None,
) -> float:
    """Draw a table and return where it ends, inches from the top edge.

    Args:
        figure: the page.
        left: left edge, inches.
        top: upper edge, inches from the top of the page.
        header: column titles, units included; left out where all are empty.
        rows: the cells as text.
        align: one letter a column, `l` or `r`.
        size: points.
        gap: space between columns, inches.
        emphasised: index of the row in bold.
    """
    edges = _column_edges(left, header, rows, size, gap)
    step = row_height(size)
    width = edges[-1] - gap - left
    y = top - step * 0.25
    if any(header):
        y = top + step * 0.75
        _draw_row(figure, edges, header, y, align=align, size=size, gap=gap, weight="bold")
        rule(figure, left, y + step * 0.3, width, strong=True)
    for i, row in enumerate(rows):
        y += step
        weight = "bold" if i == emphasised else "normal"
        _draw_row(figure, edges, row, y + 0.04, align=align, size=size, gap=gap, weight=weight)
    rule(figure, left, y + step * 0.42, width)
    return y + step


def row_height(size: float) -> float:
    """Return the distance of two rows of `draw_table`, inches; the first lies 1.75 below."""
    return line_height(size) * 1.08


def table_width(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, size: float, gap: float = 0.28
) -> float:
    """Return how wide `draw_table` draws this table, inches."""
    return _column_edges(0.0, header, rows, size, gap)[-1] - gap


def _column_edges(
    left: float, header: Sequence[str], rows: Sequence[Sequence[str]], size: float, gap: float
) -> list[float]:
    """Return the left edge of each column and of the one after the last, inches."""
    edges = [left]
    for column in zip(header, *rows, strict=True):
        widest = max(text_width(cell, size, weight="bold") for cell in column)
        edges.append(edges[-1] + widest + gap)
    return edges


def _draw_row(
    figure: Figure,
    edges: Sequence[float],
    cells: Sequence[str],
    y: float,
    *,
    align: str,
    size: float,
    gap: float,
    weight: str,
) -> None:
    for i, (cell, side) in enumerate(zip(cells, align, strict=True)):
        if side == "r":
            write(figure, edges[i + 1] - gap, y, cell, size=size, weight=weight, align="right")
        else:
            write(figure, edges[i], y, cell, size=size, weight=weight)
