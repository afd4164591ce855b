"""Pages about what grew between two answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan._version import __version__
from memplan.present.diff import (
    Holdings,
    change_words,
    changes,
    diff_headline,
    diff_numbers,
    diff_sections,
)
from memplan.report import theme
from memplan.report.axes import memory_axis
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    new_page,
    number_pages,
    shorten,
    write,
)
from memplan.report.numbers import draw_numbers
from memplan.report.pages import save_pages
from memplan.report.sections_page import sections_figures

_BARS = 10
_LABEL_WIDTH = 1.6
_VALUE_WIDTH = 1.7


def write_diff(
    path: Path, pairs: Sequence[tuple[Holdings, Holdings]], *, paper: str | None = None
) -> None:
    """Write the pages of each pair into one PDF, on `a4` or `letter`; None takes the usual paper.

    Raises:
        BadInputError: the file cannot be written.
    """
    with theme.on_paper(paper), theme.drawing():
        figures = [figure for one, other in pairs for figure in diff_figures(one, other)]
        number_pages(figures, f"memplan {__version__}")
    save_pages(path, figures)


@theme.themed
def diff_figures(one: Holdings, other: Holdings) -> list[Figure]:
    """Return a page of the largest changes, and all of them as tables under it or on pages."""
    title = diff_headline(one, other)
    page = _page(one, other, title)
    names = f"{one.name} against {other.name}"
    return [page, *sections_figures(title, names, diff_sections(one, other), after=page)]


def _page(one: Holdings, other: Holdings, title: str) -> Figure:
    figure = new_page(title, f"Before: {one.about}. Now: {other.about}.")
    top = draw_numbers(figure, TOP + 0.05, diff_numbers(one, other)) + 0.42
    kinds = [kind for kind in one.groups if changes(one.groups[kind], other.groups.get(kind, {}))]
    kinds = [kind for kind in kinds if kind in other.groups][:2]
    if not kinds:
        write(figure, LEFT, top, "Nothing else that both know has changed.")
    pitch = WIDTH / max(len(kinds), 1)
    for i, kind in enumerate(kinds):
        rows = changes(one.groups[kind], other.groups[kind])[:_BARS]
        height = min(BOTTOM - top - 0.6, 0.36 * len(rows) + 0.3)
        left = LEFT + i * pitch + _LABEL_WIDTH
        axes = axes_at(figure, left, top, pitch - _LABEL_WIDTH - _VALUE_WIDTH, height)
        draw_changes(axes, rows)
        axes.set_title(f"Change by {kind}", pad=8)
    return figure


def draw_changes(axes: Axes, rows: Sequence[tuple[str, int, int]]) -> None:
    """Draw a bar a change, to the right what grew, to the left what shrank.

    Args:
        axes: empty axes.
        rows: name, bytes before and bytes now.
    """
    sizes = [now - before for _, before, now in rows]
    colours = [theme.VERMILION if size > 0 else theme.GREEN for size in sizes]
    axes.barh(range(len(rows)), sizes, color=colours, height=0.66)
    axes.axvline(0, color=theme.BLACK, linewidth=0.8)
    names = [shorten(n, _LABEL_WIDTH - 0.1, theme.SMALL_POINTS) for n, _, _ in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=theme.SMALL_POINTS)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    reach = 1.05 * max(abs(size) for size in sizes)
    low, high = (-reach if min(sizes) < 0 else 0.0), (reach if max(sizes) > 0 else 0.0)
    memory_axis(axes, "x", "Change", high, low_bytes=low, num_ticks=4)
    for row, (_, before, now) in enumerate(rows):
        axes.annotate(
            change_words(before, now),
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=theme.SMALL_POINTS,
        )
