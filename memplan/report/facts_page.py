"""The last pages: commands, versions, where figures come from, and what is not known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from memplan.answers import FitFacts, PlanAnswer, ProbeAnswer
from memplan.present.probe import operator_words
from memplan.present.words import card_name, workload_line, workload_title
from memplan.report import theme
from memplan.report.fonts import MONO, SANS
from memplan.report.frame import (
    BOTTOM,
    LEFT,
    TOP,
    WIDTH,
    content_end,
    line_height,
    new_page,
    wrap,
    write,
)
from memplan.units import format_bytes, format_seconds

INDENT = 1.95
_SIZE = theme.BODY_POINTS - 0.5
_SMALLEST = 8.0
_TITLE = "How these numbers came about"
# Between the facts under another page's content and that.
_UNDER = 0.42
_AFTER_PARAGRAPH = 0.04
_AFTER_FACT = 0.09
_NAMED_OPERATORS = 6
LIMITS = (
    (
        "Predicted: computed from a recording of the training at a few batches, replayed through a "
        "model of the card and its allocator, without running on the card."
    ),
    (
        "Simulated: the allocator's replay of one recorded stream. Measured: read from a device "
        "while it ran."
    ),
    (
        "Allocated is what tensors hold, reserved is what the allocator holds from the driver, "
        "device-used adds the CUDA context and, when measured, other processes."
    ),
    (
        "Not modelled: other processes on the card, memory that Python code outside the workload "
        "takes, and objects in an image beyond the number stated."
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A name and the paragraphs beside it."""

    name: str
    paragraphs: tuple[str, ...]
    mono: bool = False


@theme.themed
def facts_figures(
    probes: Sequence[ProbeAnswer],
    plans: Sequence[PlanAnswer],
    command: str,
    *,
    after: Figure | None = None,
) -> list[Figure]:
    """Return the closing pages, as many as the facts need.

    Args:
        probes: answers of `memplan probe`.
        plans: answers of `memplan plan`.
        command: that asked for the report.
        after: a page whose free lower part takes the facts where they have room there, and the
            first of them where it is half empty; None begins on a page of their own.
    """
    facts = report_facts(probes, plans, command)
    under = BOTTOM if after is None else content_end(after) + _UNDER
    heading = line_height(theme.HEADING_POINTS)
    size = _fitting(facts, BOTTOM - under - heading)
    if after is not None and (size or under < (TOP + BOTTOM) / 2):
        # Facts that are parted leave both of their pages filled alike.
        alike = (under + TOP + heading + _height(facts, _SIZE)) / 2
        write(after, LEFT, under, _TITLE, size=theme.HEADING_POINTS, weight="bold")
        last = BOTTOM if size else min(BOTTOM, alike)
        return _write_facts(facts, size or _SIZE, (after, under + heading), last)
    return _write_facts(facts, _fitting(facts, BOTTOM - TOP) or _SMALLEST, None, BOTTOM)


def _fitting(facts: Sequence[Fact], room: float) -> float:
    """Return the largest text size in which all facts fit in so many inches; 0 where none is."""
    size = _SIZE
    while size >= _SMALLEST:
        if _height(facts, size) <= room:
            return size
        size -= 0.5
    return 0.0


def _write_facts(
    facts: Sequence[Fact], size: float, start: tuple[Figure, float] | None, bottom: float
) -> list[Figure]:
    """Write facts from a page and height on, inches, and return the pages made for them.

    Args:
        facts: in order.
        size: points.
        start: the page that is there and where it is free; None begins a new one.
        bottom: where the first page ends.
    """
    figures: list[Figure] = []
    page, y = start or (None, BOTTOM + 1)
    for fact in facts:
        family = MONO if fact.mono else SANS
        name = fact.name
        for paragraph in fact.paragraphs:
            for line in wrap(paragraph, WIDTH - INDENT, size, family=family):
                if page is None or y > bottom:
                    page = new_page(_TITLE)
                    figures.append(page)
                    y, bottom = TOP - 0.15, BOTTOM
                    name = name or f"{fact.name} (cont.)"
                write(page, LEFT, y, name, size=size, weight="bold")
                write(page, LEFT + INDENT, y, line, size=size, family=family)
                name = ""
                y += line_height(size)
            y += _AFTER_PARAGRAPH
        y += _AFTER_FACT
    return figures


def _height(facts: Sequence[Fact], size: float) -> float:
    """Return the height of all facts at a text size, inches."""
    total = 0.0
    for fact in facts:
        family = MONO if fact.mono else SANS
        for paragraph in fact.paragraphs:
            num_lines = len(wrap(paragraph, WIDTH - INDENT, size, family=family))
            total += num_lines * line_height(size) + _AFTER_PARAGRAPH
        total += _AFTER_FACT
    return total


def report_facts(
    probes: Sequence[ProbeAnswer], plans: Sequence[PlanAnswer], command: str
) -> list[Fact]:
    """Return every fact the last page states, each once, in order."""
    answers: list[ProbeAnswer | PlanAnswer] = [*probes, *plans]
    commands = [command, *(answer.command for answer in answers)]
    notes = [note for answer in answers for note in (*answer.notes, *answer.unchecked)]
    candidates = [
        Fact(name="Command", paragraphs=_unique(commands), mono=True),
        Fact(
            name="Workload",
            paragraphs=_unique(
                [f"{workload_title(a.workload)}: {workload_line(a.workload)}" for a in answers]
            ),
        ),
        Fact(name="Card", paragraphs=_unique([_card_words(a) for a in answers])),
        Fact(name="Memory by batch", paragraphs=_unique([_fit_words(p) for p in probes])),
        Fact(name="Unknown operators", paragraphs=_unique([_unknown_words(p) for p in probes])),
        Fact(name="Recomputed", paragraphs=_unique([_recompute_words(plan) for plan in plans])),
        Fact(name="Notes", paragraphs=_unique(notes)),
        Fact(name="What is what", paragraphs=LIMITS),
        Fact(name="Versions", paragraphs=_unique([_versions_words(a) for a in answers])),
        Fact(name="Time taken", paragraphs=_unique([", ".join(_time_words(a) for a in answers)])),
    ]
    return [fact for fact in candidates if fact.paragraphs]


def _unique(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def _card_words(answer: ProbeAnswer | PlanAnswer) -> str:
    gpu = answer.gpu
    return (
        f"{card_name(gpu)}: {gpu.capacity_bytes:,} bytes; context "
        f"{format_bytes(gpu.context_bytes)} ± {format_bytes(gpu.context_uncertainty_bytes)}. "
        f"Source: {gpu.source}"
    )


def _fit_words(probe: ProbeAnswer) -> str:
    fit = probe.fit
    recorded = ", ".join(map(str, fit.recorded_batches))
    text = (
        f"{probe.gpu.name}: recorded at batches {recorded}; {len(probe.batches)} evaluated; the "
        f"line is {fit.error_words}."
    )
    if fit.not_affine:
        text += f" Not a straight line in the batch, and by how much at most: {_largest_off(fit)}."
    return text


def _largest_off(fit: FitFacts) -> str:
    """Return the operators whose bytes are farthest from a line, and how many more there are."""
    largest = sorted(fit.not_affine.items(), key=lambda one: -one[1])
    named = [f"{operator_words(k)} ({format_bytes(v)})" for k, v in largest[:_NAMED_OPERATORS]]
    if more := len(largest) - len(named):
        named.append(f"{more} more by less, in the saved answer")
    return ", ".join(named)


def _unknown_words(probe: ProbeAnswer) -> str:
    if not probe.unknown_operators:
        return "None: the workspace of every operator that takes one is modelled."
    named = ", ".join(f"{name} ({count})" for name, count in probe.unknown_operators.items())
    return f"Counted with no workspace, and how often they run: {named}."


def _recompute_words(plan: PlanAnswer) -> str:
    return f"{plan.gpu.name}: {', '.join(plan.spec.recompute)}" if plan.spec.recompute else ""


def _versions_words(answer: ProbeAnswer | PlanAnswer) -> str:
    return ", ".join(f"{name} {version}" for name, version in answer.versions.items())


def _time_words(answer: ProbeAnswer | PlanAnswer) -> str:
    kind = answer.SCHEMA.split(".")[-1].split("/")[0]
    return f"{kind} for {answer.gpu.name}: {format_seconds(answer.seconds)}"
