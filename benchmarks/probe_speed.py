"""Wall time and memory of `memplan probe` over 1:64, nothing cached, imports included."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import publish

REPEATS = 3
_SECONDS_BETWEEN = 1.0
COMMAND = ["probe", "--cfg", "yolov9-s", "--batch", "1:64", "--gpu", "rtx-3090", "--json"]


def resident_bytes(root: int) -> int:
    """Return the resident memory of a process and its descendants, pages they share once.

    Source: `Pss` of /proc/PID/smaps_rollup, the proportional share of each process.
    """
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(
            int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")
        )
    return total


def measure() -> tuple[float, int, dict[str, object]]:
    """Return seconds, peak resident bytes and the answer of one run."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", "from memplan.cli import main; main()", *COMMAND],
            stdout=out,
            env={**os.environ, "MEMPLAN_CACHE": "off"},
        )
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_BETWEEN)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"memplan exited with {process.returncode}")
        out.seek(0)
        return seconds, peak, json.load(out)


def main() -> None:
    """Run the probe a few times and publish the median and the spread."""
    runs = [measure() for _ in range(REPEATS)]
    seconds = [run[0] for run in runs]
    peak = max(run[1] for run in runs)
    batches = len(runs[0][2]["batches"])
    rows = [
        (
            "wall time, s",
            f"{statistics.median(seconds):.1f}",
            f"{min(seconds):.1f}",
            f"{max(seconds):.1f}",
            "15",
        ),
        ("peak resident, GiB", f"{peak / 2**30:.2f}", "", "", "3"),
    ]
    publish(
        "probe_speed",
        "memplan probe --cfg yolov9-s --batch 1:64 --gpu rtx-3090 --json",
        ("Measured", "Median", "Least", "Most", "Aim"),
        rows,
        [
            f"{REPEATS} runs, each a fresh process with no cache, {batches} batches answered.",
            "Resident memory is the proportional share (Pss) of all processes, each second: "
            "more often would slow it.",
            f"Load of the machine when it ended: {os.getloadavg()[0]:.1f} (other work slows it).",
        ],
    )


if __name__ == "__main__":
    main()
