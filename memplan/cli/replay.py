"""`memplan replay`: a recording under other capacity or allocator settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from memplan import tape as tapes
from memplan.cli.common import folded
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.errors import BadInputError, BadTapeError, UsageError
from memplan.present.diff import diff_json, diff_sections
from memplan.present.section import aligned as table
from memplan.trace.snapshot import Snapshot, driver_balance, read_snapshot
from memplan.trace.snapshot_places import NO_FRAMES
from memplan.trace.snapshot_pools import pool_totals
from memplan.units import format_bytes, gib, parse_bytes

_UNLIMITED = 1 << 50  # more than any card has
_NO_HISTORY = (
    "The snapshot holds no history, so nothing is replayed: below is what was held when it was "
    "taken. Call torch.cuda.memory._record_memory_history() before the run to record one."
)
_MOST_POOLS = 12
_MOST_LINES = 10


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
    if len(files) == 2:
        _compare(files[0], files[1], values)
    else:
        _replay(files[0], values)


def _compare(one: Path, other: Path, values: Mapping[str, Any]) -> None:
    from memplan.cli.replay_diff import recorded_holdings

    before, now = (recorded_holdings(file, values) for file in (one, other))
    if values["as_json"]:
        click.echo(json.dumps(diff_json(before, now), indent=1))
    else:
        click.echo(folded("\n\n".join(section.text for section in diff_sections(before, now))))


def _replay(file: Path, values: Mapping[str, Any]) -> None:
    capacity = parse_bytes(values["capacity"]) if values["capacity"] else None
    if tapes.is_tape(file):
        answer = _tape(file, values["gpu"], capacity, values["allocator"], values["accumulate"])
    else:
        answer = _snapshot(file, values["gpu"], capacity, values["allocator"])
    click.echo(json.dumps(answer, indent=1) if values["as_json"] else folded(_text(answer)))


def _tape(
    file: Path, gpu: str | None, capacity: int | None, allocator: str, accumulates: bool
) -> dict[str, Any]:
    from memplan import tape as tape_module
    from memplan.advise import replay

    tape = tape_module.load_tape(file)
    peaks = replay(tape, gpu=gpu, capacity=capacity, allocator=allocator, accumulates=accumulates)
    return {
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
        "note": peaks.note,
        "origin": "simulated",
    }


def _card(gpu: str) -> Card:
    from memplan.device import catalogue, nvml

    return nvml.card_at(int(gpu)).card if gpu.isdecimal() else catalogue.card(gpu)


def _snapshot(file: Path, gpu: str | None, capacity: int | None, allocator: str) -> dict[str, Any]:
    from memplan.trace.snapshot_replay import check_snapshot, replay_snapshot

    snapshot = read_snapshot(file)
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
    before = snapshot.reserved_bytes - driver_balance(snapshot.trace)
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
        "origin": "measured",
    }


def _held(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a snapshot's pools hold, and the lines that asked for it."""
    return {
        "pools": [asdict(one) for one in pool_totals(snapshot.segments)],
        "held_by": dict(snapshot.held_by),
    }


def _pools_table(answer: dict[str, Any]) -> list[str]:
    """Return the tables of what was held when a snapshot was taken; nothing of a tape."""
    pools = answer.get("pools", [])
    if not pools:
        return []
    header = ("Pool", "Stream", "Segments", "Blocks in use", "Reserved", "Allocated", "Free",
              "Largest free")  # fmt: skip
    rows = [
        (
            one["pool"],
            str(one["stream"]),
            str(one["num_segments"]),
            str(one["num_blocks"]),
            *(
                format_bytes(one[f"{name}_bytes"])
                for name in ("reserved", "allocated", "inactive", "largest_inactive")
            ),
        )
        for one in pools[:_MOST_POOLS]
    ]
    tables = ["", "When the snapshot was taken (measured)", table(header, rows)]
    lines = [(place, num) for place, num in answer["held_by"].items() if place != NO_FRAMES]
    if lines:
        total = sum(answer["held_by"].values())
        rows = [
            (place, format_bytes(num), f"{num / total:.0%}") for place, num in lines[:_MOST_LINES]
        ]
        tables += ["", "Held by (measured)", table(("Line", "Allocated", "Share"), rows)]
    return tables


def _text(answer: dict[str, Any]) -> str:
    if not answer["simulated"]:
        held = [format_bytes(answer["recorded"][f"{n}_bytes"]) for n in ("allocated", "reserved")]
        head = f"{answer['file']}: {held[0]} allocated, {held[1]} reserved (measured)."
        return "\n".join([head, answer["note"], *_pools_table(answer)])
    kinds = [kind for kind in ("recorded", "simulated") if answer[kind]]
    rows = []
    for what in ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes"):
        values = [gib(answer[kind][what]) if what in answer[kind] else "" for kind in kinds]
        if any(values):
            rows.append((what.removesuffix("_peak_bytes").replace("_", "-"), *values))
    lines = [
        f"{answer['file']}: {answer['events']} events replayed.",
        table(("Peak", *(f"{kind.capitalize()} GiB" for kind in kinds)), rows),
    ]
    simulated = answer["simulated"]
    if simulated["num_alloc_retries"]:
        lines.append(f"The cache is emptied {simulated['num_alloc_retries']} times to go on.")
    if answer.get("note"):
        lines.append(answer["note"])
    if answer.get("num_differing_steps"):
        lines.append(
            f"Replayed as recorded, {answer['num_differing_steps']} steps differ from the file; "
            f"the first: {answer['first_difference']}"
        )
    elif "is_layout_equal" in answer:
        lines.append("Replayed as recorded, every address and segment equals the file's.")
    if answer["capacity_bytes"] is not None:
        lines.append(answer["out_of_memory"] or "It fits.")
    lines += _pools_table(answer)
    return "\n".join(lines)
