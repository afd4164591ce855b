"""`memplan probe`: where memory goes, and how it grows with the batch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from memplan.answers import BatchPeaks, ProbeAnswer, RankPeaks, Setting
from memplan.cli.common import (
    Progress,
    card_options,
    check_writable,
    lever_options,
    output_options,
    rate_origin,
    show,
    table,
    typed_command,
    workload_options,
    write_pages,
    wrote,
)
from memplan.units import format_bytes, format_seconds, gib, three_digits

# A terminal shows this many batches of a range; JSON has them all.
_MOST_ROWS = 16


@click.command()
@click.option(
    "--batch",
    "batches",
    multiple=True,
    default=("16",),
    metavar="N|FIRST:LAST",
    help="Micro-batch sizes; repeatable, or a range such as 1:64.  [16]",
)
@workload_options
@lever_options("probe")
@card_options
@click.option(
    "--tape",
    "tape_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Also save the recording, for `memplan replay`.",
)
@output_options
def command(**values: Any) -> None:
    """Record a training step without a GPU and show where memory goes on a card.

    \b
    memplan probe --cfg yolov9-s --img 640 --batch 1:64 --gpu rtx-3090 --gpu a100-80gb
    """
    from memplan.cli.question import parse_batches, question_from
    from memplan.processes import start_server

    check_writable((values["output"], values["report"], values["tape_path"]), force=values["force"])
    batches = parse_batches(values["batches"])
    start_server()  # it imports while this process does
    from memplan.api import probe_many

    progress = Progress()
    try:
        question, _ = question_from(values)
        answers = probe_many(question, batches, command=typed_command(), say=progress)
    finally:
        progress.done()
    show(values, answers, _text)
    if values["tape_path"] is not None:
        _save_tape(question, batches[-1], values["tape_path"])
    write_pages(values, probes=answers)


def _save_tape(question: Any, batch: int, path: Path) -> None:
    from memplan.trace.record import record

    record(question.made, batch, question.step_spec).save(path)
    wrote(path)
    card = question.cards()[0].name
    click.echo(f"Next: {shlex.join(['memplan', 'replay', str(path), '--gpu', card])}", err=True)


def _text(answer: ProbeAnswer) -> str:
    parts = [_headline(answer), _batch_table(answer), _open_range(answer), _where(answer)]
    parts += [*rank_lines(answer.other_ranks), _recommendation(answer)]
    parts += [f"Note: {note}" for note in (*answer.notes, *answer.unchecked, *_unknown(answer))]
    return "\n\n".join(part for part in parts if part)


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
    names = ", ".join(sorted({name.split(".")[1] for name in answer.unknown_operators}))
    return [f"no memory rule yet for {names}: taken to allocate their outputs only."]


def _headline(answer: ProbeAnswer) -> str:
    workload, gpu = answer.workload, answer.gpu
    what = f"{workload.name}, {workload.img} px, {workload.spec.words()}"
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


def _batch_table(answer: ProbeAnswer) -> str:
    rows = [
        (
            str(row.micro_batch_size),
            gib(row.allocated_peak_bytes),
            gib(row.reserved_peak_bytes),
            gib(row.device_used_peak_bytes),
            _verdict(row),
            f"{row.peak_period}, {row.peak_phase}",
        )
        for row in _shown(answer)
    ]
    header = ("Batch", "Allocated GiB", "Reserved GiB", "Device-used GiB", "Fits", "Peak in")
    text = "Peak memory (predicted)\n" + table(header, rows, left=0)
    if any(row.fits and row.num_alloc_retries for row in (*answer.batches, *answer.edge)):
        text += "\ntight: fits only because the allocator empties its cache in time, which is slow."
    fit = answer.fit
    return (
        f"{text}\nAs a line: {format_bytes(fit.base_bytes)} + {format_bytes(fit.bytes_per_image)}"
        f" an image (reserved; {fit.error_words})."
    )


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


def _where(answer: ProbeAnswer) -> str:
    total = sum(answer.categories_at_peak.values())
    rows = [
        (name, gib(value), f"{value / total:.0%}")
        for name, value in answer.categories_at_peak.items()
        if value >= total / 1000
    ]
    return f"At the peak of batch {answer.reference_batch} (predicted)\n" + table(
        ("Category", "GiB", "Share"), rows
    )


def describe_setting(setting: Setting) -> str:
    """Return a setting in one line, as people say it."""
    split = setting.split
    factors = f"micro-batch {split.micro_batch_size} x accumulation {split.accumulation_steps}"
    if split.others_batch_size is not None:  # unequal cards, each with its own micro-batch
        factors += f", with {split.devices} devices"
    elif split.devices > 1:
        factors += f" x {split.devices} devices"
    return f"{factors} = {split.effective_batch_size} images a step, {setting.spec.words()}"


def _recommendation(answer: ProbeAnswer) -> str:
    setting = answer.recommended
    if setting is None:
        return (
            "Recommended: nothing in this configuration leaves a margin. "
            f"Try: memplan plan --gpu {answer.gpu.name} --recompute auto"
        )
    predicted = setting.predicted
    return (
        f"Recommended: {describe_setting(setting)}.\n"
        f"Device-used {format_bytes(predicted.device_used_peak_bytes)}, about "
        f"{three_digits(predicted.images_per_second)} images/s ({rate_origin(answer.gpu)}). "
        f"Answered in {format_seconds(answer.seconds)}. `memplan plan` searches further."
    )
