"""Memory snapshots replayed: a real allocator's history against the simulated one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.card_truth.row import Row
from memplan.errors import MemplanError
from memplan.trace.snapshot import read_snapshot
from memplan.trace.snapshot_replay import check_snapshot

REPLAYED = "Memory snapshots, replayed"
_ENDINGS = {".pickle", ".pkl"}


def files_in(folder: Path) -> list[Path]:
    """Return the snapshots of a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS)


def snapshots(folder: Path) -> Iterator[Row]:
    """Yield each snapshot's peak of reserved memory, recorded and replayed.

    The requests are the recording's; what is tried is the allocator alone. A file's name stands
    for its source: `owner+repository+object`.
    """
    for path in files_in(folder):
        row = {
            "kind": REPLAYED,
            "case": path.stem,
            "card": "not named",
            "figure": "reserved",
            "source": path.stem.replace("+", " "),
        }
        try:
            snapshot = read_snapshot(path)
            check = check_snapshot(snapshot)
        except MemplanError as error:
            yield Row(**row, measured_bytes=0, remark=str(error))  # type: ignore[arg-type]
            continue
        steps = f"{check.num_differing_steps} of {len(snapshot.trace)} entries differ"
        layout = "equal" if check.is_layout_equal else "not equal"
        yield Row(
            **row,  # type: ignore[arg-type]
            measured_bytes=check.recorded_reserved_peak_bytes,
            predicted_bytes=check.peaks.reserved_peak_bytes,
            torch="{}.{} or a little older".format(*snapshot.torch_version),
            cudnn="plays no part",
            remark=f"{steps}; final layout {layout}",
        )
