"""Page one: the answers in words, and one small figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from memplan.answers import PlanAnswer, ProbeAnswer
from memplan.report import theme
from memplan.report.alternatives import by_memory, chosen_index, draw_alternatives
from memplan.report.axes import top_with_line
from memplan.report.batches import draw_batches
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    line_height,
    new_page,
    wrap,
    write,
    write_lines,
)
from memplan.report.series import device_used_at
from memplan.report.words import (
    batch_words,
    card_name,
    growth_words,
    joined,
    largest_words,
    peak_words,
    plan_words,
    recommended_words,
    workload_line,
    workload_title,
)

TEXT_WIDTH = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One answer: what it is about, the answer in a few words, and the sentences under it."""

    heading: str
    answer: str
    sentences: tuple[str, ...]


@theme.themed
def answers_figure(probes: Sequence[ProbeAnswer], plans: Sequence[PlanAnswer]) -> Figure:
    """Return page one: a block of words for each answer and a small figure of the first."""
    workloads = [probe.workload for probe in probes] + [plan.workload for plan in plans]
    names = list(dict.fromkeys(workload_title(w) for w in workloads))
    title = f"Training memory: {joined(names)}"
    lines = list(dict.fromkeys(workload_line(w) for w in workloads))
    figure = new_page(title, lines[0] if len(lines) == 1 else "")
    blocks = answer_blocks(probes, plans)
    blocks, size = _fitted(blocks)
    top = TOP + 0.05
    for block in blocks:
        top = _write_block(figure, block, top, size)
    _draw_small(figure, probes, plans)
    return figure


def answer_blocks(probes: Sequence[ProbeAnswer], plans: Sequence[PlanAnswer]) -> list[Block]:
    """Return the answers in the order they are read: plans, then probes."""
    blocks = [
        Block(
            heading=f"Plan for {card_name(plan.gpu)}",
            answer=f"{batch_words(plan)[0].upper()}{batch_words(plan)[1:]}",
            sentences=tuple(plan_words(plan)),
        )
        for plan in plans
    ]
    blocks += [
        Block(
            heading=f"On {card_name(probe.gpu)}",
            answer=f"{largest_words(probe)} ({probe.fit.origin})",
            sentences=(*recommended_words(probe), peak_words(probe), growth_words(probe)),
        )
        for probe in probes
    ]
    return blocks


def _fitted(blocks: Sequence[Block]) -> tuple[list[Block], float]:
    """Return the blocks and text size that fill the page; last sentences are the first to go.

    What is left out here stands on the pages that follow.
    """
    most = max((len(block.sentences) for block in blocks), default=0)
    for smallest, num_sentences in [*((9.0, n) for n in range(most, 0, -1)), (6.0, 1)]:
        shorter = [replace(block, sentences=block.sentences[:num_sentences]) for block in blocks]
        size = theme.LEAD_POINTS
        while size >= smallest:
            if _height(shorter, size) <= BOTTOM - TOP:
                return shorter, size
            size -= 0.5
    return shorter, smallest


def _height(blocks: Sequence[Block], size: float) -> float:
    """Return the height of all blocks at a text size, inches."""
    total = 0.0
    for block in blocks:
        num_lines = sum(len(wrap(s, TEXT_WIDTH, size)) for s in block.sentences)
        answer_lines = wrap(block.answer, TEXT_WIDTH, size * 1.35, weight="bold")
        total += line_height(size) * num_lines + 0.22
        total += line_height(size * 1.35) * (len(answer_lines) + 1)
        total += 0.05 * len(block.sentences)
    return total


def _write_block(figure: Figure, block: Block, top: float, size: float) -> float:
    """Write one block and return where the next may begin, inches."""
    write(figure, LEFT, top, block.heading, size=size, colour=theme.QUIET_INK, weight="bold")
    top += line_height(size * 1.35)
    answer_size = size * 1.35
    lines = wrap(block.answer, TEXT_WIDTH, answer_size, weight="bold")
    top = write_lines(figure, LEFT, top, lines, size=answer_size, weight="bold")
    top -= 0.06
    for sentence in block.sentences:
        top = write_lines(figure, LEFT, top, wrap(sentence, TEXT_WIDTH, size), size=size) + 0.05
    return top + 0.28


def _draw_small(
    figure: Figure,
    probes: Sequence[ProbeAnswer],
    plans: Sequence[PlanAnswer],
) -> None:
    """Draw the figure of page one: memory over batch, else the alternatives."""
    left, width = LEFT + TEXT_WIDTH + 1.05, WIDTH - TEXT_WIDTH - 1.15
    if probes:
        shown = probes[:2]
        height = 3.9 if len(shown) == 1 else 2.1
        for i, probe in enumerate(shown):
            axes = axes_at(figure, left, TOP + 0.35 + i * (height + 0.95), width, height)
            used = [p.device_used_peak_bytes for p in probe.batches]
            used.append(device_used_at(probe, probe.largest_batch))
            top = top_with_line(max(used), probe.gpu.capacity_bytes)
            draw_batches(axes, probe, top_bytes=top, small=True)
            axes.set_title(f"{probe.gpu.name}, {probe.fit.origin}", fontsize=theme.LABEL_POINTS)
    elif plans and plans[0].alternatives:
        axes = axes_at(figure, left, TOP + 0.35, width, 3.9)
        settings = by_memory(plans[0].alternatives)
        chosen = chosen_index(plans[0], settings)
        draw_alternatives(axes, settings, chosen=chosen, budget_bytes=plans[0].budget_bytes)
        axes.set_title("Alternatives, predicted", fontsize=theme.LABEL_POINTS)
