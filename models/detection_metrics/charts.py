"""Curves, confusion matrix and label statistics as figures, each built from numbers alone.

Matplotlib's own look, set here whatever the user's style is; no window and no global state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .confusion import BACKGROUND, CONFIDENCE, IOU, Matrix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from .coco import Floats
    from .curves import Family

_P = ParamSpec("_P")

_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10.0,
    "text.parse_math": False,  # a class may be named with a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
}
_DOTS_PER_INCH = 120
_MOST_NAMED = 10  # classes that get a colour and a name; more are thin grey lines
_MOST_NUMBERED = 20  # classes up to which a matrix shows its counts
_MOST_TICKED = 60  # classes up to which each has its name on an axis


def themed(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Return a function that draws in this module's style."""

    @functools.wraps(draw)
    def within(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with matplotlib.style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return within


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    with matplotlib.style.context(["default", _STYLE]):
        figure.savefig(path, dpi=_DOTS_PER_INCH)


@themed
def curve_figure(family: Family, best_confidence: float) -> Figure:
    """Return one quantity's curves: the classes thin, their mean thick.

    Args:
        family: what to draw.
        best_confidence: where the mean F1 is highest; marked on the curves against confidence.
    """
    figure = new_figure(8.5, 5.5)
    axes = figure.subplots()
    is_named = len(family.class_names) <= _MOST_NAMED
    is_pr = family.x_label == "Recall"
    for name, row in zip(family.class_names, family.rows, strict=True):
        label = f"{name} {row.mean():.3f}" if is_pr else name
        if is_named:
            axes.plot(family.x, row, linewidth=1.0, label=label)
        else:
            axes.plot(family.x, row, linewidth=0.6, color="0.75")
    if len(family.rows):
        label = "all classes"
        if is_pr:
            label += f", mAP@0.5 {family.mean.mean():.3f}"
        axes.plot(family.x, family.mean, color="black", linewidth=2.4, label=label)
    else:
        axes.text(0.5, 0.5, "No objects in the validation images", ha="center")
    if not is_pr and len(family.rows):
        _mark(axes, family, best_confidence)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=family.x_label, ylabel=family.y_label)
    axes.set_title(f"{family.title} (IoU 0.5)")
    if len(family.rows):
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9)
    return figure


def _mark(axes: Axes, family: Family, confidence: float) -> None:
    """Mark the confidence of the best mean F1 and the mean there."""
    value = float(np.interp(confidence, family.x, np.nan_to_num(family.mean)))
    axes.axvline(confidence, color="black", linewidth=0.8, linestyle="--")
    is_right = confidence > 0.6
    axes.annotate(
        f"{value:.3f} at {confidence:.3f}, the best mean F1",
        (confidence, 0.0),
        xytext=(-6 if is_right else 6, 8),
        textcoords="offset points",
        ha="right" if is_right else "left",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )


@themed
def confusion_figure(matrix: Matrix, class_names: Sequence[str]) -> Figure:
    """Return the confusion matrix: shares of each true class as colour, counts as numbers.

    Args:
        matrix: counts `[K + 1, K + 1]`, rows predicted, columns true, background last.
        class_names: K names.
    """
    count = len(matrix)
    side = min(max(5.0, 2.5 + 0.45 * count), 14.0)
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=0, keepdims=True), 1)
    # Each column is what became of one class; detections of background have no such whole.
    shares[:, -1] = 0
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [*class_names, BACKGROUND]
    ticks = range(count) if count <= _MOST_TICKED else range(0, count, count // 20)
    labels = [names[tick] for tick in ticks]
    axes.set_xticks(ticks, labels, rotation=90, fontsize=8)
    axes.set_yticks(ticks, labels, fontsize=8)
    if count <= _MOST_NUMBERED + 1:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                ink = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, str(number), ha="center", va="center", color=ink, fontsize=8)
    axes.set(xlabel="True", ylabel="Predicted")
    axes.set_title(f"Confusion matrix\nconfidence {CONFIDENCE:g}, IoU {IOU:g}", fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("Share of the true class")
    return figure


@themed
def labels_figure(labels: Floats | npt.NDArray[np.float32], class_names: Sequence[str]) -> Figure:
    """Return what training labels are like: objects a class, where they are, how large.

    Args:
        labels: rows class, centre x, centre y, width, height; normalised, `[n, 5]`.
        class_names: names by class number.
    """
    figure = new_figure(13.0, 4.6)
    bars, centres, sizes = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    counts = np.bincount(labels[:, 0].astype(int), minlength=len(class_names))
    bars.bar(range(len(counts)), counts, color="tab:blue")
    step = max(1, len(counts) // 30)
    ticks = range(0, len(counts), step)
    long = max((len(class_names[tick]) for tick in ticks), default=0) > 3
    bars.set_xticks(ticks, [class_names[tick] for tick in ticks], rotation=90 if long else 0)
    bars.yaxis.set_major_locator(MaxNLocator(integer=True))
    bars.set(ylabel="Objects")
    bars.set_title(f"{len(labels)} objects by class", fontsize=11)
    _heat(centres, labels[:, 1], labels[:, 2], "Centres of boxes", ("Centre x", "Centre y"))
    centres.invert_yaxis()  # as in the image
    _heat(sizes, labels[:, 3], labels[:, 4], "Sizes of boxes", ("Width", "Height"))
    return figure


def _heat(
    axes: Axes, x: npt.NDArray[Any], y: npt.NDArray[Any], title: str, names: tuple[str, str]
) -> None:
    counts, _, _ = np.histogram2d(y, x, bins=40, range=((0, 1), (0, 1)))
    image = axes.imshow(counts, origin="lower", extent=(0, 1, 0, 1), cmap="viridis")
    axes.set(xlabel=f"{names[0]} (share of the image)", ylabel=f"{names[1]} (share of the image)")
    axes.set_title(title, fontsize=11)
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("Objects")
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
