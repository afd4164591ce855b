"""Chooses the fastest setting that fits a card, among those that give the batch asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from memplan.answers import Predicted, Setting
from memplan.device.card import Card
from memplan.device.life import Life
from memplan.device.replay import Peaks, Simulator
from memplan.errors import InfeasibleError
from memplan.fit.predictor import Predictor, Say, as_recorded
from memplan.planner.throughput import images_per_second
from memplan.tape import Tape
from memplan.trace.step import StepSettings
from memplan.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a plan may choose from."""

    precisions: tuple[str, ...]
    """Precisions to try."""
    memory_formats: tuple[str, ...]
    """Tensor layouts to try."""
    recomputes: tuple[tuple[str, ...], ...]
    """Sets of module paths to recompute, each tried as a whole."""
    effective_batch_size: int
    """Images an optimizer step sees, >= 1."""
    nominal_batch_size: int
    """The recipe's own, for the record."""
    devices: int = 1
    """Cards that share the effective batch."""
    allocator: str = ""
    """PyTorch's option string."""

    def micro_batches(self) -> list[int]:
        """Return the micro-batch sizes that give the effective batch exactly, ascending."""
        share = max(1, self.effective_batch_size // self.devices)
        return [size for size in range(1, share + 1) if share % size == 0]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a plan may take of a card."""

    capacity_bytes: int
    safety_fraction: float
    """Part of the capacity left alone, in 0-1."""

    @property
    def num_bytes(self) -> int:
        """Device bytes that the run may use at its peak."""
        return int(self.capacity_bytes * (1 - self.safety_fraction))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The chosen setting and what it was chosen from."""

    chosen: Setting
    pareto: tuple[Setting, ...]
    """Settings that fit and that no other beats in both memory and speed, least memory first."""
    num_evaluated: int


def setting_of(
    space: Space,
    settings: StepSettings,
    micro_batch_size: int,
    peaks: Peaks,
    rate: float,
    num_images: int | None = None,
) -> Setting:
    """Return the record of one way to run a training.

    Args:
        space: gives the effective batch and what all settings share.
        settings: precision, layout and recompute.
        micro_batch_size: images a device and micro-batch.
        peaks: on the card.
        rate: images per second of one device.
        num_images: training images in an epoch; None when the data set is not known.
    """
    share = max(1, space.effective_batch_size // space.devices)
    accumulation = max(1, round(share / micro_batch_size))
    rate *= space.devices
    return Setting(
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation,
        effective_batch_size=micro_batch_size * accumulation * space.devices,
        nominal_batch_size=space.nominal_batch_size,
        precision=settings.precision,
        memory_format=settings.memory_format,
        recompute=settings.recompute,
        allocator=space.allocator,
        devices=space.devices,
        predicted=Predicted(
            allocated_peak_bytes=peaks.allocated_peak_bytes,
            reserved_peak_bytes=peaks.reserved_peak_bytes,
            device_used_peak_bytes=peaks.device_used_peak_bytes,
            peak_phase=peaks.peak_phase,
            images_per_second=rate,
            epoch_seconds=num_images / rate if num_images else None,
        ),
    )


def fits_budget(peaks: Peaks, budget: Budget) -> bool:
    """Return whether a life stays within the budget without emptying its cache to do so."""
    within = peaks.device_used_peak_bytes <= budget.num_bytes
    return peaks.fits and within and peaks.num_alloc_retries == 0


def settings_at(
    predictor: Predictor,
    card: int,
    space: Space,
    settings: StepSettings,
    batches: Sequence[int],
    num_images: int | None,
) -> list[tuple[Setting, Peaks]]:
    """Return the settings at several micro-batch sizes of one recorded configuration."""
    found = []
    simulator = predictor.simulators[card]
    for batch, peaks in zip(batches, predictor.peaks_many(card, batches), strict=True):
        share = max(1, space.effective_batch_size // space.devices)
        rate = images_per_second(
            predictor.fit.tape(batch),
            simulator.card,
            predictor.device_bytes(card, batch).convolutions,
            max(1, share // batch),
        )
        found.append((setting_of(space, settings, batch, peaks, rate, num_images), peaks))
    return found


def configurations(base: StepSettings, space: Space) -> Iterator[StepSettings]:
    """Yield every way to run a step that the space allows."""
    for precision in space.precisions:
        for memory_format in space.memory_formats:
            for recompute in space.recomputes:
                yield replace(
                    base, precision=precision, memory_format=memory_format, recompute=recompute
                )


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


RecorderOf = Callable[[StepSettings], Callable[[int], Tape]]


def search(
    recorder_of: RecorderOf,
    simulator: Simulator,
    base: StepSettings,
    space: Space,
    budget: Budget,
    *,
    num_images: int | None = None,
    objects: Callable[[int], Sequence[int]] = as_recorded,
    say: Say,
) -> Outcome:
    """Return the fastest setting within the budget.

    Args:
        recorder_of: returns, for a configuration, the function that records it at a batch.
        simulator: the card.
        base: what all configurations share, such as the optimizer.
        space: what may be chosen.
        budget: what may be taken.
        num_images: training images in an epoch; None when the data set is not known.
        objects: returns, for a micro-batch size, the objects in the fullest image of each step.
        say: told what is being done.

    Raises:
        InfeasibleError: nothing fits; the message says by how much and what would.
    """
    batches = space.micro_batches()
    found: list[tuple[Setting, Peaks]] = []
    for settings in configurations(base, space):
        blocks = len(settings.recompute)
        what = f"{settings.precision}, {settings.memory_format}, {blocks} blocks recomputed"

        def tell(text: str, what: str = what) -> None:
            say(f"{text} ({what})")

        predictor = Predictor(
            recorder_of(settings),
            [simulator],
            Life(accumulates=len(batches) > 1),
            batches[0],
            batches[-1],
            tell,
            objects=objects,
        )
        found += settings_at(predictor, 0, space, settings, batches, num_images)
    feasible = [setting for setting, peaks in found if fits_budget(peaks, budget)]
    if not feasible:
        raise InfeasibleError(_why_not(simulator.card, found, budget))
    front = pareto(feasible)
    return Outcome(chosen=front[-1], pareto=front, num_evaluated=len(found))


def _why_not(card: Card, found: Sequence[tuple[Setting, Peaks]], budget: Budget) -> str:
    least, _ = min(found, key=lambda pair: pair[0].predicted.device_used_peak_bytes)
    need = least.predicted.device_used_peak_bytes
    over = need - budget.num_bytes
    settings = f"{least.precision}, {least.memory_format}"
    if least.recompute:
        settings += ", all blocks recomputed"
    return (
        f"Nothing fits {card.title}: the least is micro-batch {least.micro_batch_size} "
        f"({settings}) with {format_bytes(need)} device-used (predicted) against a budget of "
        f"{format_bytes(budget.num_bytes)}, {format_bytes(over)} too much. "
        "Lower --img, take a smaller model, or a card with more memory (`memplan gpus`)."
    )
