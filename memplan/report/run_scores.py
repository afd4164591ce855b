"""Where a run's network is right and wrong: precision and recall, F1, confusion, by class."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from memplan.present.run_record import ClassCurves, Confusion, RunRecord
from memplan.report import theme
from memplan.report.frame import BOTTOM, LEFT, TOP, WIDTH, axes_at, new_page, shorten

# Up to so many classes are named; more are thin grey lines under their mean.
_MOST_NAMED = 12
_MOST_NUMBERED = 16
_MOST_TICKED = 40
_SHARES = LinearSegmentedColormap.from_list("shares", [theme.PAPER, theme.BLUE])


@theme.themed
def scores_figure(run: RunRecord) -> Figure | None:
    """Return a page of curves and the confusion matrix; None where the run has neither."""
    curves = [one for one in (run.precision_recall, run.f1) if one is not None]
    if not curves and run.confusion is None:
        return None
    terms = "" if run.confusion is None else _matrix_words(run.confusion)
    figure = new_page(
        f"Run {run.folder.name}: where the network is right and wrong",
        f"Validation of the best epoch, measured; curves at IoU 0.5.{terms}",
    )
    height = (BOTTOM - TOP - 1.75) / 2
    width = WIDTH * 0.36 if run.confusion is not None else WIDTH - 2.2
    if run.precision_recall is not None:
        axes = axes_at(figure, LEFT + 0.55, TOP + 0.3, width, height)
        draw_class_curves(axes, run.precision_recall, "Recall", "Precision")
        axes.set_title("Precision against recall", pad=8)
    if run.f1 is not None:
        axes = axes_at(figure, LEFT + 0.55, TOP + height + 1.15, width, height)
        draw_class_curves(axes, run.f1, "Confidence", "F1")
        axes.set_title("F1 against confidence", pad=8)
    if run.confusion is not None:
        side = min(BOTTOM - TOP - 1.5, WIDTH * 0.5)
        axes = axes_at(figure, LEFT + WIDTH - side, TOP + 0.3, side, side)
        draw_confusion(axes, run.confusion)
    return figure


def _matrix_words(confusion: Confusion) -> str:
    return f" On the right counts at {confusion.terms}, coloured by their share of the true class"


def draw_class_curves(axes: Axes, curves: ClassCurves, x_name: str, y_name: str) -> None:
    """Draw the classes thin and grey, their mean thick; few classes are named at their highest.

    Args:
        axes: empty axes.
        curves: values 0 to 1.
        x_name: label of the x axis.
        y_name: label of the y axis.
    """
    for name, values in curves.by_class.items():
        axes.plot(curves.x, values, color=theme.RULE, linewidth=0.9, label=name)
    axes.plot(curves.x, curves.mean, color=theme.BLUE, linewidth=2.4, label="all classes")
    known = [(y, x) for x, y in zip(curves.x, curves.mean, strict=True) if not math.isnan(y)]
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(f"{x_name} (0 to 1)")
    axes.set_ylabel(f"{y_name} (0 to 1)")
    if not known:
        return
    if x_name == "Recall":
        text, at = f"mean {sum(y for y, _ in known) / len(known):.3f}", known[len(known) // 2]
    else:
        at = max(known)
        text = f"{at[0]:.3f} at {at[1]:.2f}"
        axes.axvline(at[1], color=theme.QUIET_INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"all classes: {text}",
        (at[1], at[0]),
        xytext=(8, 8),
        textcoords="offset points",
        fontsize=theme.SMALL_POINTS,
        color=theme.BLUE,
        bbox={"facecolor": theme.PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
    )


def draw_confusion(axes: Axes, confusion: Confusion) -> None:
    """Draw counts as shares of each true class; few classes have their counts written.

    Args:
        axes: empty axes, square.
        confusion: rows predicted, columns true, background last.
    """
    size = len(confusion.names)
    totals = [sum(column) for column in zip(*confusion.counts, strict=True)]
    # Detections of background have no whole that they could be a share of.
    shares = [
        [
            count / max(total, 1) if j < size - 1 else 0.0
            for j, (count, total) in enumerate(zip(row, totals, strict=True))
        ]
        for row in confusion.counts
    ]
    axes.pcolormesh(shares, cmap=_SHARES, vmin=0, vmax=1, edgecolors=theme.SHADE, linewidth=0.3)
    step = 1 if size <= _MOST_TICKED else -(-size // 20)
    ticks = [i + 0.5 for i in range(0, size, step)]
    names = [shorten(confusion.names[i], 0.9, theme.SMALL_POINTS) for i in range(0, size, step)]
    small = theme.SMALL_POINTS if len(names) <= _MOST_NUMBERED else 6.0
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=small)
    axes.set_yticks(ticks, names, fontsize=small)
    axes.invert_yaxis()
    if size <= _MOST_NUMBERED:
        for i, row in enumerate(confusion.counts):
            for j, count in enumerate(row):
                if count:
                    ink = theme.PAPER if shares[i][j] > 0.55 else theme.BLACK
                    axes.text(
                        j + 0.5, i + 0.5, str(count), ha="center", va="center",
                        color=ink, fontsize=theme.SMALL_POINTS,
                    )  # fmt: skip
    axes.tick_params(length=0)
    axes.set_xlabel("True class")
    axes.set_ylabel("Predicted class")
    axes.set_title("What is taken for what", pad=8)
