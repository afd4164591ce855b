"""The sentences and table cells of the report, in the words of the command line."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.answers import GpuFacts, PlanAnswer, ProbeAnswer, Setting, WorkloadFacts
from memplan.report.series import peaks_at
from memplan.spec import CHOICE, LEVERS
from memplan.units import format_bytes, format_seconds, three_digits


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


def batch_words(choice: Setting | PlanAnswer) -> str:
    """Return how the effective batch comes about, such as `16 x 4 = 64`."""
    split = choice.split
    factors = split.words
    if split.devices > 1:
        factors += f" x {split.devices} devices"
    text = f"micro-batch {factors} = {split.effective_batch_size} images a step"
    if split.others_batch_size is not None:  # unequal cards, each with its own micro-batch
        text = (
            f"micro-batch {split.words} here, {split.effective_batch_size} images a step on "
            f"{split.devices} devices"
        )
    if choice.nominal_batch_size != split.effective_batch_size:
        text += f" (nominal {choice.nominal_batch_size})"
    return text


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
        f"With {setting.spec.words()}: {speed_words(setting)} ({setting.predicted.origin}).",
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
        f"With {plan.spec.words()}: {speed_words(plan)} ({predicted.origin}).",
        (
            f"The {predicted.origin} peaks of {format_bytes(predicted.allocated_peak_bytes)} "
            f"allocated and {format_bytes(predicted.reserved_peak_bytes)} reserved are in "
            f"{place_words('', predicted.peak_phase)}."
        ),
    ]
