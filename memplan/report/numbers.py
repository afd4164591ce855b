"""The few numbers that an answer is known by, drawn large side by side."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from memplan.present.section import Number
from memplan.report import theme
from memplan.report.frame import LEFT, WIDTH, line_height, rule, shorten, text_width, wrap, write

NUMBER_POINTS = 30.0
_GAP = 0.35
_MOST_LINES = 3


def draw_numbers(
    figure: Figure,
    top: float,
    numbers: Sequence[Number],
    *,
    left: float = LEFT,
    width: float = WIDTH,
) -> float:
    """Draw numbers in equal columns and return where they end, inches from the top edge.

    Args:
        figure: the page.
        top: upper edge, inches.
        numbers: at most four are readable.
        left: left edge, inches.
        width: of all columns together, inches.
    """
    if not numbers:
        return top
    column = (width - _GAP * (len(numbers) - 1)) / len(numbers)
    size = NUMBER_POINTS
    widest = max(numbers, key=lambda one: text_width(one.value, NUMBER_POINTS, weight="bold"))
    while size > theme.HEADING_POINTS and text_width(widest.value, size, weight="bold") > column:
        size -= 1
    end = top
    for i, one in enumerate(numbers):
        at = left + i * (column + _GAP)
        rule(figure, at, top, column, strong=True)
        y = top + 1.25 * size / 72
        value = shorten(one.value, column, size, weight="bold")
        write(figure, at, y, value, size=size, weight="bold")
        y += 0.26
        for text, colour in ((one.label, theme.INK), (one.detail, theme.QUIET_INK)):
            for line in wrap(text, column, theme.BODY_POINTS)[:_MOST_LINES]:
                write(figure, at, y, line, size=theme.BODY_POINTS, colour=colour)
                y += line_height(theme.BODY_POINTS)
        end = max(end, y)
    return end
