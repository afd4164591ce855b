"""What the figures draw, computed from the answers: pure data, no matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memplan.answers import BatchPeaks, ModuleMemory, ProbeAnswer, Timeline
from memplan.report.theme import BAND_OF, BANDS, Band

OUTSIDE_ALLOCATOR = "context"
CACHED = "cached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a timeline: samples `start` up to but without `stop`."""

    label: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleGroup:
    """Modules under one readable path, summed."""

    path: str
    type: str
    activation_bytes: int
    workspace_bytes: int
    """Largest single workspace of any of them."""
    num_modules: int


def stacked_bands(categories: Mapping[str, tuple[int, ...]]) -> list[tuple[Band, list[int]]]:
    """Return band and bytes a sample, bottom to top; names without a band are unattributed."""
    named = {name: list(values) for name, values in categories.items() if name in BAND_OF}
    strangers = [values for name, values in categories.items() if name not in BAND_OF]
    if strangers:
        rows = [*strangers, named.get("unattributed", [0] * len(strangers[0]))]
        named["unattributed"] = [sum(column) for column in zip(*rows, strict=True)]
    return [(band, named[band.name]) for band in BANDS if any(named.get(band.name, ()))]


def bands_of(categories: Mapping[str, int]) -> list[tuple[Band, int]]:
    """Return band and bytes of a single moment, bottom to top, empty ones left out."""
    single = {name: (num_bytes,) for name, num_bytes in categories.items()}
    return [(band, values[0]) for band, values in stacked_bands(single)]


def reserved_line(timeline: Timeline) -> list[int]:
    """Return reserved bytes at each sample: every category but the context, cached included."""
    inside = [v for name, v in timeline.categories.items() if name != OUTSIDE_ALLOCATOR]
    return [sum(column) for column in zip(*inside, strict=True)]


def allocated_line(timeline: Timeline) -> list[int]:
    """Return bytes of live tensors and scratch at each sample: neither cached nor context."""
    outside = (CACHED, OUTSIDE_ALLOCATOR)
    live = [v for name, v in timeline.categories.items() if name not in outside]
    return [sum(column) for column in zip(*live, strict=True)]


def device_line(timeline: Timeline) -> list[int]:
    """Return device-used bytes at each sample: every category, the context included."""
    return [sum(column) for column in zip(*timeline.categories.values(), strict=True)]


def period_spans(timeline: Timeline) -> list[Span]:
    """Return the stretches of one period each, neighbours of the same period joined."""
    spans: list[Span] = []
    for period, span in zip(
        (p for p, _, _ in timeline.periods), phase_spans(timeline), strict=True
    ):
        if spans and spans[-1].label == period:
            spans[-1] = Span(label=period, start=spans[-1].start, stop=span.stop)
        else:
            spans.append(Span(label=period, start=span.start, stop=span.stop))
    return spans


def phase_spans(timeline: Timeline) -> list[Span]:
    """Return the stretches of one phase each, in order."""
    total = len(next(iter(timeline.categories.values()), ()))
    starts = [start for _, _, start in timeline.periods]
    stops = [*starts[1:], total]
    return [
        Span(label=phase, start=start, stop=stop)
        for (_, phase, start), stop in zip(timeline.periods, stops, strict=True)
    ]


def sorted_batches(probe: ProbeAnswer) -> list[BatchPeaks]:
    """Return the evaluated batches, smallest first."""
    return sorted(probe.batches, key=lambda peaks: peaks.micro_batch_size)


def peaks_at(probe: ProbeAnswer, batch: int) -> BatchPeaks | None:
    """Return the peaks at one micro-batch size, or None where it was not evaluated."""
    rows = (*probe.batches, *probe.edge)
    return next((row for row in rows if row.micro_batch_size == batch), None)


def on_line(probe: ProbeAnswer, batch: float) -> int:
    """Return reserved bytes at a batch by the straight line of the fit."""
    return round(probe.fit.base_bytes + probe.fit.bytes_per_image * batch)


def residuals(probe: ProbeAnswer) -> list[tuple[int, int]]:
    """Return micro-batch size and reserved bytes minus the straight line's."""
    return [
        (p.micro_batch_size, p.reserved_peak_bytes - on_line(probe, p.micro_batch_size))
        for p in sorted_batches(probe)
    ]


def device_used_at(probe: ProbeAnswer, batch: int) -> int:
    """Return device-used bytes at a batch: as evaluated, else by the straight line."""
    peaks = peaks_at(probe, batch)
    if peaks is not None:
        return peaks.device_used_peak_bytes
    return on_line(probe, batch) + probe.gpu.context_bytes


def split_by_recorded(
    points: Sequence[tuple[int, int]], recorded: Sequence[int]
) -> list[tuple[bool, list[tuple[int, int]]]]:
    """Return the line's pieces, each with whether it lies within the recorded batches.

    Neighbouring pieces share their end point, so the line has no gap.
    """
    low, high = (min(recorded), max(recorded)) if recorded else (0, 0)
    pieces: list[tuple[bool, list[tuple[int, int]]]] = []
    for one, other in itertools.pairwise(points):
        inside = low <= one[0] and other[0] <= high
        if pieces and pieces[-1][0] == inside:
            pieces[-1][1].append(other)
        else:
            pieces.append((inside, [one, other]))
    return pieces or [(True, list(points))]


def group_modules(modules: Sequence[ModuleMemory], *, depth: int) -> list[ModuleGroup]:
    """Return modules summed by the first `depth` parts of their paths, largest first.

    The type is that of the module at the group's own path, empty where there is none.
    """
    members: dict[str, list[ModuleMemory]] = {}
    for module in modules:
        members.setdefault(".".join(module.path.split(".")[:depth]), []).append(module)
    groups = [
        ModuleGroup(
            path=path or "(outside modules)",
            type=next((m.type for m in inside if m.path == path), ""),
            activation_bytes=sum(m.activation_bytes for m in inside),
            workspace_bytes=max(m.workspace_bytes for m in inside),
            num_modules=len(inside),
        )
        for path, inside in members.items()
    ]
    return sorted(groups, key=lambda group: -group.activation_bytes)


def along_network(modules: Sequence[ModuleMemory], *, depth: int) -> list[ModuleGroup]:
    """Return the same groups in the order in which the network lists its modules."""
    paths = [".".join(module.path.split(".")[:depth]) or "(outside modules)" for module in modules]
    place = {path: i for i, path in reversed([*enumerate(paths)])}
    return sorted(group_modules(modules, depth=depth), key=lambda group: place[group.path])


def readable_depth(modules: Sequence[ModuleMemory], *, at_least: int = 8) -> int:
    """Return how many parts of a path to keep: two, or more where those give under `at_least`."""
    deepest = max((module.path.count(".") + 1 for module in modules), default=1)
    for depth in range(2, deepest):
        groups = group_modules(modules, depth=depth)
        if sum(group.activation_bytes > 0 for group in groups) >= at_least:
            return depth
    return min(deepest, 4)


def largest_groups(groups: Sequence[ModuleGroup], count: int) -> list[ModuleGroup]:
    """Return the first `count` groups that hold any memory and all other such as one, `others`."""
    holding = [group for group in groups if group.activation_bytes or group.workspace_bytes]
    kept, rest = holding[:count], holding[count:]
    if not rest:
        return kept
    others = ModuleGroup(
        path=f"{len(rest)} others",
        type="",
        activation_bytes=sum(group.activation_bytes for group in rest),
        workspace_bytes=max(group.workspace_bytes for group in rest),
        num_modules=sum(group.num_modules for group in rest),
    )
    return [*kept, others]
