"""Which card: what each card of the catalogue would do with a run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from memplan.answers import PlanAnswer
from memplan.plan_answers import CardChoice, CardOption
from memplan.present.words import workload_title
from memplan.report import theme
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    new_page,
    wrap,
    write_lines,
)
from memplan.units import format_bytes, three_digits

_LABEL_WIDTH = 2.3
_END_WIDTH = 3.2
_MOST_ROW = 0.4


@theme.themed
def choice_figure(plan: PlanAnswer) -> Figure:
    """Return a page: the speed of each card that holds the run, and the cards that do not.

    Args:
        plan: of which the comparison of cards was asked.
    """
    choice = plan.cards
    assert choice is not None
    fitting = [one for one in choice.cards if one.fits]
    figure = new_page(
        f"Which card: {workload_title(plan.workload)}, {_count(fitting, choice)}",
        f"{plan.split.effective_batch_size} images a step, each card at its best setting, "
        f"{choice.origin}; speed is a roofline's. Value is {choice.value}.",
    )
    small = [one.name for one in choice.cards if not one.fits]
    words = f"Too small for it: {', '.join(small)}." if small else "Every card holds it."
    lines = wrap(words, WIDTH, theme.BODY_POINTS)[:3]
    bottom = BOTTOM - 0.2 * len(lines)
    height = min(bottom - TOP - 0.85, _MOST_ROW * max(len(fitting), 1))
    axes = axes_at(figure, LEFT + _LABEL_WIDTH, TOP, WIDTH - _LABEL_WIDTH - _END_WIDTH, height)
    draw_choice(axes, fitting, choice)
    write_lines(figure, LEFT, bottom + 0.1, lines, colour=theme.QUIET_INK)
    return figure


def _count(fitting: Sequence[CardOption], choice: CardChoice) -> str:
    return f"{len(fitting)} of {len(choice.cards)} hold it"


def draw_choice(axes: Axes, cards: Sequence[CardOption], choice: CardChoice) -> None:
    """Draw a bar of images per second a card; those that stand out say so.

    Args:
        axes: empty axes; names are written to their left.
        cards: those that hold the run, in order.
        choice: which stand out.
    """
    rows = range(len(cards))
    stands_out = [_distinction(one, choice) for one in cards]
    colours = [theme.GREEN if text else theme.BAND_OF["workspace"].fill for text in stands_out]
    axes.barh(rows, [one.images_per_second for one in cards], color=colours, height=0.7)
    size = theme.SMALL_POINTS if len(cards) <= 24 else 7.0
    for row, (one, text) in enumerate(zip(cards, stands_out, strict=True)):
        held = f"{format_bytes(one.device_used_peak_bytes)} of {format_bytes(one.capacity_bytes)}"
        axes.annotate(
            f"{three_digits(one.images_per_second)}/s, {held}{text}",
            (one.images_per_second, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=size,
            annotation_clip=False,
        )
    axes.set_yticks(rows, [one.name for one in cards], fontsize=size)
    axes.tick_params(axis="y", length=0, labelcolor=theme.INK)
    axes.set_ylim(max(len(cards), 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.02 * max((one.images_per_second for one in cards), default=1))
    axes.set_xlabel("Speed (images/s)")


def _distinction(card: CardOption, choice: CardChoice) -> str:
    words = {
        "smallest": choice.smallest,
        "fastest": choice.fastest,
        "best value": choice.best_value,
    }
    named = [word for word, name in words.items() if name == card.name]
    return f": {', '.join(named)}" if named else ""
