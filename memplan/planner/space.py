"""What a plan may choose from and how much it may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memplan.answers import Predicted, Setting
from memplan.device.replay import Peaks
from memplan.spec import LEVER, LEVERS, Split, StepSpec
from memplan.spec_changes import departures, variants

# How far an effective batch may be from what was asked: what a step's noise does not tell apart.
# Learning rates are scaled by the root or the ratio of batches, 2.5 to 5 % here, well within the
# factors of 2 that are searched over. Source: Goyal et al. 2017, section 2.1 (linear scaling).
ROUNDING_FRACTION = 0.05
# What one departure from the plain way to run costs a setting in the ranking. The roofline's
# ranking errors are no smaller, so settings closer than this are taken as equal, and of equals
# the plainer one is the better one.
DEPARTURE_FRACTION = 0.01


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a plan may choose from."""

    base: StepSpec
    """The plain way to run a step, and what all others share with it."""
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values to try by lever, the plain one first; levers without any stay as in `base`."""
    effective_batch_size: int
    """Images an optimizer step sees, >= 1."""
    nominal_batch_size: int
    """The recipe's own, for the record."""
    devices: int = 1
    """Cards that share the effective batch."""
    blocks: tuple[str, ...] = ()
    """Paths of modules that may be recomputed, in any combination; empty tries none but those in
    `choices`. Those in large blocks are found by themselves."""
    rounding_fraction: float = 0.0
    """How far the effective batch may be from what was asked, as a fraction of it."""

    @property
    def allocators(self) -> tuple[str, ...]:
        """Allocator options: the plain ones, and those tried where they waste what would fit."""
        return self.choices.get("allocator", (self.base.allocator,))

    @property
    def share(self) -> int:
        """Images of an optimizer step on each device."""
        return max(1, self.effective_batch_size // self.devices)

    def micro_batches(self) -> list[int]:
        """Return the micro-batch sizes that give the effective batch exactly, ascending."""
        return [size for size in range(1, self.share + 1) if self.share % size == 0]

    def splits(self) -> list[Split]:
        """Return the micro-batches and accumulations near the effective batch, ascending.

        For each accumulation these are the nearest micro-batches from below and above, of which
        the exact one excludes the others.
        """
        found = set()
        for steps in range(1, self.share + 1):
            whole, rest = divmod(self.share, steps)
            # More at once than a step is meant to see would be no accumulation but another batch.
            sizes = [whole] if not rest else [whole, whole + 1]
            for size in sizes:
                away = abs(size * steps - self.share) / self.share
                if away <= self.rounding_fraction and size <= self.share:
                    found.add((size, steps))
        best: dict[int, Split] = {}
        for size, steps in sorted(found, key=lambda one: abs(one[0] * one[1] - self.share)):
            best.setdefault(size, self.split(size, steps))
        return [best[size] for size in sorted(best)]

    def split(self, micro_batch_size: int, accumulation_steps: int | None = None) -> Split:
        """Return a micro-batch with as many to a step as come nearest to the effective batch."""
        steps = accumulation_steps or max(1, round(self.share / micro_batch_size))
        return Split(
            micro_batch_size=micro_batch_size, accumulation_steps=steps, devices=self.devices
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan may take of a card."""

    capacity_bytes: int
    safety_fraction: float
    """Part of the capacity left alone, in 0-1."""
    taken_bytes: int = 0
    """What others hold of the card already: processes, display."""

    @property
    def num_bytes(self) -> int:
        """Device bytes that the run may use at its peak."""
        whole = int(self.capacity_bytes * (1 - self.safety_fraction))
        return max(0, whole - self.taken_bytes)


def configurations(space: Space) -> Iterator[StepSpec]:
    """Yield every way to run a step that the space allows, sets of recomputed modules whole."""
    recorded = {name: space.choices[name] for name in space.choices if LEVER[name].is_recorded}
    yield from variants(space.base, recorded)


def plain_configurations(space: Space) -> list[StepSpec]:
    """Return the ways to run a step of which none only costs speed."""
    return [one for one in configurations(space) if not departures(one, space.base)]


def reliefs(plain: StepSpec, space: Space) -> list[StepSpec]:
    """Return what takes less memory than a plain way at the cost of speed, least cost first."""
    choices = {
        lever.name: space.choices[lever.name]
        for lever in LEVERS
        if lever.costs_speed and lever.is_recorded and lever.name in space.choices
    }
    found = [one for one in variants(plain, choices) if departures(one, space.base)]
    return sorted(found, key=lambda one: departures(one, space.base))


def setting_of(
    space: Space,
    spec: StepSpec,
    split: Split,
    peaks: Peaks,
    rate: float,
    num_images: int | None = None,
) -> Setting:
    """Return the record of one way to run a training.

    Args:
        space: gives the recipe's batch.
        spec: how a step runs.
        split: of its images.
        peaks: on the card.
        rate: images per second of one device.
        num_images: training images in an epoch; None when the data set is not known.
    """
    rate *= split.devices
    return Setting(
        spec=spec,
        split=split,
        nominal_batch_size=space.nominal_batch_size,
        predicted=Predicted(
            allocated_peak_bytes=peaks.allocated_peak_bytes,
            reserved_peak_bytes=peaks.reserved_peak_bytes,
            device_used_peak_bytes=peaks.device_used_peak_bytes,
            peak_phase=peaks.peak_phase,
            images_per_second=rate,
            epoch_seconds=num_images / rate if num_images else None,
        ),
    )


def score(setting: Setting, space: Space) -> float:
    """Return how good a setting is: its images per second, less for each departure from plain.

    A setting's score depends on nothing else, so the best of more settings is never worse.
    """
    is_other_batch = setting.split.effective_batch_size != space.share * space.devices
    count = departures(setting.spec, space.base) + is_other_batch
    rate: float = setting.predicted.images_per_second
    return rate * (1 - DEPARTURE_FRACTION) ** count


def fits_budget(peaks: Peaks, budget: Budget) -> bool:
    """Return whether a life stays within the budget at full speed.

    That is without emptying its cache and without slower convolutions for want of workspace.
    """
    within = peaks.device_used_peak_bytes <= budget.num_bytes
    undisturbed = peaks.num_alloc_retries == 0 and peaks.num_slower_plans == 0
    return peaks.fits and within and undisturbed


def pareto(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Return the settings that no other beats in both device memory and speed.

    Least memory first. Of equals, the first given stays.
    """
    front: list[Setting] = []
    ordered = sorted(
        settings,
        key=lambda s: (s.predicted.device_used_peak_bytes, -s.predicted.images_per_second),
    )
    for setting in ordered:
        if not front or (
            setting.predicted.images_per_second > front[-1].predicted.images_per_second
        ):
            front.append(setting)
    return tuple(front)
