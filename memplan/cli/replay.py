"""`memplan replay`: a recording under other capacity or allocator settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from memplan import tape as tapes
from memplan.blocks import BlockLives
from memplan.cli.common import (
    Progress,
    blocks_report_option,
    folded,
    is_html,
    snapshot_option,
)
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.errors import BadInputError, BadTapeError, UsageError
from memplan.files.writing import check_writable
from memplan.present.diff import diff_json, diff_sections
from memplan.present.replay import replay_sections
from memplan.trace.snapshot import Snapshot, read_snapshot
from memplan.trace.snapshot_blocks import snapshot_blocks
from memplan.trace.snapshot_pools import pool_totals
from memplan.units import format_bytes, parse_bytes

_UNLIMITED = 1 << 50  # more than any card has
_NO_HISTORY = (
    "The snapshot holds no history, so nothing is replayed: below is what was held when it was "
    "taken. Call torch.cuda.memory._record_memory_history() before the run to record one."
)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE [FILE]"
)
@click.option("--gpu", metavar="INDEX|NAME", help="The card; a tape's workspace is its own.")
@click.option("--capacity", metavar="SIZE", help="Memory the device has, such as 24GiB.")
@click.option(
    "--allocator",
    default="",
    metavar="OPTIONS",
    help="PyTorch's own syntax, such as expandable_segments:True.",
)
@click.option(
    "--accumulate/--no-accumulate",
    default=False,
    help="Of a tape: a step of several micro-batches.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, memory in bytes.")
@blocks_report_option
@snapshot_option(
    "Of a tape: also write it as PyTorch's memory snapshot, for pytorch.org/memory_viz."
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def command(files: tuple[Path, ...], **values: Any) -> None:
    """Replay a tape, or a PyTorch memory snapshot, on another card or allocator.

    Of two files, say what grew from the first to the second.

    \b
    memplan replay step.tape --gpu rtx-3090 --allocator expandable_segments:True
    memplan replay before.pickle after.pickle
    """
    if len(files) > 2:
        raise UsageError(f"{files[2]} is a third file. Give one to replay, or two to compare.")
    for file in files:
        if not file.is_file():
            raise BadInputError(f"{file} is no file. Give a tape or a PyTorch memory snapshot.")
    check_writable((values["report"], values["snapshot"]), force=values["force"])
    if len(files) == 2:
        _compare(files[0], files[1], values)
    else:
        _replay(files[0], values)


def _compare(one: Path, other: Path, values: Mapping[str, Any]) -> None:
    from memplan.cli.replay_diff import recorded_holdings
    from memplan.cli.replay_pages import write_comparison

    _check_snapshot_option(values, is_tape=False)
    progress = Progress()
    try:
        progress(f"Reading {one.name} and {other.name}")
        before, now = (recorded_holdings(file, values) for file in (one, other))
    finally:
        progress.done()
    if values["as_json"]:
        click.echo(json.dumps(diff_json(before, now), indent=1))
    else:
        click.echo(folded("\n\n".join(section.text for section in diff_sections(before, now))))
    if values["report"] is not None:
        write_comparison(values["report"], before, now)


def _check_snapshot_option(values: Mapping[str, Any], *, is_tape: bool) -> None:
    if values["snapshot"] is not None and not is_tape:
        raise UsageError(
            f"--snapshot {values['snapshot']} is written of one tape; a PyTorch snapshot is one "
            "already."
        )


def _replay(file: Path, values: Mapping[str, Any]) -> None:
    from memplan.cli.replay_pages import write_replay

    is_tape = tapes.is_tape(file)
    _check_snapshot_option(values, is_tape=is_tape)
    progress = Progress()
    try:
        progress(f"Reading {file.name}")
        answer, lives = (_tape if is_tape else _snapshot)(file, values, progress)
    finally:
        progress.done()
    sections = replay_sections(answer)
    text = "\n\n".join(section.text for section in sections)
    click.echo(json.dumps(answer, indent=1) if values["as_json"] else folded(text))
    if values["report"] is not None:
        write_replay(values["report"], f"Replay of {file.name}", sections, lives)


_Answered = tuple[dict[str, Any], list[BlockLives]]


def _capacity(values: Mapping[str, Any]) -> int | None:
    return parse_bytes(values["capacity"]) if values["capacity"] else None


def _tape(file: Path, values: Mapping[str, Any], say: Progress) -> _Answered:
    from memplan.advise import replay

    tape, capacity = tapes.load_tape(file), _capacity(values)
    say(f"Replaying {len(tape)} events")
    peaks = replay(
        tape,
        gpu=values["gpu"],
        capacity=capacity,
        allocator=values["allocator"],
        accumulates=values["accumulate"],
    )
    answer = {
        "schema": "memplan.replay/1",
        "file": str(file),
        "events": len(tape),
        "recorded": {},
        "simulated": {
            "allocated_peak_bytes": peaks.allocated_peak_bytes,
            "reserved_peak_bytes": peaks.reserved_peak_bytes,
            "device_used_peak_bytes": peaks.device_used_peak_bytes,
            "num_alloc_retries": peaks.num_alloc_retries,
            "num_ooms": peaks.num_ooms,
            "num_slower_plans": peaks.num_slower_plans,
            "inactive_split_peak_bytes": peaks.inactive_split_peak_bytes,
        },
        "capacity_bytes": peaks.capacity_bytes,
        "fits": peaks.fits,
        "out_of_memory": peaks.out_of_memory,
        "note": " ".join(filter(None, (peaks.note, _note(tape, values["gpu"])))),
        "origin": "simulated",
    }
    return answer, _tape_lives(tape, values)


def _note(tape: tapes.Tape, gpu: str | None) -> str:
    """Return a sentence where the card runs other operators than were recorded."""
    from memplan.advise.notes import attention_note
    from memplan.device.chosen import calibrated_card

    return attention_note(tape, [calibrated_card(gpu)])


def _tape_lives(tape: tapes.Tape, values: Mapping[str, Any]) -> list[BlockLives]:
    """Return a tape's blocks where a page shows them, and write the snapshot that was asked for."""
    if not is_html(values["report"]) and values["snapshot"] is None:
        return []
    from memplan.cli.replay_pages import tape_blocks
    from memplan.device.chosen import calibrated_card
    from memplan.device.life import Life

    card, capacity = calibrated_card(values["gpu"]), _capacity(values)
    card = card if capacity is None else card.with_capacity(capacity)
    settings = AllocatorSettings.parse(values["allocator"])
    life = Life(accumulates=values["accumulate"])
    return [tape_blocks(tape, card, settings, life, values["snapshot"])]


def _card(gpu: str) -> Card:
    from memplan.device import catalogue, nvml

    return nvml.card_at(int(gpu)).card if gpu.isdecimal() else catalogue.card(gpu)


def _snapshot(file: Path, values: Mapping[str, Any], say: Progress) -> _Answered:
    snapshot = read_snapshot(file)
    say(f"Replaying {len(snapshot.trace)} entries")
    has_blocks = is_html(values["report"]) and snapshot.trace
    lives = [snapshot_blocks(snapshot, file.name)] if has_blocks else []
    return _snapshot_answer(file, snapshot, values), lives


def _snapshot_answer(file: Path, snapshot: Snapshot, values: Mapping[str, Any]) -> dict[str, Any]:
    from memplan.trace.snapshot_replay import check_snapshot, replay_snapshot

    gpu, capacity, allocator = values["gpu"], _capacity(values), values["allocator"]
    if not snapshot.trace:
        return _not_replayed(file, snapshot, _NO_HISTORY)
    try:
        check = check_snapshot(snapshot)
    except BadTapeError as error:  # the file is sound, its history is of no use
        return _not_replayed(file, snapshot, f"Nothing is replayed. {error}")
    available = capacity
    if gpu is not None:
        card = _card(gpu)
        card = card if capacity is None else card.with_capacity(capacity)
        capacity = card.capacity_bytes
        available = capacity - card.context_bytes
    is_changed = bool(capacity or allocator)
    settings = AllocatorSettings.parse(allocator) if allocator else None
    peaks = (
        replay_snapshot(snapshot, available or _UNLIMITED, settings) if is_changed else check.peaks
    )
    return {
        "schema": "memplan.replay/1",
        "file": str(file),
        "events": peaks.num_events,
        "recorded": {
            "allocated_peak_bytes": check.peaks.allocated_peak_bytes,
            "reserved_peak_bytes": check.recorded_reserved_peak_bytes,
        },
        "simulated": {
            "allocated_peak_bytes": peaks.allocated_peak_bytes,
            "reserved_peak_bytes": peaks.reserved_peak_bytes,
            "num_alloc_retries": peaks.num_alloc_retries,
            "num_ooms": peaks.num_ooms,
            "inactive_split_peak_bytes": peaks.inactive_split_peak_bytes,
        },
        "capacity_bytes": capacity,
        "fits": not peaks.num_ooms,
        "out_of_memory": peaks.oom_message,
        "num_differing_steps": check.num_differing_steps,
        "is_layout_equal": check.is_layout_equal,
        "first_difference": check.first_difference,
        **_held(snapshot),
        "note": _late_words(snapshot),
        "origin": "simulated",
    }


def _late_words(snapshot: Snapshot) -> str:
    """Return a sentence where a history does not begin with the device's first segment."""
    if snapshot.is_cold_start:
        return ""
    before = snapshot.reserved_before_bytes
    count = len(snapshot.trace)
    return (
        f"The history starts late: {format_bytes(max(before, 0))} were reserved before the first "
        f"of its {count} entr{'y' if count == 1 else 'ies'}."
    )


def _not_replayed(file: Path, snapshot: Snapshot, why: str) -> dict[str, Any]:
    """Return what a snapshot tells without its history: what is held, and why no more."""
    return {
        "schema": "memplan.replay/1",
        "file": str(file),
        "events": len(snapshot.trace),
        "recorded": {
            "allocated_bytes": snapshot.allocated_bytes,
            "reserved_bytes": snapshot.reserved_bytes,
        },
        "simulated": {},
        **_held(snapshot),
        "note": why,
        "origin": snapshot.origin,
    }


def _held(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a snapshot's pools hold, and the lines that asked for it."""
    return {
        "pools": [asdict(one) for one in pool_totals(snapshot.segments)],
        "held_by": dict(snapshot.held_by),
        "recorded_origin": snapshot.origin,
    }
