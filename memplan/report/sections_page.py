"""Pages that show an answer's sections: the same sentences and tables as in the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from memplan.present.section import Section, Table
from memplan.report import theme
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    content_end,
    draw_table,
    line_height,
    new_page,
    page_title,
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
# Of the text, points: the largest that needs no more pages than the others.
_BODIES = (theme.BODY_POINTS, 10.0, 9.5, 9.0, theme.SMALL_POINTS)
# A table of at most so many rows is not parted.
_SMALL_TABLE = 14
# Between the sections under a page's own content and that.
_UNDER = 0.36


@dataclass(frozen=True)
class _Group:
    """Sections in a row that share one heading."""

    title: str
    sections: tuple[Section, ...]
    body: float = theme.BODY_POINTS
    """Of its text, points."""

    @property
    def tables(self) -> list[Table]:
        """The tables of all."""
        return [one.table for one in self.sections if one.table is not None]

    @property
    def is_narrow(self) -> bool:
        """Whether it can be read in half a page's width, on one page."""
        widths = [table_width(one.header, one.rows, size=_READABLE) for one in self.tables]
        return max(widths, default=0.0) <= _HALF and self.height(_HALF) <= BOTTOM - TOP - 0.1

    def height(self, width: float) -> float:
        """Return the height in so many inches of width, the gap after it left out."""
        lines = line_height(theme.LEAD_POINTS) + _GAP * (len(self.sections) - 1)
        return lines + sum(_height(one, width, self.body) for one in self.sections)


class _Pages:
    """Pages of one title, filled from the top, or what is free of a page that is there."""

    def __init__(
        self,
        title: str,
        subtitle: str,
        under: tuple[Figure, float] | None = None,
        body: float = theme.BODY_POINTS,
    ) -> None:
        self._title, self._subtitle, self._body = title, subtitle, body
        self.figures: list[Figure] = []
        self.top = BOTTOM
        self.left, self.width = LEFT, WIDTH
        """Where it is written, inches."""
        self._is_parted = False
        if under is not None:
            self.figures, self.top = [under[0]], under[1]

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is on the page yet."""
        return self.top <= TOP + 0.05

    def room_for(self, height: float) -> Figure:
        """Return the page with so much room left, inches; a new one where there is less.

        Columns are written where all of them have room: there no page ends between them.
        """
        if not self.figures or (self.top + height > BOTTOM and not self._is_parted):
            self.figures.append(new_page(self._title, self._subtitle))
            self.top = TOP + 0.05
        return self.figures[-1]

    def heading(self, text: str, under: float, *, size: float = theme.LEAD_POINTS) -> None:
        """Write a heading that stays with so many inches of what is under it."""
        figure = self.room_for(line_height(size) + under)
        words = shorten(text, self.width, size, weight="bold")
        write(figure, self.left, self.top, words, size=size, weight="bold")
        self.top += line_height(size)

    def sentence(self, text: str) -> None:
        """Write a sentence, wrapped."""
        for line in wrap(text, self.width, self._body):
            figure = self.room_for(line_height(self._body))
            self.top = write_lines(figure, self.left, self.top, [line], size=self._body)

    def table(self, table: Table) -> None:
        """Draw a table as small as its columns need, over as many pages as its rows need.

        A long one that half a page's width holds is drawn as two halves beside each other.
        """
        num_columns = _columns(table, self.width)
        size, rows = _fitted(table, self.width if num_columns == 1 else _HALF, self._body)
        align = "".join("l" if i < table.left else "r" for i in range(len(table.header)))
        while rows:
            step = row_height(size)
            figure = self.room_for(3 * step)
            most = len(rows) if self._is_parted else max(1, int((BOTTOM - self.top) / step) - 2)
            count = min(most, -(-len(rows) // num_columns))
            end = self.top
            for i in range(num_columns):
                now, rows = rows[:count], rows[count:]
                left = self.left + i * (_HALF + _BETWEEN)
                if now:
                    ended = draw_table(
                        figure, left, self.top - 0.1, table.header, now, align=align, size=size
                    )
                    end = max(end, ended)
            self.top = end + 0.2

    def section(self, section: Section) -> None:
        """Write a section's words and table under what is there."""
        for sentence in section.sentences:
            self.sentence(sentence.strip())
        if section.table is not None:
            if section.table.caption:
                self.sentence(section.table.caption)
            self.table(section.table)
        for sentence in section.after:
            self.sentence(sentence)

    def group(self, group: _Group) -> None:
        """Write a heading and what stands under it."""
        self.heading(group.title, _kept_together(group.sections[0], self._body))
        for section in group.sections:
            self.section(section)
            self.top += _GAP

    def columns(self, parts: Sequence[Sequence[_Group]]) -> None:
        """Write groups as two columns, each from top to bottom, on one page that has the room."""
        top, end = self.top, self.top
        self._is_parted = True
        for i, groups in enumerate(parts):
            self.left, self.width, self.top = LEFT + i * (_HALF + _BETWEEN), _HALF, top
            for group in groups:
                self.group(group)
            end = max(end, self.top)
        self.left, self.width, self.top, self._is_parted = LEFT, WIDTH, end, False

    def fill(self, groups: Sequence[_Group]) -> None:
        """Write all groups: narrow ones in a row as two columns, the others over the width."""
        rest = list(groups)
        while rest:
            narrow = list(itertools.takewhile(lambda group: group.is_narrow, rest))
            room = BOTTOM - self.top if self.figures else BOTTOM - TOP - 0.05
            count, split = _most_beside(narrow, room)
            if count:
                self.room_for(0.0)
                self.columns((rest[:split], rest[split:count]))
                rest = rest[count:]
            elif not self.is_fresh and _most_beside(narrow, BOTTOM - TOP - 0.05)[0]:
                self._one_or_new_page(rest)
            else:
                self.group(rest.pop(0))

    def _one_or_new_page(self, rest: list[_Group]) -> None:
        """Write the first group where it has room alone, else leave it to a new page."""
        if self.figures and self.top + rest[0].height(self.width) <= BOTTOM:
            self.group(rest.pop(0))
        else:
            self.room_for(BOTTOM - TOP - 0.05)


def _most_beside(narrow: Sequence[_Group], room: float) -> tuple[int, int]:
    """Return how many narrow groups two columns of a height hold, and how many the first has.

    Tables are worth two columns; words alone are read over the whole width: (0, 0), as where
    fewer than two groups have room.
    """
    for count in range(len(narrow), 1, -1):
        if not any(group.tables for group in narrow[:count]):
            continue
        heights = [group.height(_HALF) + _GAP for group in narrow[:count]]
        tallest = {k: max(sum(heights[:k]), sum(heights[k:])) for k in range(1, count)}
        split = min(tallest, key=lambda k: tallest[k])
        if tallest[split] - _GAP <= room:
            return count, split
    return 0, 0


def _columns(table: Table, width: float) -> int:
    """Return in how many columns a table is drawn: two where it is long and half as wide."""
    is_narrow = table_width(table.header, table.rows, size=_READABLE) <= _HALF
    return 2 if width == WIDTH and is_narrow and len(table.rows) > _SMALL_TABLE else 1


def _height(section: Section, width: float, body: float) -> float:
    """Return the height of a section without its heading in so many inches of width."""
    said = [*section.sentences, *section.after]
    height = 0.0
    if section.table is not None:
        said += [section.table.caption] if section.table.caption else []
        num_columns = _columns(section.table, width)
        size, rows = _fitted(section.table, width if num_columns == 1 else _HALF, body)
        height += (-(-len(rows) // num_columns) + 1.75) * row_height(size)
    lines = sum(len(wrap(sentence.strip(), width, body)) for sentence in said)
    return height + lines * line_height(body)


def _fitted(table: Table, width: float, body: float) -> tuple[float, list[tuple[str, ...]]]:
    """Return the text size at which a table is no wider than a column; long cells are cut."""
    rows = list(table.rows)
    size = float(body)
    while table_width(table.header, rows, size=size) > width and size > _SMALLEST:
        size -= 0.5
    most = width
    while table_width(table.header, rows, size=size) > width and most > 1:
        most *= 0.8
        rows = [tuple(shorten(cell, most, size, weight="bold") for cell in row) for row in rows]
    return size, rows


def _kept_together(section: Section, body: float) -> float:
    """Return how much stays on the heading's page, inches: a small table whole."""
    rows = 0 if section.table is None else len(section.table.rows)
    lines = 3 if rows > _SMALL_TABLE else 2 + rows + len(section.sentences)
    return lines * row_height(body)


def height_under(sections: Sequence[Section]) -> float:
    """Return how much of a page sections take under its own content, inches."""
    return _UNDER + sum(group.height(WIDTH) + _GAP for group in _grouped(sections))


def _grouped(sections: Sequence[Section], body: float = theme.BODY_POINTS) -> list[_Group]:
    titles = itertools.groupby(sections, key=lambda section: section.title)
    return [_Group(name, tuple(some), body) for name, some in titles]


@theme.themed
def sections_figures(
    title: str, subtitle: str, sections: Sequence[Section], *, after: Figure | None = None
) -> list[Figure]:
    """Return pages that show sections one under the other.

    Args:
        title: of each page.
        subtitle: a line or two under it.
        sections: in the order they are read; those of one title in a row share the heading.
        after: a page whose free lower part takes all of them where they have room there, under
            `title` as a heading unless it is the page's own; then no page is returned.
    """
    if after is not None and _write_under(after, title, sections):
        return []
    drawn: list[list[Figure]] = []
    for body in _BODIES:
        pages = _Pages(title, subtitle, body=body)
        pages.fill(_grouped(sections, body))
        drawn.append(pages.figures)
        if len(pages.figures) <= 1:
            break
    return min(drawn, key=len)


def _write_under(after: Figure, title: str, sections: Sequence[Section]) -> bool:
    """Write sections under a page's own content and return True, where all have room there."""
    under = content_end(after) + _UNDER
    trial = new_page(title)
    is_own = page_title(trial) == page_title(after)
    for figure in (trial, after):  # once to see whether there is room
        pages = _Pages(title, "", (figure, under))
        if not is_own:
            pages.heading(title, 0.0, size=theme.HEADING_POINTS)
        pages.fill(_grouped(sections))
        if len(pages.figures) > 1:
            return False
    return True
