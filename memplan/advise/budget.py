"""Answers what a plan may take of a card: its memory, less what others hold now and a margin."""

from __future__ import annotations

from memplan.advise.question import Question
from memplan.device import nvml
from memplan.device.card import Card
from memplan.planner.space import Budget
from memplan.units import format_bytes


def budget_of(question: Question, card: Card, safety_fraction: float) -> tuple[Budget, str]:
    """Return the budget on a question's first card, and a sentence on what others hold of it.

    NVML says what is free now on a card in this machine: other processes and a display keep
    what they have. A card from the catalogue, or one whose capacity was given, is taken as empty,
    and the sentence is empty.

    Args:
        question: names the card.
        card: with the capacity that was given.
        safety_fraction: part of the capacity left alone, in 0-1.
    """
    budget = Budget(capacity_bytes=card.capacity_bytes, safety_fraction=safety_fraction)
    found = _present(question)
    if found is None or question.capacity_bytes is not None:
        return budget, ""
    taken = max(0, found.capacity_bytes - found.free_bytes)
    budget = Budget(
        capacity_bytes=card.capacity_bytes, safety_fraction=safety_fraction, taken_bytes=taken
    )
    held = [one for one in found.processes if one.used_bytes]
    who = ", ".join(f"process {one.pid} {format_bytes(one.used_bytes or 0)}" for one in held)
    known = f" ({who}; the rest is display and driver)" if held else " (display and driver)"
    return budget, (
        f"{format_bytes(taken)} of the card are in use now (measured){known}, which the budget "
        "leaves to them."
    )


def _present(question: Question) -> nvml.PresentCard | None:
    """Return the card in this machine that a question is about; None for one that is elsewhere."""
    first = question.gpus[0] if question.gpus else None
    if isinstance(first, Card):
        return None
    if first is None:
        present = nvml.present()
        return present[0] if present else None
    if isinstance(first, int) or first.isdecimal():
        return nvml.card_at(int(first))
    return None
