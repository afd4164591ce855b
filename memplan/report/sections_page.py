"""Pages that show an answer's sections: the same sentences and tables as in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from memplan.present.section import Section, Table
from memplan.report import theme
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    draw_table,
    line_height,
    new_page,
    row_height,
    shorten,
    table_width,
    wrap,
    write,
    write_lines,
)

_GAP = 0.22
_BETWEEN = 0.4
_HALF = (WIDTH - _BETWEEN) / 2
_SMALLEST = 5.0
# Text of tables beside each other is not smaller.
_READABLE = 8.0
# A table of at most so many rows is not parted.
_SMALL_TABLE = 14


class _Pages:
    """Pages of one title, filled from the top."""

    def __init__(self, title: str, subtitle: str) -> None:
        self._title, self._subtitle = title, subtitle
        self.figures: list[Figure] = []
        self.top = BOTTOM
        self.left, self.width = LEFT, WIDTH
        """Where it is written, inches."""

    def room_for(self, height: float) -> Figure:
        """Return the page with so much room left, inches; a new one where there is less."""
        if not self.figures or self.top + height > BOTTOM:
            self.figures.append(new_page(self._title, self._subtitle))
            self.top = TOP + 0.05
        return self.figures[-1]

    def heading(self, text: str, under: float) -> None:
        """Write a heading that stays with so many inches of what is under it."""
        figure = self.room_for(line_height(theme.LEAD_POINTS) + under)
        write(figure, self.left, self.top, text, size=theme.LEAD_POINTS, weight="bold")
        self.top += line_height(theme.LEAD_POINTS)

    def sentence(self, text: str) -> None:
        """Write a sentence, wrapped."""
        for line in wrap(text, self.width, theme.BODY_POINTS):
            figure = self.room_for(line_height(theme.BODY_POINTS))
            self.top = write_lines(figure, self.left, self.top, [line])

    def table(self, table: Table) -> None:
        """Draw a table as small as its columns need, over as many pages as its rows need."""
        size, rows = _fitted(table, self.width)
        align = "".join("l" if i < table.left else "r" for i in range(len(table.header)))
        while rows:
            step = row_height(size)
            figure = self.room_for(3 * step)
            count = max(1, int((BOTTOM - self.top) / step) - 2)
            now, rows = rows[:count], rows[count:]
            end = draw_table(
                figure, self.left, self.top - 0.1, table.header, now, align=align, size=size
            )
            self.top = end + 0.2

    def section(self, section: Section, *, has_heading: bool) -> None:
        """Write a section under what is there."""
        if has_heading:
            self.heading(section.title, _kept_together(section))
        for sentence in section.sentences:
            self.sentence(sentence.strip())
        if section.table is not None:
            if section.table.caption:
                self.sentence(section.table.caption)
            self.table(section.table)
        for sentence in section.after:
            self.sentence(sentence)
        self.top += _GAP

    def side_by_side(self, one: Section, other: Section) -> None:
        """Write two narrow sections beside each other, on one page."""
        self.room_for(max(_height(one), _height(other)))
        top, end = self.top, self.top
        for i, section in enumerate((one, other)):
            self.left, self.width, self.top = LEFT + i * (_HALF + _BETWEEN), _HALF, top
            self.section(section, has_heading=True)
            end = max(end, self.top)
        self.left, self.width, self.top = LEFT, WIDTH, end


def _goes_beside(one: Section, other: Section) -> bool:
    """Return whether two sections can be read beside each other, which tables are worth it for."""
    tables = [table for table in (one.table, other.table) if table is not None]
    is_narrow = all(
        table_width(table.header, table.rows, size=_READABLE) <= _HALF for table in tables
    )
    height = max(_height(one), _height(other))
    return bool(tables) and is_narrow and one.title != other.title and height <= BOTTOM - TOP - 0.1


def _height(section: Section) -> float:
    """Return the height of a section in half a page's width, inches."""
    said = [*section.sentences, *section.after]
    height = line_height(theme.LEAD_POINTS)
    if section.table is not None:
        said += [section.table.caption] if section.table.caption else []
        size, rows = _fitted(section.table, _HALF)
        height += (len(rows) + 1.75) * row_height(size)
    lines = sum(len(wrap(sentence.strip(), _HALF, theme.BODY_POINTS)) for sentence in said)
    return height + lines * line_height(theme.BODY_POINTS)


def _fitted(table: Table, width: float) -> tuple[float, list[tuple[str, ...]]]:
    """Return the text size at which a table is no wider than a column; long cells are cut."""
    rows = list(table.rows)
    size = float(theme.BODY_POINTS)
    while table_width(table.header, rows, size=size) > width and size > _SMALLEST:
        size -= 0.5
    most = width
    while table_width(table.header, rows, size=size) > width and most > 1:
        most *= 0.8
        rows = [tuple(shorten(cell, most, size, weight="bold") for cell in row) for row in rows]
    return size, rows


def _kept_together(section: Section) -> float:
    """Return how much stays on the heading's page, inches: a small table whole."""
    rows = 0 if section.table is None else len(section.table.rows)
    lines = 3 if rows > _SMALL_TABLE else 2 + rows + len(section.sentences)
    return lines * row_height(theme.BODY_POINTS)


@theme.themed
def sections_figures(title: str, subtitle: str, sections: Sequence[Section]) -> list[Figure]:
    """Return pages that show sections one under the other.

    Args:
        title: of each page.
        subtitle: a line or two under it.
        sections: in the order they are read; those of one title in a row share the heading.
    """
    pages = _Pages(title, subtitle)
    last = ""
    rest = list(sections)
    while rest:
        one = rest.pop(0)
        if rest and one.title != last and _goes_beside(one, rest[0]):
            last = rest[0].title
            pages.side_by_side(one, rest.pop(0))
            continue
        pages.section(one, has_heading=one.title != last)
        last = one.title
    return pages.figures
