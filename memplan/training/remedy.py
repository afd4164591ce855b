"""The cheapest thing that helps against memory that is about to run out; no device and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from memplan.answers import Setting
from memplan.spec import StepSpec
from memplan.training.watch import OTHERS_BYTES, Cause, Finding


class Action(StrEnum):
    """What is done about it, from cheap to dear."""

    WARN = "none"
    EMPTY_CACHE = "cache emptied"
    SMALLER = "smaller micro-batch"
    LIGHTER = "less kept for backward"
    EXPANDABLE = "expandable segments at the next restart"


@dataclass(frozen=True, kw_only=True)
class Means:
    """What may be done in a run as it stands."""

    micro_batch_size: int
    cached_bytes: int
    """Held and not needed by the last step's peak."""
    can_lighten: bool = False
    """Whether blocks could be lean, or compute activations again that they keep."""
    is_lighter_faster: bool = False
    """Whether the plan's fastest setting that takes less keeps less for backward, at the same
    micro-batch."""
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
    # A smaller micro-batch is taken back after a while, so it suits what is over by then.
    is_lighter_cheaper = finding.cause is Cause.LEAK and means.is_lighter_faster
    if means.micro_batch_size > 1 and not is_lighter_cheaper:
        return Action.SMALLER
    return Action.LIGHTER if means.can_lighten else Action.WARN


def planned_lighter(
    settings: Sequence[Setting], spec: StepSpec, micro_batch_size: int
) -> StepSpec | None:
    """Return how the plan would have a step keep less, at the micro-batch it is at.

    Args:
        settings: the plan's.
        spec: how a step runs now.
        micro_batch_size: images at once now.

    Returns:
        That of the fastest setting, by prediction, that takes less than the present one and that
        a running step can go over to; None where there is none, or its micro-batch is smaller.
    """
    now = [one for one in settings if _is(one, micro_batch_size) and one.spec == spec]
    most = min((one.predicted.device_used_peak_bytes for one in now), default=None)
    fitting = [
        one
        for one in settings
        if one.split.micro_batch_size <= micro_batch_size
        and keeps_less(one.spec, spec)
        and (most is None or one.predicted.device_used_peak_bytes < most)
        and not (_is(one, micro_batch_size) and one.spec == spec)
    ]
    best = max(fitting, key=lambda one: one.predicted.images_per_second, default=None)
    return best.spec if best is not None and _is(best, micro_batch_size) else None


def _is(setting: Setting, micro_batch_size: int) -> bool:
    return setting.split.micro_batch_size == micro_batch_size


def keeps_less(one: StepSpec, other: StepSpec) -> bool:
    """Return whether a running step goes over from the other spec to one by keeping no more."""
    return (
        replace(one, lean=other.lean, recompute=other.recompute) == other
        and one.lean >= other.lean
        and set(one.recompute) >= set(other.recompute)
    )
