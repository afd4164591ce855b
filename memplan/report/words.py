"""The sentences and table cells of the report, in the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from memplan.answers import GpuFacts, PlanAnswer, ProbeAnswer, Setting, WorkloadFacts
from memplan.report.series import peaks_at
from memplan.units import format_bytes, format_seconds, three_digits


class _Choice(Protocol):
    """What `Setting` and `PlanAnswer` share."""

    @property
    def micro_batch_size(self) -> int: ...
    @property
    def accumulation_steps(self) -> int: ...
    @property
    def effective_batch_size(self) -> int: ...
    @property
    def nominal_batch_size(self) -> int: ...
    @property
    def devices(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def memory_format(self) -> str: ...
    @property
    def recompute(self) -> tuple[str, ...]: ...
    @property
    def allocator(self) -> str: ...


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
        workload.precision,
        workload.memory_format,
        workload.optimizer,
        f"recompute {recompute_words(workload.recompute)}",
    ]
    if workload.objects_per_image:
        parts.append(f"{workload.objects_per_image} objects an image")
    switches = {
        "deterministic": workload.deterministic,
        "cudnn.benchmark": workload.cudnn_benchmark,
        "no TF32": not workload.allow_tf32,
    }
    if workload.assigner_parts > 1:
        parts.append(f"objects matched in {workload.assigner_parts} parts")
    parts += [name for name, is_on in switches.items() if is_on]
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


def recompute_words(recompute: Sequence[str]) -> str:
    """Return `none`, the names when they are few, or how many modules recompute."""
    if not recompute:
        return "none"
    return ", ".join(recompute) if len(recompute) <= 3 else count_of(len(recompute), "module")


def batch_words(choice: _Choice) -> str:
    """Return how the effective batch comes about, such as `16 x 4 = 64`."""
    factors = f"{choice.micro_batch_size} x {choice.accumulation_steps}"
    if choice.devices > 1:
        factors += f" x {choice.devices} devices"
    text = f"micro-batch {factors} = {choice.effective_batch_size} images a step"
    shared = choice.micro_batch_size * choice.accumulation_steps * choice.devices
    if shared != choice.effective_batch_size:  # unequal cards, each with its own micro-batch
        text = (
            f"micro-batch {choice.micro_batch_size} x {choice.accumulation_steps} here, "
            f"{choice.effective_batch_size} images a step on {choice.devices} devices"
        )
    if choice.nominal_batch_size != choice.effective_batch_size:
        text += f" (nominal {choice.nominal_batch_size})"
    return text


def how_words(choice: _Choice) -> str:
    """Return precision, memory format, recompute and allocator of a setting."""
    text = f"{choice.precision}, {choice.memory_format}, recompute "
    text += recompute_words(choice.recompute)
    return f"{text}, {choice.allocator}" if choice.allocator else text


def place_words(period: str, phase: str, module: str = "") -> str:
    """Return where a peak lies, such as `backward of the first step, in model.22`."""
    text = phase.replace("_", " ")
    if period:
        text += f" of the {period.replace('_', ' ')}"
    return f"{text}, in {module}" if module else text


def largest_words(probe: ProbeAnswer) -> str:
    """Return the largest micro-batch size that fits, as a short answer."""
    if probe.largest_batch == 0:
        return "Not even one image fits"
    checked = "" if probe.largest_is_edge else ", as far as was checked"
    return f"Up to {count_of(probe.largest_batch, 'image')} a micro-batch{checked}"


def peak_words(probe: ProbeAnswer) -> str:
    """Return the peaks at the reference batch as one sentence, origin included."""
    peaks = peaks_at(probe, probe.reference_batch)
    if peaks is None:
        return f"No peak was evaluated at micro-batch {probe.reference_batch}."
    return (
        f"At micro-batch {peaks.micro_batch_size} the {peaks.origin} peaks are "
        f"{format_bytes(peaks.allocated_peak_bytes)} allocated, "
        f"{format_bytes(peaks.reserved_peak_bytes)} reserved and "
        f"{format_bytes(peaks.device_used_peak_bytes)} device-used; the highest is in "
        f"{place_words(peaks.peak_period, peaks.peak_phase, peaks.peak_module)}."
    )


def growth_words(probe: ProbeAnswer) -> str:
    """Return how reserved memory grows with the batch, as one sentence."""
    fit = probe.fit
    return (
        f"Reserved memory grows by {format_bytes(fit.bytes_per_image)} an image from "
        f"{format_bytes(fit.base_bytes)} ({fit.origin}); the line is "
        f"{fit.error_words}."
    )


def recommended_words(probe: ProbeAnswer) -> list[str]:
    """Return the recommended setting and its headroom as sentences."""
    setting = probe.recommended
    if setting is None:
        return ["No setting that was tried fits this card."]
    used = setting.predicted.device_used_peak_bytes
    headroom = probe.gpu.capacity_bytes - used
    return [
        (
            f"Recommended: {batch_words(setting)}; peak {format_bytes(used)} device-used, "
            f"headroom {format_bytes(headroom)} ({setting.predicted.origin})."
        ),
        f"With {how_words(setting)}: {speed_words(setting)} ({setting.predicted.origin}).",
    ]


def speed_words(setting: Setting | PlanAnswer) -> str:
    """Return images a second, and the time of an epoch where the data set is known."""
    text = f"{three_digits(setting.predicted.images_per_second)} images/s"
    seconds = setting.predicted.epoch_seconds
    return text if seconds is None else f"{text}, {format_seconds(seconds)} an epoch"


def plan_words(plan: PlanAnswer) -> list[str]:
    """Return what a plan chose, what it takes and what it leaves, as sentences."""
    predicted = plan.predicted
    return [
        (
            f"Peak {format_bytes(predicted.device_used_peak_bytes)} device-used of a budget of "
            f"{format_bytes(plan.budget_bytes)}: headroom {format_bytes(plan.headroom_bytes)} "
            f"({predicted.origin})."
        ),
        f"With {how_words(plan)}: {speed_words(plan)} ({predicted.origin}).",
        (
            f"The {predicted.origin} peaks of {format_bytes(predicted.allocated_peak_bytes)} "
            f"allocated and {format_bytes(predicted.reserved_peak_bytes)} reserved are in "
            f"{place_words('', predicted.peak_phase)}."
        ),
    ]
