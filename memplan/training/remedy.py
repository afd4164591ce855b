"""The cheapest thing that helps against memory that is about to run out; no device and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from memplan.training.watch import OTHERS_BYTES, Cause, Finding


class Action(StrEnum):
    """What is done about it, from cheap to dear."""

    WARN = "none"
    EMPTY_CACHE = "cache emptied"
    SMALLER = "smaller micro-batch"
    RECOMPUTE = "recompute"
    EXPANDABLE = "expandable segments at the next restart"


@dataclass(frozen=True, kw_only=True)
class Means:
    """What may be done in a run as it stands."""

    micro_batch_size: int
    cached_bytes: int
    """Held and not needed by the last step's peak."""
    can_recompute: bool = False
    """Whether blocks that keep their activations could compute them again."""
    is_expandable: bool = False
    """Whether segments are expandable already, or will be."""
    times_emptied: int = 0
    """How often the cache was emptied for this cause."""


def cheapest(finding: Finding, means: Means) -> Action:
    """Return the cheapest remedy that helps against a finding."""
    if finding.cause is Cause.FRAGMENTATION:
        if not means.times_emptied:
            return Action.EMPTY_CACHE
        if not means.is_expandable:
            return Action.EXPANDABLE
    if not finding.is_urgent:
        return Action.WARN
    # A cache that is a part of what others took gives it back; it costs a few allocations.
    can_give = means.cached_bytes >= OTHERS_BYTES and not means.times_emptied
    if finding.cause is Cause.OTHERS and can_give:
        return Action.EMPTY_CACHE
    if means.micro_batch_size > 1:
        return Action.SMALLER
    return Action.RECOMPUTE if means.can_recompute else Action.WARN
