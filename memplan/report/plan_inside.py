"""What a plan looks like inside: its phases against the budget, and its recomputed blocks."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from memplan.answers import BlockSaving, PhasePeak, PlanAnswer
from memplan.present.probe import rank_lines
from memplan.present.words import batch_words, card_name, workload_title
from memplan.report import theme
from memplan.report.axes import BACKING, DASHES, memory_axis
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    new_page,
    shorten,
    wrap,
    write_lines,
)
from memplan.units import format_bytes, format_seconds

_LABEL_WIDTH = 2.35
_TEXT_HEIGHT = 1.15
MOST_BLOCKS = 28
# A bar longer than this share of the capacity holds its label.
_LONG_BAR = 0.15


@theme.themed
def phases_figure(plan: PlanAnswer) -> Figure:
    """Return a page: the most held in each phase of a life, beside peak, budget and capacity."""
    figure = new_page(
        f"Phases and margin: {workload_title(plan.workload)}, {card_name(plan.gpu)}",
        f"The plan's setting, {batch_words(plan.split)}: what tensors hold in each phase of a "
        f"life, on top of the context, {plan.predicted.origin}.",
    )
    height = BOTTOM - TOP - _TEXT_HEIGHT - 0.85
    axes = axes_at(figure, LEFT + _LABEL_WIDTH, TOP + 0.5, WIDTH - _LABEL_WIDTH - 0.5, height)
    draw_phases(axes, plan)
    y = BOTTOM - _TEXT_HEIGHT + 0.5
    for sentence in margin_words(plan):
        y = write_lines(figure, LEFT, y, wrap(sentence, WIDTH, theme.BODY_POINTS)) + 0.04
    return figure


def draw_phases(axes: Axes, plan: PlanAnswer) -> None:
    """Draw a bar a phase from the context upwards, and the lines that it stays below."""
    peaks, context = plan.phase_peaks, plan.gpu.context_bytes
    rows = list(range(len(peaks)))
    white = theme.BAND_OF["context"]
    axes.barh(rows, [context] * len(rows), color=white.fill, edgecolor=white.edge, height=0.62)
    held = [peak.allocated_peak_bytes for peak in peaks]
    axes.barh(rows, held, left=[context] * len(rows), color=theme.BLUE, height=0.62)
    for row, num_bytes in zip(rows, held, strict=True):
        # Within a long bar no line of the card's can cross it.
        is_within = num_bytes > _LONG_BAR * plan.gpu.capacity_bytes
        axes.annotate(
            format_bytes(num_bytes),
            (context + num_bytes, row),
            xytext=(-4 if is_within else 4, 0),
            textcoords="offset points",
            ha="right" if is_within else "left",
            va="center",
            fontsize=theme.SMALL_POINTS,
            color=theme.PAPER if is_within else theme.INK,
            bbox=None if is_within else BACKING,
            zorder=7,
        )
    axes.set_yticks(rows, [phase_words(peak) for peak in peaks])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    memory_axis(axes, "x", "Device memory", 1.08 * plan.gpu.capacity_bytes, num_ticks=8)
    lines = (
        (plan.gpu.capacity_bytes, "capacity", theme.BLACK, "-"),
        (plan.budget_bytes, "budget", theme.BLACK, DASHES),
        (plan.predicted.device_used_peak_bytes, "peak with cache", theme.VERMILION, "-"),
    )
    above: list[Bbox] = []
    for num_bytes, name, colour, style in lines:
        axes.axvline(num_bytes, color=colour, linestyle=style, linewidth=1.3)
        label = axes.annotate(
            f"{name} {format_bytes(num_bytes)}",
            (num_bytes, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=theme.SMALL_POINTS,
            color=colour,
        )
        # As low as no other is in the way.
        while any(label.get_window_extent().overlaps(other) for other in above):
            label.set_position((0, label.get_position()[1] + 12))
        above.append(label.get_window_extent())


def phase_words(peak: PhasePeak) -> str:
    """Return a phase as people say it, such as `steady step: forward`."""
    return f"{peak.period.replace('_', ' ')}: {peak.phase.replace('_', ' ')}"


def margin_words(plan: PlanAnswer) -> list[str]:
    """Return what is left over and where the margin comes from, as sentences."""
    used = plan.predicted.device_used_peak_bytes
    words = [
        (
            f"Between the peak and the budget lie {format_bytes(plan.headroom_bytes)}, between the "
            f"budget and the capacity {format_bytes(plan.gpu.capacity_bytes - plan.budget_bytes)}. "
            f"The peak is {used / plan.gpu.capacity_bytes:.0%} of the card, the allocator's cache "
            "included."
        )
    ]
    words += [plan.safety_source] if plan.safety_source else []
    return words + rank_lines(plan.other_ranks)


@theme.themed
def blocks_figure(plan: PlanAnswer) -> Figure:
    """Return a page: which blocks recompute, what each need not keep, and the time it costs."""
    savings = plan.block_savings
    bought = sum(block.activation_bytes for block in savings)
    cost = sum(block.forward_seconds for block in savings)
    figure = new_page(
        f"What recomputing buys: {workload_title(plan.workload)}, {card_name(plan.gpu)}",
        f"{len(savings)} blocks recompute at micro-batch {plan.split.micro_batch_size}: together "
        f"they need not keep {format_bytes(bought)} and run {format_seconds(cost)} longer a "
        f"micro-batch ({plan.predicted.origin}, the time by a roofline). {plan.spec.words()}.",
    )
    height = min(BOTTOM - TOP - 1.05, 0.26 * len(savings[:MOST_BLOCKS]) + 0.4)
    axes = axes_at(figure, LEFT + _LABEL_WIDTH, TOP + 0.2, WIDTH - _LABEL_WIDTH - 1.7, height)
    draw_blocks(axes, savings[:MOST_BLOCKS])
    words = "What a block keeps is counted with nothing recomputed; its input stays in any case."
    if len(savings) > MOST_BLOCKS:
        words += f" {len(savings) - MOST_BLOCKS} more blocks are in the saved answer."
    write_lines(figure, LEFT, BOTTOM - 0.05, [words], colour=theme.QUIET_INK)
    return figure


def draw_blocks(axes: Axes, savings: Sequence[BlockSaving]) -> None:
    """Draw a bar a block, its time behind the bar's end."""
    rows = list(range(len(savings)))
    axes.barh(rows, [b.activation_bytes for b in savings], color=theme.BLUE, height=0.66)
    for row, block in zip(rows, savings, strict=True):
        bytes_a_second = block.activation_bytes / max(block.forward_seconds, 1e-9)
        axes.annotate(
            f"{format_bytes(block.activation_bytes)} for {format_seconds(block.forward_seconds)}: "
            f"{format_bytes(bytes_a_second / 1000)} a ms",
            (block.activation_bytes, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=theme.SMALL_POINTS,
            annotation_clip=False,
        )
    axes.set_yticks(rows, [shorten(b.path, _LABEL_WIDTH - 0.3, 9.0) for b in savings])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    most = max((b.activation_bytes for b in savings), default=1)
    memory_axis(axes, "x", "Activations not kept", 1.12 * most)
