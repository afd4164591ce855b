"""How much host memory and time it takes to read and replay a large memory snapshot.

python -m benchmarks.snapshot_memory --gigabytes 0.1 --gigabytes 1.2
"""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.common import publish
from memplan.device.allocator import AllocatorSettings, Block, CachingAllocator
from memplan.host_memory import resident_peak_bytes
from memplan.trace.snapshot import read_snapshot
from memplan.trace.snapshot_blocks import snapshot_blocks
from memplan.trace.snapshot_export import segment_row
from memplan.trace.snapshot_replay import check_snapshot

_STACKS, _DEPTH, _FRAMES = 3_000, 30, 5_000
_BYTES_AN_ENTRY = 180
_ROUNDS = 10_000


def written(path: Path, num_bytes: float) -> None:
    """Write a snapshot of a simulated allocator's history, each entry with a stack of 30 frames.

    As PyTorch does, frames are shared between stacks and stacks are not between entries.
    """
    rng = random.Random(14)
    frames = [
        {"filename": f"/home/me/net_{at % 60}.py", "line": at, "name": f"forward_{at}"}
        for at in range(_FRAMES)
    ]
    stacks = [rng.choices(frames, k=_DEPTH) for _ in range(_STACKS)]
    allocator = CachingAllocator(1 << 36, AllocatorSettings(), trace=True)
    rows: list[dict[str, Any]] = []
    rounds = _program(rng, allocator)
    while len(rows) < num_bytes / _BYTES_AN_ENTRY:
        next(rounds)
        rows += (
            {
                "action": entry.action,
                "addr": entry.address,
                "size": entry.size,
                "stream": entry.stream,
                "time_us": len(rows),
                "compile_context": "N/A",
                "frames": list(rng.choice(stacks)),
            }
            for entry in allocator.trace
        )
        assert allocator.state.trace is not None
        allocator.state.trace.clear()
    content = {
        "segments": [segment_row(record, lambda _: []) for record in allocator.snapshot()],
        "device_traces": [rows],
        "external_annotations": [],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": ""},
    }
    with path.open("wb") as file:
        pickle.dump(content, file)


def _program(rng: random.Random, allocator: CachingAllocator) -> Iterator[None]:
    """Allocate and free blocks for ever, pausing once in a while."""
    live: list[Block] = []
    while True:
        for _ in range(_ROUNDS):
            if len(live) > 2_000 or (live and rng.random() < 0.5):
                allocator.free(live.pop(rng.randrange(len(live))))
            else:
                live.append(allocator.malloc(rng.choice((4096, 1 << 18, 1 << 22, 20 << 20)), 0))
        yield


def _measured(path: Path) -> list[str]:
    """Return a row of the table: what each part of the work took, in this very process."""
    at_start, size = resident_peak_bytes(), path.stat().st_size
    start = time.perf_counter()
    snapshot = read_snapshot(path)
    read, read_resident = time.perf_counter() - start, resident_peak_bytes()
    start = time.perf_counter()
    check = check_snapshot(snapshot)
    replayed, replayed_resident = time.perf_counter() - start, resident_peak_bytes()
    start = time.perf_counter()
    lives = snapshot_blocks(snapshot, path.name)
    blocks, most = time.perf_counter() - start, resident_peak_bytes()
    assert check.is_layout_equal
    assert not check.num_differing_steps
    assert len(lives.made)
    return [
        f"{size / 1e9:.2f} GB",
        f"{len(snapshot.trace) / 1e6:.1f} M",
        f"{read:.0f} s",
        f"{replayed:.0f} s",
        f"{blocks:.0f} s",
        f"{(read_resident - at_start) / 1e6:,.0f} MB",
        f"{(replayed_resident - at_start) / 1e6:,.0f} MB",
        f"{(most - at_start) / 1e6:,.0f} MB",
        f"{(most - at_start) / size:.2f}",
    ]


@click.command()
@click.option("--gigabytes", type=float, multiple=True, default=(0.1, 1.2))
@click.option("--child", type=click.Path(path_type=Path), hidden=True)
def main(gigabytes: tuple[float, ...], child: Path | None) -> None:
    """Write files, read each in a process of its own, and write the table."""
    if child is not None:
        click.echo(json.dumps(_measured(child)))
        return
    rows = []
    for size in gigabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "snapshot.pickle"
            code = f"from {__spec__.name} import Path, written\n"
            code += f"written(Path({str(path)!r}), {size * 1e9})"
            subprocess.run([sys.executable, "-c", code], check=True)
            command = [sys.executable, "-m", __spec__.name, "--child", path]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout))
    publish("snapshot_memory", "Large memory snapshots", _HEADER, rows, _REMARKS)


_HEADER = (
    *("file", "entries", "read", "replayed", "into blocks"),
    *("memory after reading", "after replay", "at most", "of the file"),
)
_REMARKS = (
    "A simulated allocator's history, each entry with a stack of 30 frames, as PyTorch writes it.",
    "Each file is read, replayed entry by entry (no difference is found), and turned into the "
    "blocks of an HTML page, in a process of its own.",
    "Memory is the process's resident peak less what it had before it opened the file.",
)


if __name__ == "__main__":
    main()
