"""What a tape or a snapshot holds, to be compared with another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan import tape as tapes
from memplan.device.allocator_settings import AllocatorSettings
from memplan.errors import BadTapeError
from memplan.present.diff import Holdings
from memplan.trace.snapshot import Snapshot, read_snapshot
from memplan.trace.snapshot_pools import pool_totals
from memplan.trace.snapshot_replay import check_snapshot
from memplan.units import parse_bytes


def recorded_holdings(file: Path, values: Mapping[str, Any]) -> Holdings:
    """Return what a tape holds at its peak, or a snapshot when it was taken.

    Args:
        file: a tape or a PyTorch memory snapshot.
        values: options of `memplan replay`; a tape needs a card.

    Raises:
        MemplanError: the file or an option cannot be used.
    """
    if tapes.is_tape(file):
        return _of_tape(file, values)
    return _of_snapshot(file, read_snapshot(file))


def _of_tape(file: Path, values: Mapping[str, Any]) -> Holdings:
    from memplan.advise.at_peak import held_at_peak
    from memplan.device.chosen import calibrated_card
    from memplan.device.life import Life
    from memplan.device.replay import replayed

    tape = tapes.load_tape(file)
    card = calibrated_card(values["gpu"])
    if values["capacity"]:
        card = card.with_capacity(parse_bytes(values["capacity"]))
    settings = AllocatorSettings.parse(values["allocator"])
    life = Life(accumulates=values["accumulate"])
    found = replayed(tape, card, settings, life=life)
    about = tape.description
    peaks = found.peaks
    return Holdings(
        name=str(file),
        about=(
            f"{about.workload} at {about.image_size} px, {about.spec.words()}, batch "
            f"{about.micro_batch_size}, on {card.name} (simulated)"
        ),
        peaks={
            "allocated": peaks.allocated_peak_bytes,
            "reserved": peaks.reserved_peak_bytes,
            "device-used": peaks.device_used_peak_bytes,
        },
        groups=held_at_peak(found.program, tape, found.sizes, peaks.peak_event),
    )


def _of_snapshot(file: Path, snapshot: Snapshot) -> Holdings:
    peaks = {"allocated": snapshot.allocated_bytes, "reserved": snapshot.reserved_bytes}
    notes = ["Allocated and reserved are those of the moment of each snapshot."]
    if snapshot.trace:
        try:
            check = check_snapshot(snapshot)
            peaks["reserved peak"] = check.recorded_reserved_peak_bytes
        except BadTapeError as error:
            notes.append(f"{file.name}: {error}")
    pools: dict[str, int] = {}
    for one in pool_totals(snapshot.segments):
        name = f"{one.pool} pool, stream {one.stream}"
        pools[name] = pools.get(name, 0) + one.reserved_bytes
    return Holdings(
        name=str(file),
        about=f"a PyTorch snapshot of {len(snapshot.trace)} entries (measured)",
        peaks=peaks,
        groups={"line": snapshot.held_by, "pool": pools},
        notes=tuple(notes),
    )
