"""Sections of a replay: its peaks beside the recorded ones, and what a snapshot held."""

from __future__ import annotations

from typing import Any

from memplan.blocks import NO_FRAMES
from memplan.present.section import Section, Table
from memplan.units import format_bytes, gib

_MOST_POOLS = 12
_MOST_LINES = 10


def replay_sections(answer: dict[str, Any]) -> list[Section]:
    """Return all that a replay says, in the order it is read.

    Args:
        answer: as `memplan.replay/1` has it.
    """
    first = _replayed(answer) if answer["simulated"] else _not_replayed(answer)
    return [first, *_pools(answer), *_lines(answer)]


def _not_replayed(answer: dict[str, Any]) -> Section:
    held = [format_bytes(answer["recorded"][f"{n}_bytes"]) for n in ("allocated", "reserved")]
    head = f"{answer['file']}: {held[0]} allocated, {held[1]} reserved ({answer['origin']})."
    return Section(title="The snapshot", sentences=(head, answer["note"]))


def _replayed(answer: dict[str, Any]) -> Section:
    kinds = [kind for kind in ("recorded", "simulated") if answer[kind]]
    rows = []
    for what in ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes"):
        values = [gib(answer[kind][what]) if what in answer[kind] else "" for kind in kinds]
        if any(values):
            rows.append((what.removesuffix("_peak_bytes").replace("_", "-"), *values))
    header = ("Peak", *(f"{kind.capitalize()} GiB" for kind in kinds))
    return Section(
        title="The replay",
        sentences=(f"{answer['file']}: {answer['events']} events replayed.",),
        table=Table(header=header, rows=tuple(rows)),
        after=tuple(_after(answer)),
    )


def _after(answer: dict[str, Any]) -> list[str]:
    """Return what is said under the peaks."""
    lines = []
    retries = answer["simulated"]["num_alloc_retries"]
    if retries:
        lines.append(f"The cache is emptied {retries} times to go on.")
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
    return lines


def _pools(answer: dict[str, Any]) -> list[Section]:
    """Return what a snapshot's pools held when it was taken; nothing of a tape."""
    pools = answer.get("pools", [])
    if not pools:
        return []
    header = (
        *("Pool", "Stream", "Segments", "Blocks", "Reserved", "Allocated", "Free"),
        "Largest free",
    )
    names = ("reserved", "allocated", "inactive", "largest_inactive")
    rows = tuple(
        (
            one["pool"],
            str(one["stream"]),
            str(one["num_segments"]),
            str(one["num_blocks"]),
            *(format_bytes(one[f"{name}_bytes"]) for name in names),
        )
        for one in pools[:_MOST_POOLS]
    )
    title = "When the snapshot was taken"
    table = Table(header=header, rows=rows, caption=f"{title} ({answer['recorded_origin']})")
    return [Section(title=title, table=table)]


def _lines(answer: dict[str, Any]) -> list[Section]:
    """Return the lines that asked for what a snapshot held, where frames were recorded."""
    held = answer.get("held_by", {})
    lines = [(place, num_bytes) for place, num_bytes in held.items() if place != NO_FRAMES]
    if not lines:
        return []
    total = sum(held.values())
    rows = tuple(
        (place, format_bytes(num_bytes), f"{num_bytes / total:.0%}")
        for place, num_bytes in lines[:_MOST_LINES]
    )
    caption = f"Held by ({answer['recorded_origin']})"
    table = Table(header=("Line", "Allocated", "Share"), rows=rows, caption=caption)
    return [Section(title="Held by", table=table)]
