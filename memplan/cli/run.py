"""`memplan run`: a person's own command on a card that is not there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

from memplan.cli.common import Progress, check_writable, show, write_pages
from memplan.errors import UnknownNameError, UsageError
from memplan.present.section import aligned as table
from memplan.recording.find_batch import MOST_TRIALS
from memplan.recording.run import run
from memplan.script_answer import ScriptAnswer
from memplan.units import format_bytes

_MOST_ROWS = 12
_MOST_READS = 5
_MOST_NAMED = 8
# What PyTorch says of a card that is not there.
_WRONG_DEVICE = re.compile(r"device (?:id|ordinal)\b", re.IGNORECASE)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--gpu", required=True, metavar="NAME", help="One of `memplan gpus`.")
@click.option("--capacity", metavar="SIZE", help="Override the card's memory, such as 12GiB.")
@click.option("--devices", type=click.IntRange(1, 8), default=1, metavar="N", help="Cards.  [1]")
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help="Optimizer steps.  [until peaks are steady]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=900.0,
    metavar="SECONDS",
    help="End the script after so long.  [900]",
)
@click.option(
    "--selected",
    type=click.FloatRange(0, 1),
    default=0.01,
    metavar="FRACTION",
    help="Part of a mask over network outputs taken as true.  [0.01]",
)
@click.option(
    "--read",
    "reads",
    multiple=True,
    metavar="FILE:LINE=VALUE",
    help="What a line of the script reads from the card; repeatable.",
)
@click.option(
    "--find-batch",
    metavar="OPTION",
    help="Find the largest batch: the option of your command that gives it, such as --batch.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="FRACTION",
    help="What --find-batch may be short of the largest.  [0: exact]",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=MOST_TRIALS,
    metavar="N",
    help=f"Runs of --find-batch, at most.  [{MOST_TRIALS}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, memory in bytes.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="PATH", help="Also save the answer."
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="PATH.pdf", help="Also write PDF pages."
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@click.option("--quiet", is_flag=True, help="Do not show what the script prints.")
@click.argument("script", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
def command(script: tuple[str, ...], **values: Any) -> None:
    """Run your own training command, unmodified, on a card that is not there.

    \b
    memplan run --gpu rtx-3090 -- python train.py --batch 16
    """
    check_writable([values["output"], values["report"]], force=values["force"])
    progress = Progress(quiet=not values["quiet"])

    def tell(text: str) -> None:
        progress.done()
        click.echo(text, err=True)

    try:
        answer = run(
            script,
            gpu=values["gpu"],
            capacity=values["capacity"],
            devices=values["devices"],
            steps=values["steps"],
            find_batch=values["find_batch"],
            selected=values["selected"],
            read=_lines(values["reads"]),
            timeout_seconds=values["timeout"],
            prints=not values["quiet"],
            asks=True,
            tolerance=values["tolerance"],
            trials=values["trials"],
            say=progress,
            tell=tell,
        )
    except UnknownNameError as error:
        # The card is the one name that is looked up here: an option's value, as any other.
        raise UsageError(str(error)) from None
    progress.done()
    if not values["quiet"]:
        click.echo(err=True)  # what the script printed last may have no end of line
    show(values, [answer], text)
    write_pages(values, scripts=[answer])
    sys.exit(0 if answer.runs else 1)


def _lines(reads: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for read in reads:
        line, _, value = read.rpartition("=")
        try:
            found[line] = float(value)
        except ValueError:
            line = ""
        if ":" not in line:
            raise UsageError(f"--read {read!r} is not FILE:LINE=VALUE, such as loss.py:120=3.")
    return found


def text(answer: ScriptAnswer) -> str:
    """Return an answer as people read it."""
    if not answer.allocated_peak_bytes:
        parts = [_trials(answer), _headline(answer), "\n".join(_remedies(answer))]
        return "\n\n".join(part for part in parts if part)
    parts = [
        _trials(answer),
        _headline(answer),
        _peaks(answer),
        _categories(answer),
        _modules(answer),
    ]
    parts += [_growth(answer), _reads(answer), _notes(answer)]
    return "\n\n".join(part for part in parts if part)


def _trials(answer: ScriptAnswer) -> str:
    """Say which batch is the largest, and what was run to know it."""
    if not answer.trials:
        return ""
    rows = [
        (str(one.batch), _size(one.device_used_peak_bytes), "yes" if one.runs else "no")
        for one in answer.trials
    ]
    errors = [
        f"{answer.batch_option} {one.batch} {one.error}" for one in answer.trials if one.error
    ]
    header = (answer.batch_option, "Device-used", "Runs")
    return "\n".join([_largest(answer), table(header, rows), *errors])


def _largest(answer: ScriptAnswer) -> str:
    card = f"{answer.gpu} ({format_bytes(answer.capacity_bytes)})"
    if all(one.error for one in answer.trials):
        return f"The command fails at its own {answer.batch_option}; no other was tried."
    if answer.largest_batch is None:
        return (
            f"No {answer.batch_option} that was tried runs on {card} (phantom); below, the\n"
            "smallest. Name a larger card, or make the network or its images smaller."
        )
    above = [one for one in answer.trials if one.batch > answer.largest_batch]
    if not above:
        tail = "none larger was tried"
    elif above[0].error:
        tail = f"{above[0].batch} fails, not for memory"
    else:
        tail = f"{above[0].batch} runs out of memory"
    return (
        f"The largest {answer.batch_option} that runs on {card} is {answer.largest_batch} "
        f"(phantom); {tail}."
    )


def _size(num_bytes: int) -> str:
    return format_bytes(num_bytes) if num_bytes else "-"


def _headline(answer: ScriptAnswer) -> str:
    card = f"{answer.gpu} ({format_bytes(answer.capacity_bytes)})"
    memory = answer.out_of_memory
    if memory is not None and not memory.is_caught:
        place = f"{Path(memory.file).name}:{memory.line}" if memory.file else "an unknown line"
        where = f", {memory.phase} of {memory.module}" if memory.module else ""
        return (
            f"The command runs out of memory on {card}: step {memory.step + 1}, {place}{where} "
            f"(phantom).\n{memory.message.splitlines()[0]}"
        )
    if answer.error is not None:
        error = answer.error
        place = f" at {answer.error_place}" if answer.error_place else ""
        return f"The command fails{place}: {error.kind}: {error.message}"
    steps = f"{answer.num_steps} step{'s' if answer.num_steps != 1 else ''} watched"
    if not answer.num_steps:
        steps = "no optimizer step seen"
    return (
        f"The command runs on {card}: device-used {format_bytes(answer.device_used_peak_bytes)}\n"
        f"at its peak, {steps} (phantom)."
    )


def _peaks(answer: ScriptAnswer) -> str:
    rows = [
        ("allocated", format_bytes(answer.allocated_peak_bytes)),
        ("reserved", format_bytes(answer.reserved_peak_bytes)),
        ("device-used", format_bytes(answer.device_used_peak_bytes)),
    ]
    return table(("Peak (phantom)", "Size"), rows)


def _categories(answer: ScriptAnswer) -> str:
    total = sum(answer.categories_at_peak.values())
    if not total:
        return ""
    ordered = sorted(answer.categories_at_peak.items(), key=lambda item: -item[1])
    rows = [(name, format_bytes(size), _share(size / total)) for name, size in ordered]
    where = " of ".join(part for part in (answer.peak_phase, answer.peak_module) if part)
    return f"Allocated at the peak ({where or 'outside modules'})\n" + table(
        ("Category", "Size", "Share"), rows
    )


def _share(part: float) -> str:
    return "<1%" if 0 < part < 0.005 else f"{part:.0%}"


def _modules(answer: ScriptAnswer) -> str:
    rows = [
        (one["path"] or "(outside modules)", format_bytes(one["bytes"]))
        for one in answer.modules[:_MOST_ROWS]
    ]
    return table(("Made in module", "Size"), rows) if rows else ""


def _growth(answer: ScriptAnswer) -> str:
    """Say whether memory still grows from step to step."""
    if len(answer.growth) < 2:
        return ""
    first, last = answer.growth[0], answer.growth[-1]
    steady = next(
        i
        for i, step in enumerate(answer.growth, start=1)
        if step["reserved_peak_bytes"] == last["reserved_peak_bytes"]
        and step["allocated_peak_bytes"] == last["allocated_peak_bytes"]
    )
    text = (
        f"Reserved after step 1: {format_bytes(first['reserved_peak_bytes'])}, after step "
        f"{len(answer.growth)}: {format_bytes(last['reserved_peak_bytes'])}; "
    )
    if steady == len(answer.growth):
        return text + "still growing at the last step."
    return text + f"steady from step {steady}."


def _reads(answer: ScriptAnswer) -> str:
    by_rule = sum(one.count for one in answer.by_rule)
    if not by_rule:
        lead = f"Values read by the host: {answer.from_host}, all from the host itself."
        return "\n".join([lead, *_unmatched(answer)])
    lead = (
        f"Values read by the host: {answer.from_host} from the host itself, {by_rule} that depend\n"
        "on the network and were answered by rule (change with --read, --selected):"
    )
    lines = [lead]
    lines += [
        f"  {one.line or '(no line)'} read {one.answer}, {_times(one.count)}"
        for one in answer.by_rule[:_MOST_READS]
    ]
    if len(answer.by_rule) > _MOST_READS:
        lines.append(f"  and {len(answer.by_rule) - _MOST_READS} more; --json lists all.")
    return "\n".join([*lines, *_unmatched(answer)])


def _unmatched(answer: ScriptAnswer) -> list[str]:
    """Say which --read met nothing, and which lines it could have named."""
    seen = sorted({one.line for one in answer.by_rule if one.line})
    names = ", ".join(seen[:_MOST_NAMED]) or "no line"
    more = f" and {len(seen) - _MOST_NAMED} more" if len(seen) > _MOST_NAMED else ""
    return [
        f"--read {line} met no read by rule; these were met: {names}{more}."
        for line in answer.unmatched_reads
    ]


def _remedies(answer: ScriptAnswer) -> list[str]:
    """Return what to change where memory ran out."""
    memory = answer.out_of_memory
    if answer.error is not None and _WRONG_DEVICE.search(answer.error.message):
        return [f"{answer.num_devices} such card was described: --devices N describes more."]
    if memory is None or memory.is_caught:
        return []
    remedies = []
    if answer.reserved_peak_bytes - answer.allocated_peak_bytes >= memory.requested_bytes:
        remedies.append(
            "More is reserved and not allocated than was asked for: try "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."
        )
    if answer.largest_batch is None:
        remedies.append(
            "--find-batch OPTION finds the largest batch, by the option of yours that sets it."
        )
    return remedies


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _notes(answer: ScriptAnswer) -> str:
    notes = [] if answer.runs else _remedies(answer)
    if answer.timed_out:
        notes.append("The script was ended at --timeout; all it would have done is not seen.")
    elif answer.stopped:
        notes.append(f"Stopped after {answer.num_steps} steps; --steps N watches N.")
    if answer.unseen_validation_steps:
        total = answer.num_steps + answer.unseen_validation_steps
        notes.append(f"No validation was seen; --steps {total} reaches the end of the epoch.")
    if answer.out_of_memory is not None and answer.out_of_memory.is_caught:
        notes.append("The script met an out-of-memory error and went on.")
    if answer.num_alloc_retries:
        notes.append(
            f"The allocator emptied its cache {_times(answer.num_alloc_retries)} to make room, "
            "which is slow."
        )
    if answer.num_processes > 1:
        notes.append(f"{answer.num_processes} processes used the card; the largest is shown.")
    if answer.missing_calls:
        notes.append(f"Not known to the phantom: {', '.join(answer.missing_calls)}.")
    notes.append("Computed by PyTorch itself on a card that is not there: not measured.")
    return "\n".join(notes)
