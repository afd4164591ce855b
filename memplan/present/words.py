"""Wording that every answer shares: batches, workloads and cards in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.answers import GpuFacts, PlanAnswer, Setting, WorkloadFacts
from memplan.spec import CHOICE, LEVERS, Split
from memplan.units import format_bytes, three_digits


def batch_words(split: Split) -> str:
    """Return how a step's images come together: `64 images a step, 4 times 16 at once`."""
    effective, micro, steps = (
        split.effective_batch_size,
        split.micro_batch_size,
        split.accumulation_steps,
    )
    if split.others_batch_size is not None:  # unequal cards, each with its own micro-batch
        where = f" on this one of {split.devices} devices"
    else:
        where = f" on each of {split.devices} devices" if split.devices > 1 else ""
    if steps > 1:
        how = f"{steps} times {micro} at once{where}"
    else:
        how = f"{micro} at once{where}" if where else "all at once"
    return f"{effective} image{'' if effective == 1 else 's'} a step, {how}"


def nominal_words(split: Split, nominal_batch_size: int) -> str:
    """Return the same, with the batch that the recipe was made for where it is another."""
    text = batch_words(split)
    if nominal_batch_size == split.effective_batch_size:
        return text
    return f"{text}; the recipe was made for {nominal_batch_size} a step"


def setting_words(choice: Setting | PlanAnswer) -> str:
    """Return a setting in one line: its batch and how a step runs."""
    return f"{batch_words(choice.split)}, {choice.spec.words()}"


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 image` or `4 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def count_short(number: int) -> str:
    """Return a count with three digits, such as `7.22 M`."""
    for factor, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{three_digits(number / factor)} {letter}"
    return str(number)


def workload_line(workload: WorkloadFacts) -> str:
    """Return what was trained, as one line."""
    parts = [
        f"{count_short(workload.parameters)} parameters",
        f"{workload.img} px",
        workload.spec.words(leave_out={"optimizer"}),
        workload.spec.optimizer,
    ]
    if workload.objects_per_image:
        parts.append(f"{workload.objects_per_image} objects an image")
    if workload.devices > 1:
        parts.append(count_of(workload.devices, "device"))
    return ", ".join(parts)


def workload_title(workload: WorkloadFacts) -> str:
    """Return the workload's name and image size."""
    return f"{workload.name} at {workload.img} px"


def card_name(gpu: GpuFacts) -> str:
    """Return the card and its capacity, such as `rtx-3090 (23.7 GiB)`."""
    return f"{gpu.name} ({format_bytes(gpu.capacity_bytes)})"


def joined(words: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def words_apart(settings: Sequence[Setting | PlanAnswer]) -> list[str]:
    """Return how each setting's step runs, without what all have in common but choices."""
    common = {
        lever.name
        for lever in LEVERS
        if lever.kind != CHOICE
        and len({getattr(setting.spec, lever.name) for setting in settings}) == 1
    }
    return [setting.spec.words(leave_out=common) for setting in settings]
