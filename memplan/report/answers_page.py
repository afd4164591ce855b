"""Page one: each answer in a few large numbers, the sentences of the terminal, and a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from memplan.answers import PlanAnswer, ProbeAnswer
from memplan.present.plan import plan_numbers, plan_sections
from memplan.present.probe import probe_numbers, probe_sections
from memplan.present.words import batch_words, card_name, joined, workload_line, workload_title
from memplan.report import theme
from memplan.report.alternatives import by_memory, chosen_index, draw_alternatives
from memplan.report.axes import top_with_line
from memplan.report.batches import draw_batches
from memplan.report.fonts import MONO
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    draw_table,
    line_height,
    new_page,
    row_height,
    wrap,
    write,
    write_lines,
)
from memplan.report.numbers import draw_numbers
from memplan.report.series import device_used_at

ANSWERS_A_PAGE = 4
_TEXT_WIDTH = 6.35
_LEAST_PICTURE = 1.75
_HEADING = 0.2
_COMMAND_HEIGHT = 0.9
# What an answer says first; the pages of sections have all of it.
_FIRST = ("Your command", "The plan", "The largest micro-batch", "Recommended")
_TABLES = ("Where memory goes",)

_Answer = PlanAnswer | ProbeAnswer


@theme.themed
def answers_figures(probes: Sequence[ProbeAnswer], plans: Sequence[PlanAnswer]) -> list[Figure]:
    """Return page one, and more of it where there are more answers than fit on a page."""
    answers: list[_Answer] = [*plans, *probes]
    pages = range(0, len(answers), ANSWERS_A_PAGE)
    return [_page(answers[start : start + ANSWERS_A_PAGE]) for start in pages]


def _page(answers: Sequence[_Answer]) -> Figure:
    lines = list(dict.fromkeys(workload_line(answer.workload) for answer in answers))
    figure = new_page(_title(answers), lines[0] if len(lines) == 1 else "")
    with_command = len(answers) == 1 and isinstance(answers[0], PlanAnswer)
    room = BOTTOM - TOP + 0.1 - _COMMAND_HEIGHT * with_command
    height = room / len(answers)
    for i, answer in enumerate(answers):
        _draw_answer(figure, answer, TOP - 0.1 + i * height, height - 0.15)
    if isinstance(answers[0], PlanAnswer) and with_command:
        _write_command(figure, answers[0].command)
    return figure


def _write_command(figure: Figure, command: str) -> None:
    """Write the command to copy at the foot of the page, where one answer leaves room."""
    lines = wrap(command, WIDTH, theme.BODY_POINTS, family=MONO)[:3]
    top = BOTTOM - line_height(theme.BODY_POINTS) * (len(lines) - 1)
    write(figure, LEFT, top - 0.24, "Run it", weight="bold")
    write_lines(figure, LEFT, top, lines, family=MONO)


def _title(answers: Sequence[_Answer]) -> str:
    """Return the answer where there is one, else what the answers are about."""
    names = list(dict.fromkeys(workload_title(answer.workload) for answer in answers))
    if len(answers) > 1:
        return f"Training memory: {joined(names)}"
    (answer,) = answers
    if isinstance(answer, PlanAnswer):
        return f"{names[0]} on {answer.gpu.name}: {batch_words(answer.split)}"
    if not answer.largest_batch:
        return f"{names[0]} on {answer.gpu.name}: not even one image fits"
    images = f"{answer.largest_batch} image{'' if answer.largest_batch == 1 else 's'}"
    return f"{names[0]} on {answer.gpu.name}: up to {images} at once"


def _draw_answer(figure: Figure, answer: _Answer, top: float, height: float) -> None:
    """Draw one answer in a strip of the page, inches."""
    is_plan = isinstance(answer, PlanAnswer)
    has_picture = height > _LEAST_PICTURE and _has_picture(answer)
    kind = "Plan" if is_plan else "Probe"
    heading = f"{kind} for {card_name(answer.gpu)}"
    write(figure, LEFT, top + _HEADING, heading, size=theme.LEAD_POINTS, weight="bold")
    numbers = plan_numbers(answer) if isinstance(answer, PlanAnswer) else probe_numbers(answer)
    width = _TEXT_WIDTH if has_picture else WIDTH
    y = draw_numbers(figure, top + _HEADING + 0.12, numbers, width=width) + 0.12
    _write_sentences(figure, answer, y, top + height, width)
    if has_picture:
        _draw_picture(figure, answer, top + _HEADING, height - _HEADING - 0.65)


def _write_sentences(
    figure: Figure, answer: _Answer, y: float, bottom: float, width: float
) -> None:
    """Write the sentences of the first sections, as many as have room whole."""
    sections = plan_sections(answer) if isinstance(answer, PlanAnswer) else probe_sections(answer)
    text = [" ".join(one.sentences) for one in sections if one.title in _FIRST]
    for sentence in text:
        lines = wrap(sentence, width, theme.BODY_POINTS)
        room = int((bottom - y) / line_height(theme.BODY_POINTS)) + 1
        if len(lines) > room:
            return
        y = write_lines(figure, LEFT, y, lines) + 0.07
    tables = [one.table for one in sections if one.title in _TABLES and one.table is not None]
    for table in tables:
        height = row_height(theme.BODY_POINTS) * (len(table.rows) + 2)
        if y + height > bottom:
            return
        y = write_lines(figure, LEFT, y + 0.15, [table.caption], weight="bold")
        align = "l" * table.left + "r" * (len(table.header) - table.left)
        y = draw_table(figure, LEFT, y - 0.15, table.header, table.rows, align=align)


def _has_picture(answer: _Answer) -> bool:
    return isinstance(answer, ProbeAnswer) or bool(answer.alternatives)


def _draw_picture(figure: Figure, answer: _Answer, top: float, height: float) -> None:
    """Draw memory over batch of a probe, or what a plan was chosen from."""
    left, width = LEFT + _TEXT_WIDTH + 0.95, WIDTH - _TEXT_WIDTH - 1.05
    axes = axes_at(figure, left, top, width, min(height, 4.2))
    if isinstance(answer, PlanAnswer):
        settings = by_memory(answer.alternatives)
        chosen = chosen_index(answer, settings)
        words = [setting.split.words for setting in settings]
        is_new = [i == chosen or word not in words[:i] for i, word in enumerate(words)]
        labels = [word if new else "" for word, new in zip(words, is_new, strict=True)]
        draw_alternatives(
            axes, settings, labels=labels, chosen=chosen, budget_bytes=answer.budget_bytes
        )
        note = "Each point: micro-batch x accumulation steps"
        axes.set_title(note, fontsize=theme.SMALL_POINTS, fontweight="normal")
        return
    used = [peaks.device_used_peak_bytes for peaks in answer.batches]
    used.append(device_used_at(answer, answer.largest_batch))
    top_bytes = top_with_line(max(used), answer.gpu.capacity_bytes)
    draw_batches(axes, answer, top_bytes=top_bytes, small=True)
