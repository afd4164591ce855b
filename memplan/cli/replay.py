"""`memplan replay`: a recording under other capacity or allocator settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from memplan import tape as tapes
from memplan.cli.common import folded
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.errors import BadInputError
from memplan.present.section import aligned as table
from memplan.units import gib, parse_bytes

_UNLIMITED = 1 << 50  # more than any card has


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
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
def command(file: Path, **values: Any) -> None:
    """Replay a tape, or a PyTorch memory snapshot, on another card or allocator.

    \b
    memplan replay step.tape --gpu rtx-3090 --allocator expandable_segments:True
    """
    if not file.is_file():
        raise BadInputError(f"{file} is no file. Give a tape or a PyTorch memory snapshot.")
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
    from memplan.trace.snapshot import read_snapshot
    from memplan.trace.snapshot_replay import check_snapshot, replay_snapshot

    snapshot = read_snapshot(file)
    check = check_snapshot(snapshot)
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
        "origin": "simulated",
    }


def _text(answer: dict[str, Any]) -> str:
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
    return "\n".join(lines)
