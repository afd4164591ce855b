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
_COLUMN_GAP = 0.13
_SMALLEST = 5.0
# Text of tables in two columns is not smaller.
_READABLE = 7.0
# A table of at most so many rows is not parted.
_SMALL_TABLE = 14


class _Pages:
    """Pages of one title, filled column by column from the top."""

    def __init__(self, title: str, subtitle: str, columns: int) -> None:
        self._title, self._subtitle = title, subtitle
        self._columns = columns
        self._column = columns
        self.figures: list[Figure] = []
        self.top = BOTTOM

    @property
    def size(self) -> float:
        """Points of sentences."""
        return theme.BODY_POINTS - (self._columns - 1)

    @property
    def width(self) -> float:
        """The width of a column, inches."""
        return (WIDTH - _BETWEEN * (self._columns - 1)) / self._columns

    @property
    def left(self) -> float:
        """The left edge of the column that is being filled, inches."""
        return LEFT + self._column * (self.width + _BETWEEN)

    def room_for(self, height: float) -> Figure:
        """Return the page with so much room left, inches; a new column where there is less."""
        if not self.figures or self.top + height > BOTTOM:
            self._column += 1
            if self._column >= self._columns:
                self.figures.append(new_page(self._title, self._subtitle))
                self._column = 0
            self.top = TOP + 0.05
        return self.figures[-1]

    def heading(self, text: str, under: float) -> None:
        """Write a heading that stays with so many inches of what is under it."""
        figure = self.room_for(line_height(theme.LEAD_POINTS) + under)
        write(figure, self.left, self.top, text, size=theme.LEAD_POINTS, weight="bold")
        self.top += line_height(theme.LEAD_POINTS)

    def sentence(self, text: str) -> None:
        """Write a sentence, wrapped."""
        for line in wrap(text, self.width, self.size):
            figure = self.room_for(line_height(self.size))
            self.top = write_lines(figure, self.left, self.top, [line], size=self.size)

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
                figure, self.left, self.top - 0.1, table.header, now,
                align=align, size=size, gap=_COLUMN_GAP,
            )  # fmt: skip
            self.top = end + 0.2


def _num_columns(sections: Sequence[Section]) -> int:
    """Return how many columns the sections' tables can be read in."""
    tables = [one.table for one in sections if one.table is not None]
    half = (WIDTH - _BETWEEN) / 2
    is_narrow = all(
        table_width(one.header, one.rows, size=_READABLE, gap=_COLUMN_GAP) <= half for one in tables
    )
    return 2 if is_narrow else 1


def _fitted(table: Table, width: float) -> tuple[float, list[tuple[str, ...]]]:
    """Return the text size at which a table is no wider than a column; long cells are cut."""
    rows = list(table.rows)
    size = float(theme.BODY_POINTS)
    while table_width(table.header, rows, size=size, gap=_COLUMN_GAP) > width and size > _SMALLEST:
        size -= 0.5
    most = width
    while table_width(table.header, rows, size=size, gap=_COLUMN_GAP) > width and most > 1:
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
    pages = _Pages(title, subtitle, _num_columns(sections))
    last = ""
    for section in sections:
        if section.title != last:
            pages.heading(section.title, _kept_together(section))
        last = section.title
        for sentence in section.sentences:
            pages.sentence(sentence.strip())
        if section.table is not None:
            if section.table.caption:
                pages.sentence(section.table.caption)
            pages.table(section.table)
        for sentence in section.after:
            pages.sentence(sentence)
        pages.top += _GAP
    return pages.figures
