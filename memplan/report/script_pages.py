"""Pages about a command that ran on a phantom card: memory over its steps, where it was made."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from memplan.present.script import remedies, script_headline, script_numbers
from memplan.report import theme
from memplan.report.axes import (
    BACKING,
    capacity_line,
    end_labels,
    integer_axis,
    memory_axis,
    top_with_line,
)
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    axes_at,
    draw_table,
    new_page,
    shorten,
    wrap,
    write,
    write_lines,
)
from memplan.report.numbers import draw_numbers
from memplan.report.series import stacked_bands
from memplan.script_answer import ScriptAnswer
from memplan.units import format_bytes

_LEGEND_WIDTH = 2.5
_MODULES = 15
_READS = 12
# Under the bars of modules: the table of peaks, and beside it what else is known, inches.
_FEW_FACTS, _PEAKS_WIDTH = 1.55, 2.6


@theme.themed
def script_figures(answer: ScriptAnswer) -> list[Figure]:
    """Return the pages of one answer."""
    figures = [_glance_figure(answer)]
    figures += [_timeline_figure(answer)] if answer.timeline.categories else []
    has_few_facts = not answer.by_rule and not answer.trials
    if answer.modules:
        figures.append(_modules_figure(answer, below=_FEW_FACTS if has_few_facts else 0.0))
    if not answer.modules or not has_few_facts:
        figures.append(new_page("What was run, and what was answered by rule", answer.command))
    _draw_facts(
        figures[-1], answer, BOTTOM - _FEW_FACTS if answer.modules and has_few_facts else TOP
    )
    return figures


def headline(answer: ScriptAnswer) -> str:
    """Return in a few words whether the command runs."""
    card = answer.title
    if answer.largest_batch is not None:
        return f"Largest {answer.batch_option} on {card}: {answer.largest_batch}"
    if answer.out_of_memory is not None and not answer.out_of_memory.is_caught:
        memory = answer.out_of_memory
        place = f", {Path(memory.file).name}:{memory.line}" if memory.file else ""
        return f"Runs out of memory on {card}: step {memory.step + 1}{place}"
    if answer.error is not None:
        place = f" at {answer.error_place}" if answer.error_place else ""
        return f"Fails{place}: {answer.error.kind}"
    return f"Runs on {card}: {format_bytes(answer.device_used_peak_bytes)} at its peak"


def _glance_figure(answer: ScriptAnswer) -> Figure:
    """Return page one: does it run, where it ran out, what to change, and growth by step."""
    figure = new_page(headline(answer), answer.command)
    top = draw_numbers(figure, TOP, script_numbers(answer)) + 0.35
    has_growth = len(answer.growth) > 1
    has_picture = has_growth or bool(answer.timeline.categories)
    width = WIDTH * 0.46 if has_picture else WIDTH
    y = top
    for title in ("Does it run", "What to change"):
        texts = [script_headline(answer)] if title == "Does it run" else remedies(answer)
        if not texts:
            continue
        write(figure, LEFT, y, title, size=theme.LEAD_POINTS, weight="bold")
        y += 0.26
        for text in texts:
            y = write_lines(figure, LEFT, y, wrap(text, width, theme.BODY_POINTS)) + 0.08
        y += 0.2
    if has_picture:
        left = LEFT + WIDTH * 0.54
        axes = axes_at(figure, left, top + 0.1, WIDTH * 0.46 - 1.0, BOTTOM - top - 0.8)
        (draw_growth if has_growth else draw_timeline)(axes, answer)
        title = "Peaks after each step" if has_growth else "Allocated by category"
        axes.set_title(title, pad=8)
    return figure


def draw_growth(axes: Axes, answer: ScriptAnswer) -> None:
    """Draw allocated and reserved peaks over the optimizer steps, with the capacity."""
    steps = range(1, len(answer.growth) + 1)
    ends = []
    styles = (("reserved", theme.BLUE, "s", "-"), ("allocated", theme.GREEN, "o", "--"))
    for name, colour, marker, dash in styles:
        values = [step[f"{name}_peak_bytes"] for step in answer.growth]
        axes.plot(
            steps, values, color=colour, marker=marker, markersize=4, linestyle=dash, label=name
        )
        ends.append((float(len(values)), float(values[-1]), name, colour))
    highest = max(y for _, y, _, _ in ends)
    memory_axis(axes, "y", "Memory", top_with_line(highest, answer.capacity_bytes, reach=1.8))
    integer_axis(axes, "x")
    axes.set_xlabel("Step of the optimizer")
    capacity_line(axes, answer.capacity_bytes, "capacity")
    end_labels(axes, ends)


def _timeline_figure(answer: ScriptAnswer) -> Figure:
    used, capacity = (
        format_bytes(answer.device_used_peak_bytes),
        format_bytes(answer.capacity_bytes),
    )
    figure = new_page(
        "Memory over the steps that were watched",
        f"Allocated bytes by category over {answer.num_steps} steps; device-used {used} of "
        f"{capacity} at its peak. PyTorch itself on a card that is not there, not measured.",
    )
    width = WIDTH - _LEGEND_WIDTH - 0.55
    axes = axes_at(figure, LEFT + 0.55, TOP + 0.1, width, BOTTOM - 0.75 - TOP)
    draw_timeline(axes, answer)
    _legend(axes, answer)
    return figure


def draw_timeline(axes: Axes, answer: ScriptAnswer) -> None:
    """Draw stacked bands of categories, where steps end, the reserved peak and the capacity."""
    bands = stacked_bands(answer.timeline.categories)
    count = max(len(values) for _, values in bands)
    below = [0] * count
    for band, values in bands:
        above = [low + value for low, value in zip(below, values, strict=True)]
        axes.fill_between(
            range(count + 1),
            [*below, below[-1]],
            [*above, above[-1]],
            step="post",
            facecolor=band.fill,
            hatch=band.hatch,
            edgecolor=theme.QUIET_INK if band.hatch else "none",
            linewidth=0,
            label=band.label,
        )
        below = above
    for end in answer.timeline.step_ends:
        axes.axvline(end + 0.5, color=theme.QUIET_INK, linewidth=0.5, zorder=4)
    axes.axhline(answer.reserved_peak_bytes, color=theme.BLACK, linewidth=1.1, label="reserved")
    axes.annotate(
        f"reserved at its peak {format_bytes(answer.reserved_peak_bytes)}",
        (0.0, answer.reserved_peak_bytes), xycoords=("axes fraction", "data"), xytext=(4, -4),
        textcoords="offset points", va="top", fontsize=theme.SMALL_POINTS, bbox=BACKING, zorder=7,
    )  # fmt: skip
    top = top_with_line(answer.reserved_peak_bytes, answer.capacity_bytes, reach=1.8)
    memory_axis(axes, "y", "Allocated memory", top)
    axes.set_xlim(0, count)
    axes.set_xticks([])
    ended = "; upright lines: an optimizer step ended" if answer.timeline.step_ends else ""
    axes.set_xlabel(f"Order of allocations{ended}")
    capacity_line(axes, answer.capacity_bytes, f"capacity of {answer.gpu}", side="right")


def _legend(axes: Axes, answer: ScriptAnswer) -> None:
    at_peak = answer.categories_at_peak
    handles = [
        Patch(
            facecolor=band.fill,
            edgecolor=theme.QUIET_INK,
            hatch=band.hatch,
            linewidth=0.5,
            label=f"{band.label}  {format_bytes(at_peak.get(band.name, 0))}",
        )
        for band, _ in reversed(stacked_bands(answer.timeline.categories))
    ]
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        title="At the allocated peak",
        fontsize=theme.BODY_POINTS,
        alignment="left",
        labelspacing=0.7,
        handlelength=1.5,
        borderaxespad=0,
    )
    legend.get_title().set_fontweight("bold")


def _modules_figure(answer: ScriptAnswer, *, below: float) -> Figure:
    """Return a page of bars by module that leaves so many inches free below them."""
    figure = new_page(
        "Where memory at the peak was made",
        f"Bytes that lived at the allocated peak, by the module that was running; "
        f"{answer.peak_phase or 'the peak'} of {answer.peak_module or 'no module'}.",
    )
    shown = answer.modules[:_MODULES]
    left = LEFT + 2.6
    axes = axes_at(figure, left, TOP + 0.2, WIDTH - 3.6, BOTTOM - TOP - 0.9 - below)
    start = [0] * len(shown)
    for band in theme.BANDS:
        values = [int(one.get(band.name, 0)) for one in shown]
        if any(values):
            axes.barh(
                range(len(shown)), values, left=start, color=band.fill, hatch=band.hatch,
                height=0.72, label=band.label,
                edgecolor=theme.QUIET_INK if band.hatch else "none", linewidth=0,
            )  # fmt: skip
            start = [low + value for low, value in zip(start, values, strict=True)]
    names = [one["path"] or "(outside modules)" for one in shown]
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), [shorten(n, 2.4, theme.SMALL_POINTS) for n in names])
    axes.tick_params(axis="y", length=0, labelcolor=theme.INK)
    memory_axis(axes, "x", "Memory", max([*start, 1]) * 1.02, num_ticks=6)
    for row, value in enumerate(start):
        axes.annotate(
            format_bytes(value), (value, row), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=theme.SMALL_POINTS, annotation_clip=False,
        )  # fmt: skip
    if shown:
        axes.legend(loc="lower right", fontsize=theme.SMALL_POINTS)
    return figure


def _draw_facts(figure: Figure, answer: ScriptAnswer, top: float) -> None:
    """Draw peaks, what was read by rule, and where memory ran out, from a height on, inches."""
    rows = [
        ["allocated", format_bytes(answer.allocated_peak_bytes)],
        ["reserved", format_bytes(answer.reserved_peak_bytes)],
        ["device-used", format_bytes(answer.device_used_peak_bytes)],
        ["capacity", format_bytes(answer.capacity_bytes)],
    ]
    y = draw_table(figure, LEFT, top + 0.1, ["Peak (phantom)", "Size"], rows, align="lr") + 0.3
    left, width = LEFT + WIDTH / 2, WIDTH / 2
    if not answer.by_rule and not answer.trials:
        left, width = LEFT + _PEAKS_WIDTH, WIDTH - _PEAKS_WIDTH
        end = write_lines(figure, left, top + 0.28, _facts(answer, width))
        write(figure, left, end, "No value that depends on the network was read by the host.")
        return
    y = write_lines(figure, LEFT, y, _facts(answer, width - 0.3)) + 0.2
    if answer.trials:
        trials = [
            [str(t.batch), format_bytes(t.device_used_peak_bytes), "yes" if t.runs else "no"]
            for t in answer.trials
        ]
        header = [answer.batch_option, "Device-used", "Runs"]
        draw_table(figure, LEFT, y, header, trials, align="rrl")
    write(figure, left, top + 0.2, "Values that depend on the network", weight="bold")
    reads = [[one.line or "(no line)", one.answer, str(one.count)] for one in answer.by_rule]
    if reads:
        shown = [[shorten(r[0], 2.6, theme.BODY_POINTS), *r[1:]] for r in reads[:_READS]]
        draw_table(figure, left, top + 0.3, ["Line", "Read as", "Times"], shown, align="llr")
    else:
        write(figure, left, top + 0.45, "None was read by the host.")


def _facts(answer: ScriptAnswer, width: float) -> list[str]:
    """Return what else is known, as lines of so many inches."""
    lines = [
        f"torch {answer.versions.get('torch', '?')}; {answer.num_steps} optimizer steps watched.",
        f"{answer.from_host} values read came from the host itself.",
    ]
    memory, error = answer.out_of_memory, answer.error
    if memory is not None:
        place = f"{Path(memory.file).name}:{memory.line}"
        end = "; the script went on" if memory.is_caught else ""
        lines.append(
            f"Out of memory in step {memory.step + 1} at {place}, {memory.phase} of "
            f"{memory.module or 'no module'}, asking for "
            f"{format_bytes(memory.requested_bytes)}{end}."
        )
    if error is not None:
        lines.append(f"{error.kind} at {Path(error.file).name}:{error.line}: {error.message}")
    return [part for line in lines for part in wrap(line, width, theme.BODY_POINTS)]
