"""Colours, sizes and font settings of every figure; nothing else in the report names a colour."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import matplotlib.style

from memplan.report.fonts import families

_P = ParamSpec("_P")
_R = TypeVar("_R")

# The only colours of lines and markers: at least 3:1 on white.
BLUE = "#0072B2"
GREEN = "#009E73"
VERMILION = "#D55E00"
BLACK = "#000000"
LINE_COLOURS = (BLUE, GREEN, VERMILION, BLACK)

PAPER = "#FFFFFF"
INK = "#1A1A1A"
QUIET_INK = "#595959"
"""Captions and ticks: 7:1 on white."""
RULE = "#BFBFBF"
SHADE = "#F2F2F2"

TITLE_POINTS = 20.0
HEADING_POINTS = 14.0
LEAD_POINTS = 12.5
BODY_POINTS = 10.5
LABEL_POINTS = 10.0
SMALL_POINTS = 8.5
SUBTITLE_POINTS = 9.0
"""The least of a subtitle."""

PAPERS = {"a4": (11.69, 8.27), "letter": (11.0, 8.5)}
"""Inches, landscape: time and batch run along the long side."""
BOX_INCHES = (11.0, 8.27)
"""What lies on either paper: pages are laid out in it, and it lies in the middle."""

_paper: ContextVar[str] = ContextVar("paper", default="")
# Territories that write on Letter; all others on A4. Source: Unicode CLDR 44, supplementalData,
# <paperSize type="US-Letter">.
_LETTER = frozenset({
    "BZ", "CA", "CL", "CO", "CR", "GT", "MX", "NI", "PA", "PH", "PR", "SV", "US", "VE"
})  # fmt: skip


def usual_paper() -> str:
    """Return the paper of this place: of `PAPERSIZE`, else of the locale's territory, else A4."""
    if (named := os.environ.get("PAPERSIZE", "").lower()) in PAPERS:
        return named
    variables = ("LC_ALL", "LC_PAPER", "LANG")
    locale = next((value for name in variables if (value := os.environ.get(name))), "")
    territory = locale.partition(".")[0].partition("@")[0].rpartition("_")[2]
    return "letter" if territory in _LETTER else "a4"


def page_inches() -> tuple[float, float]:
    """Return width and height of a new page."""
    return PAPERS[_paper.get() or usual_paper()]


@contextmanager
def on_paper(name: str | None) -> Iterator[None]:
    """Make new pages of a paper, `a4` or `letter`; None leaves them as they would be."""
    token = _paper.set(name or _paper.get())
    try:
        yield
    finally:
        _paper.reset(token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """How one category of memory looks wherever it is drawn."""

    name: str
    fill: str
    hatch: str | None = None
    edge: str = PAPER

    @property
    def label(self) -> str:
        """The name as people read it."""
        return self.name.replace("_", " ")


BANDS = (
    Band(name="parameter", fill="#CC79A7"),
    Band(name="optimizer_state", fill="#F0E442"),
    Band(name="gradient", fill="#009E73"),
    Band(name="input", fill="#E69F00"),
    Band(name="activation", fill="#0072B2"),
    Band(name="workspace", fill="#56B4E9"),
    Band(name="temporary", fill="#56B4E9", hatch="////"),
    Band(name="unattributed", fill="#4D4D4D"),
    Band(name="cached", fill="#DDDDDD", hatch="...."),
    Band(name="context", fill="#FFFFFF", edge="#4D4D4D"),
)
"""Bottom to top. Neighbours differ in normal and in colour-blind sight and in grey print."""

BAND_OF = {band.name: band for band in BANDS}

_SETTINGS = {
    "font.size": LABEL_POINTS,
    "text.color": INK,
    "text.parse_math": False,  # a path may hold a dollar sign
    "axes.edgecolor": QUIET_INK,
    "axes.labelcolor": INK,
    "axes.labelsize": LABEL_POINTS,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": LEAD_POINTS,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": SMALL_POINTS + 0.5,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,  # TrueType: text can be searched, copied and read aloud
    "pdf.compression": 6,
    "xtick.color": QUIET_INK,
    "xtick.labelsize": SMALL_POINTS + 0.5,
    "ytick.color": QUIET_INK,
    "ytick.labelsize": SMALL_POINTS + 0.5,
}


def drawing() -> AbstractContextManager[None]:
    """Return the context in which every figure is drawn and saved, whatever the user's own style.

    Matplotlib's settings are as before when the context ends.
    """
    return matplotlib.style.context(["default", _SETTINGS, {"font.family": families()}])


def themed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return `function` running inside `drawing`."""

    @functools.wraps(function)
    def within(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with drawing():
            return function(*args, **kwargs)

    return within


def relative_luminance(colour: str) -> float:
    """Return the luminance of `#RRGGBB`, 0 for black to 1 for white.

    Source: WCAG 2.1, "relative luminance".
    """
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21.

    Source: WCAG 2.1, "contrast ratio".
    """
    dark, light = sorted((relative_luminance(one), relative_luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def ink_on(fill: str) -> str:
    """Return white or black, whichever reads better on `fill`."""
    return PAPER if contrast(fill, PAPER) > contrast(fill, BLACK) else BLACK
