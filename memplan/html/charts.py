"""Line charts as vectors that stand in a page: told apart by dashes and marks before colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memplan.html.markup import text
from memplan.report.theme import LINE_COLOURS

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_MOST_POINTS = 600
_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line; points whose value is nan are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        """Return what can be drawn, at most so many points as a screen shows."""
        pairs = zip(self.xs, self.ys, strict=False)
        known = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
        step = -(-len(known) // _MOST_POINTS) or 1
        return [*known[::step], *(known[-1:] if (len(known) - 1) % step else [])]


def chart_html(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    limit: tuple[str, float] | None = None,
    whole: bool = False,
) -> str:
    """Return a chart with its axes, key and words; nothing where there is nothing to draw.

    Args:
        title: what is shown.
        series: up to as many as there are kinds of line.
        x_name: quantity and unit.
        y_name: quantity and unit; its axis begins at zero.
        whole: whether only whole numbers mean something on the horizontal axis.
        limit: a level with its name, such as a card's capacity; not drawn where it is far above.
    """
    drawn = [(one, points) for one in series[: len(LINE_COLOURS)] if (points := one.points())]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    most = max(y for _, points in drawn for _, y in points)
    shown = limit if limit is not None and limit[1] <= 3 * most else None
    plot = _Plot(min(xs), max(xs), 1.08 * max([most, *([shown[1]] if shown else [])]) or 1.0)
    lines = [plot.line(points, index) for index, (_, points) in enumerate(drawn)]
    level = plot.level(*shown) if shown else ""
    words = "; ".join(
        f"{one.name} {_number(points[0][1])} at first, {_number(points[-1][1])} at last"
        for one, points in drawn
    )
    keys = "".join(
        f'<li><svg width="34" height="12" aria-hidden="true">{_sign(points, index)}</svg>'
        f"{text(one.name)}</li>"
        for index, (one, points) in enumerate(drawn)
    )
    key = f'<ul class="key lines">{keys}</ul>' if len(drawn) > 1 else ""
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{text(f"{title}: {words}")}">'
        f"{plot.axes(x_name, y_name, whole=whole)}{level}{''.join(lines)}</svg>{key}</figure>"
    )


@dataclass(frozen=True)
class _Plot:
    """Where values lie."""

    first: float
    last: float
    top: float

    def x(self, value: float) -> float:
        span = self.last - self.first
        share = (value - self.first) / span if span else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self.top * (_HEIGHT - _TOP - _BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], index: int) -> str:
        places = [f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points]
        if len(places) == 1:
            cx, cy = places[0].split()
            return f'<circle cx="{cx}" cy="{cy}" r="4" fill="{LINE_COLOURS[index]}"/>'
        return _stroke(f"M{'L'.join(places)}", index)

    def level(self, name: str, value: float) -> str:
        y = self.y(value)
        return (
            f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#000" stroke-dasharray="6 4"/>'
            f'<text x="{_WIDTH - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">{text(name)}</text>'
        )

    def axes(self, x_name: str, y_name: str, *, whole: bool) -> str:
        parts = []
        for value in _ticks(0, self.top):
            y = self.y(value)
            parts.append(
                f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e5e5e5"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
            )
        parts += [
            f'<text x="{self.x(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" '
            f'text-anchor="middle">{_number(value)}</text>'
            for value in _ticks(self.first, self.last, least=1.0 if whole else 0.0)
        ]
        middle = (_HEIGHT - _BOTTOM + _TOP) / 2
        return "".join(parts) + (
            f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
            f"{text(x_name)}</text>"
            f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{text(y_name)}</text>"
        )


def _sign(points: Sequence[tuple[float, float]], index: int) -> str:
    """Return what stands for a line in the key: a dot where it is one."""
    if len(points) == 1:
        return f'<circle cx="17" cy="6" r="4" fill="{LINE_COLOURS[index]}"/>'
    return _stroke("M1 6H33", index)


def _stroke(path: str, index: int) -> str:
    dash = f' stroke-dasharray="{_DASHES[index]}"' if _DASHES[index] else ""
    return f'<path d="{path}" fill="none" stroke="{LINE_COLOURS[index]}" stroke-width="2"{dash}/>'


def _ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Return about five round numbers between two, steps of `least` or whole multiples apart."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    steps = [one * power for one in _STEPS if not least or (one * power) % least == 0]
    step = next((one for one in steps if one >= 0.999 * rough), least)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
