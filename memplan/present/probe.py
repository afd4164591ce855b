"""Sections of a probe: the largest batch, peaks, where memory goes, what is recommended."""

from __future__ import annotations

from memplan.answers import PREDICTED, BatchPeaks, ProbeAnswer, RankPeaks, TensorAtPeak
from memplan.present.bar import bar_key, category_bar
from memplan.present.section import Number, Section, Table, rate_origin
from memplan.present.what_if import what_if_section
from memplan.present.words import setting_words
from memplan.units import format_bytes, format_seconds, gib, three_digits

# This many batches of a range have a line; JSON has them all.
_MOST_ROWS = 16


def probe_sections(answer: ProbeAnswer) -> list[Section]:
    """Return all that a probe says, in the order it is read."""
    notes = (*answer.notes, *answer.unchecked, *_unknown(answer))
    sections = [
        _saying("The largest micro-batch", _headline(answer)),
        _batch_table(answer),
        _saying("1x1 convolutions", _open_range(answer)),
        _where(answer),
        *(_saying("Other ranks", line) for line in rank_lines(answer.other_ranks)),
        what_if_section(answer),
        _saying("Recommended", _recommendation(answer)),
        *(_saying("Note", f"Note: {note}") for note in notes),
    ]
    return [one for one in sections if one.text]


def probe_numbers(answer: ProbeAnswer) -> list[Number]:
    """Return the few numbers that a probe is known by."""
    capacity = answer.gpu.capacity_bytes
    checked = "" if answer.largest_is_edge else "; more was not checked"
    largest = Number(
        value=str(answer.largest_batch),
        label=f"image{'' if answer.largest_batch == 1 else 's'} at once at most ({PREDICTED})",
        detail=f"on {answer.gpu.name}, {format_bytes(capacity)}{checked}",
    )
    setting = answer.recommended
    if setting is None:
        rows = [r for r in answer.batches if r.micro_batch_size == answer.reference_batch]
        return [largest, *(_peak_number(row, capacity) for row in rows)]
    used, rate = setting.predicted.device_used_peak_bytes, setting.predicted.images_per_second
    return [
        largest,
        Number(
            value=format_bytes(used),
            label=f"device-used as recommended ({PREDICTED})",
            detail=f"{format_bytes(capacity - used)} of the card left",
        ),
        Number(
            value=f"{three_digits(rate)}/s",
            label=f"images as recommended ({rate_origin(answer.gpu)})",
            detail=setting_words(setting),
        ),
    ]


def _peak_number(row: BatchPeaks, capacity: int) -> Number:
    return Number(
        value=format_bytes(row.device_used_peak_bytes),
        label=f"device-used at {row.micro_batch_size} at once ({row.origin})",
        detail=f"of {format_bytes(capacity)}",
    )


def _saying(title: str, text: str) -> Section:
    return Section(title=title, sentences=tuple(text.split("\n")) if text else ())


def _open_range(answer: ProbeAnswer) -> str:
    """Say what the workspaces of 1x1 convolutions leave open, where they leave anything."""
    if answer.one_by_one_range_bytes is None:
        return ""
    low, high = answer.one_by_one_range_bytes
    if format_bytes(low) == format_bytes(high):
        return ""
    return (
        f"1x1 convolutions leave {format_bytes(low)} to {format_bytes(high)} device-used open at "
        f"batch {answer.reference_batch}:\nhow much workspace cuBLASLt takes for them only a card "
        "can tell."
    )


def _unknown(answer: ProbeAnswer) -> list[str]:
    if not answer.unknown_operators:
        return []
    names = ", ".join(
        sorted({name.replace("::", ".").split(".")[1] for name in answer.unknown_operators})
    )
    return [f"no memory rule yet for {names}: taken to allocate their outputs only."]


def _headline(answer: ProbeAnswer) -> str:
    workload, gpu = answer.workload, answer.gpu
    what = f"{workload.name}, {workload.img} px, {mode_words(answer)}"
    card = f"{gpu.name} ({format_bytes(gpu.capacity_bytes)})"
    if answer.largest_batch == 0:
        if not answer.largest_is_edge:
            return f"{what}: no micro-batch that was checked fits {card} (predicted)."
        return f"{what}: not even one image fits {card} (predicted)."
    which = "that" if answer.largest_is_edge else "that was checked and"
    return (
        f"{what}: the largest micro-batch {which} fits {card} is {answer.largest_batch} "
        "(predicted)."
    )


def mode_words(answer: ProbeAnswer) -> str:
    """Return how the step runs, or of a trained network in which mode and precision it does."""
    if answer.mode == "train":
        return answer.workload.spec.words()
    spec = answer.workload.spec
    words = "fp16, " + spec.words(leave_out={"precision"}) if answer.half else spec.words()
    return f"{answer.mode}, {words}"


def _shown(answer: ProbeAnswer) -> list[BatchPeaks]:
    """Return the rows worth a line: all of a few, else powers of two and the ends; and the edge."""
    rows = {row.micro_batch_size: row for row in answer.batches}
    ends = {min(rows), max(rows)}
    if len(rows) > _MOST_ROWS:
        rows = {n: row for n, row in rows.items() if n in ends or n & (n - 1) == 0 or n % 16 == 0}
    rows |= {row.micro_batch_size: row for row in answer.edge}
    return [rows[size] for size in sorted(rows)]


def _verdict(row: BatchPeaks) -> str:
    if not row.fits:
        return "no"
    return "tight" if row.num_alloc_retries else "yes"


def _batch_table(answer: ProbeAnswer) -> Section:
    """Return the peaks by batch, and their line."""
    rows = tuple(
        (
            str(row.micro_batch_size),
            gib(row.allocated_peak_bytes),
            gib(row.reserved_peak_bytes),
            gib(row.device_used_peak_bytes),
            _verdict(row),
            f"{row.peak_period}, {row.peak_phase}",
        )
        for row in _shown(answer)
    )
    header = ("Batch", "Allocated GiB", "Reserved GiB", "Device-used GiB", "Fits", "Peak in")
    after = []
    if any(row.fits and row.num_alloc_retries for row in (*answer.batches, *answer.edge)):
        after.append(
            "tight: fits only because the allocator empties its cache in time, which is slow."
        )
    fit = answer.fit
    after.append(
        f"As a line: {format_bytes(fit.base_bytes)} + {format_bytes(fit.bytes_per_image)}"
        f" an image (reserved; {fit.error_words})."
    )
    table = Table(caption="Peak memory (predicted)", header=header, rows=rows, left=0)
    return Section(title="Peak memory", table=table, after=tuple(after))


def rank_lines(ranks: RankPeaks | None) -> list[str]:
    """Return what the processes beside rank 0 take, as a sentence; nothing of one device."""
    if ranks is None:
        return []
    text = (
        "The figures are rank 0's. Another rank, with no average, validation or checkpoint, takes "
        f"{format_bytes(ranks.device_used_peak_bytes)} device-used at micro-batch "
        f"{ranks.micro_batch_size}; DistributedDataParallel's buckets are "
        f"{format_bytes(ranks.bucket_bytes)} on each (predicted)."
    )
    return [text]


def _where(answer: ProbeAnswer) -> Section:
    """Return the bytes of each category at the peak."""
    total = sum(answer.categories_at_peak.values())
    rows = tuple(
        (name, gib(value), f"{value / total:.0%}")
        for name, value in answer.categories_at_peak.items()
        if value >= total / 1000
    )
    caption = f"At the peak of batch {answer.reference_batch} (predicted)"
    table = Table(caption=caption, header=("Category", "GiB", "Share"), rows=rows)
    bar = category_bar(answer.categories_at_peak)
    return Section(title="Where memory goes", table=table, bar=(bar, bar_key(bar)))


def largest_tensors(answer: ProbeAnswer) -> Section:
    """Return the largest tensors at the peak: what they hold and who made them."""
    title = "Largest tensors at the peak"
    if not answer.tensors_at_peak:
        return Section(title=title)
    rows = tuple(
        (
            format_bytes(one.num_bytes),
            one.category.replace("_", " "),
            _shape_words(one),
            _place(one),
            operator_words(one.operator),
        )
        for one in answer.tensors_at_peak
    )
    caption = f"{title} of batch {answer.reference_batch} (predicted)"
    header = ("Size", "Category", "Shape, bytes an element", "Made in", "By operator")
    return Section(title=title, table=Table(caption=caption, header=header, rows=rows, left=5))


def operator_words(name: str) -> str:
    """Return an operator without the parts that all have: namespace `aten` and overload."""
    return name.replace("::", ".").removeprefix("aten.").removesuffix(".default")


def _shape_words(one: TensorAtPeak) -> str:
    if not one.shape:
        return "-"
    return f"{' x '.join(map(str, one.shape))}, {one.element_bytes} B"


def _place(one: TensorAtPeak) -> str:
    """Return module and phase, such as `model.2.cv1 Conv, forward`."""
    module = f"{one.module} {one.module_type}".strip() or "outside modules"
    return f"{module}, {one.phase.replace('_', ' ')}"


def _recommendation(answer: ProbeAnswer) -> str:
    setting = answer.recommended
    if answer.mode != "train":
        return f"Answered in {format_seconds(answer.seconds)}."
    if setting is None:
        return (
            "Recommended: nothing in this configuration leaves a margin. "
            f"Try: memplan plan --gpu {answer.gpu.name} --recompute auto"
        )
    predicted = setting.predicted
    return (
        f"Recommended: {setting_words(setting)}.\n"
        f"Device-used {format_bytes(predicted.device_used_peak_bytes)}, about "
        f"{three_digits(predicted.images_per_second)} images/s ({rate_origin(answer.gpu)}). "
        f"Answered in {format_seconds(answer.seconds)}. `memplan plan` searches further."
    )
