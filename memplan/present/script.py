"""Sections of a script that was watched: does it run, where memory goes, what to change."""

from __future__ import annotations

import re
from pathlib import Path

from memplan.present.bar import bar_key, category_bar
from memplan.present.section import Number, Section, Table
from memplan.script_answer import ScriptAnswer, ScriptError
from memplan.units import format_bytes

_MOST_ROWS = 12
_MOST_READS = 5
_MOST_NAMED = 8
# What PyTorch says of a card that is not there.
_WRONG_DEVICE = re.compile(r"device (?:id|ordinal)\b", re.IGNORECASE)


def script_sections(answer: ScriptAnswer) -> list[Section]:
    """Return all that is said of a script, in the order it is read."""
    lead = [_trials(answer), _saying("Does it run", script_headline(answer))]
    if not answer.allocated_peak_bytes:
        sections = [*lead, _saying("What to change", "\n".join(remedies(answer)))]
    else:
        sections = [
            *lead,
            _peaks(answer),
            _categories(answer),
            _modules(answer),
            _saying("Growth", _growth(answer)),
            _saying("Values that depend on the network", _reads(answer)),
            _saying("Notes", _notes(answer)),
        ]
    return [section for section in sections if section.text]


def _saying(title: str, text: str) -> Section:
    return Section(title=title, sentences=tuple(text.split("\n")) if text else ())


def script_numbers(answer: ScriptAnswer) -> list[Number]:
    """Return the few numbers that a watched script is known by."""
    used, capacity = answer.device_used_peak_bytes, answer.capacity_bytes
    numbers = [
        Number(
            value=format_bytes(used),
            label="device-used at its peak (phantom)",
            detail=f"of {format_bytes(capacity)}, {used / capacity:.0%} of {answer.gpu}",
        )
    ]
    if answer.batch_option and answer.largest_batch is not None:
        numbers.append(
            Number(
                value=str(answer.largest_batch),
                label=f"largest {answer.batch_option} that runs (phantom)",
                detail=f"{len(answer.trials)} tried",
            )
        )
    steps = f"step{'s' if answer.num_steps != 1 else ''} of the optimizer watched"
    numbers.append(Number(value=str(answer.num_steps), label=steps, detail=_growth(answer)))
    return numbers


def _trials(answer: ScriptAnswer) -> Section:
    """Say which batch is the largest, and what was run to know it."""
    title = "The largest batch"
    if not answer.trials:
        return Section(title=title)
    rows = tuple(
        (str(one.batch), _size(one.device_used_peak_bytes), "yes" if one.runs else "no")
        for one in answer.trials
    )
    errors = tuple(
        f"{answer.batch_option} {one.batch} {one.error}" for one in answer.trials if one.error
    )
    header = (answer.batch_option, "Device-used", "Runs")
    lines = tuple(_largest(answer).split("\n"))
    table = Table(header=header, rows=rows)
    return Section(title=title, sentences=lines, table=table, after=errors)


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


def script_headline(answer: ScriptAnswer) -> str:
    """Return whether the command runs, and where it ended if not."""
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
        told = f"The command fails{place}: {error.kind}: {error.message}"
        return f"{told.rstrip('.')}.{_made_up(error)}"
    steps = f"{answer.num_steps} step{'s' if answer.num_steps != 1 else ''} watched"
    if not answer.num_steps:
        steps = "no optimizer step seen"
    return (
        f"The command runs on {card}: device-used {format_bytes(answer.device_used_peak_bytes)}\n"
        f"at its peak, {steps} (phantom)."
    )


def _peaks(answer: ScriptAnswer) -> Section:
    rows = (
        ("allocated", format_bytes(answer.allocated_peak_bytes)),
        ("reserved", format_bytes(answer.reserved_peak_bytes)),
        ("device-used", format_bytes(answer.device_used_peak_bytes)),
    )
    return Section(title="Peaks", table=Table(header=("Peak (phantom)", "Size"), rows=rows))


def _categories(answer: ScriptAnswer) -> Section:
    title = "Where memory goes"
    total = sum(answer.categories_at_peak.values())
    if not total:
        return Section(title=title)
    ordered = sorted(answer.categories_at_peak.items(), key=lambda item: -item[1])
    rows = tuple((name, format_bytes(size), _share(size / total)) for name, size in ordered)
    where = " of ".join(part for part in (answer.peak_phase, answer.peak_module) if part)
    caption = f"Allocated at the peak ({where or 'outside modules'})"
    table = Table(caption=caption, header=("Category", "Size", "Share"), rows=rows)
    bar = category_bar(answer.categories_at_peak)
    return Section(title=title, table=table, bar=(bar, bar_key(bar)))


def _share(part: float) -> str:
    return "<1%" if 0 < part < 0.005 else f"{part:.0%}"


def _modules(answer: ScriptAnswer) -> Section:
    rows = tuple(
        (one["path"] or "(outside modules)", format_bytes(one["bytes"]))
        for one in answer.modules[:_MOST_ROWS]
    )
    table = Table(header=("Made in module", "Size"), rows=rows) if rows else None
    return Section(title="By module", table=table)


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


def remedies(answer: ScriptAnswer) -> list[str]:
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


def _made_up(error: ScriptError) -> str:
    """Return that a value which a rule answered may be why."""
    if not error.read_by_rule:
        return ""
    return (
        f" A value that nobody computed may be why: {error.read_by_rule} by rule. "
        "--read LINE=VALUE gives it another."
    )


def _note_on_processes(answer: ScriptAnswer) -> str:
    shown = (
        f"{answer.num_processes} processes used the card, each as if alone; the largest is shown."
    )
    if answer.num_devices > 1 or not answer.together_bytes:
        return shown
    together = f"Together they take {format_bytes(answer.together_bytes)} if their peaks meet"
    room = answer.capacity_bytes
    verdict = f", and the card has {format_bytes(room)}" if answer.together_bytes > room else ""
    return f"{shown} {together}{verdict}."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _notes(answer: ScriptAnswer) -> str:
    notes = [] if answer.runs else remedies(answer)
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
        notes.append(_note_on_processes(answer))
    if answer.missing_calls:
        notes.append(f"Not known to the phantom: {', '.join(answer.missing_calls)}.")
    notes.append("Computed by PyTorch itself on a card that is not there: not measured.")
    return "\n".join(notes)
