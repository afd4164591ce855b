"""The simulated allocator equals the released one on three recorded runs.

Source: the runs in `tests/golden/allocator`, see the README there.
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from memplan.device.allocator import AllocatorSettings, CachingAllocator
from memplan.device.allocator_statistics import GROUPED
from memplan.errors import DeviceOutOfMemoryError

FOLDER = Path(__file__).parent / "allocator"
CASES = ["native_2.11.0", "expandable_2.11.0", "max_split_roundup_2.11.0"]


class Replay:
    """Runs a program on the simulated allocator and writes what the recording program wrote.

    `run` has the fields of a recorded run; `ops` and `output` are described in its README. It may
    list the addresses of new segments and reservations; a recorded run has them in its trace. Ops
    on a block that a failed allocation left out are skipped.
    """

    def __init__(self, run):
        version = tuple(int(part) for part in run["torch"].split(".")[:2])
        self.entries = [line.split()[1:] for line in run["output"] if line.startswith("T ")]
        self.allocator = CachingAllocator(
            run["device_total"] - run["other_process_bytes"],
            AllocatorSettings.parse(run["allocator_settings"], version),
            total_bytes=run["device_total"],
            memory_fraction=run["memory_fraction"],
            torch_version=version,
            addresses=run.get("addresses") or self.addresses(),
            trace=True,
        )
        self.blocks = {}
        self.lines = []
        for op, *arguments in run["ops"]:
            self.OPS[op](self, *arguments)

    def addresses(self) -> Iterator[int]:
        """Yield recorded addresses: the entry at our own trace's length is the new segment's."""
        while True:
            action, address, _size, _stream = self.entries[len(self.allocator.trace)]
            assert action in {"segment_alloc", "segment_map"}
            yield int(address)

    def _allocate(self, name, size, stream):
        try:
            block = self.allocator.malloc(int(size), int(stream))
        except DeviceOutOfMemoryError as error:
            self.lines.append(f"OOM {name} {error}")
        else:
            self.blocks[name] = block
            self.lines.append(f"A {name} {block.address}")

    def _free(self, name):
        self.allocator.free(self.blocks.pop(name, None))

    def _record_stream(self, name, stream):
        if name in self.blocks:
            self.allocator.record_stream(self.blocks[name], int(stream))

    def _snapshot(self):
        segments = self.allocator.snapshot()
        self.lines.append(f"SNAP {len(segments)}")
        self.lines.extend(segment_line(segment) for segment in segments)

    def _trace(self):
        self.lines.append(f"TRACE {len(self.allocator.trace)}")
        self.lines.extend(
            f"T {entry.action} {entry.address} {entry.size} {entry.stream}"
            for entry in self.allocator.trace
        )

    OPS = {  # noqa: RUF012 - a table of methods, never changed
        "a": _allocate,
        "f": _free,
        "r": _record_stream,
        "c": lambda self, stream: self.allocator.complete_events(int(stream)),
        "e": lambda self: self.allocator.empty_cache(),
        "pb": lambda self, a, b: self.allocator.begin_allocate_to_pool((int(a), int(b))),
        "pe": lambda self, a, b: self.allocator.end_allocate_to_pool((int(a), int(b))),
        "pr": lambda self, a, b: self.allocator.release_pool((int(a), int(b))),
        "s": lambda self: self.lines.append(statistics_line(self.allocator)),
        "snap": _snapshot,
        "trace": _trace,
    }


def statistics_line(allocator):
    stats = allocator.stats()

    def figures(name):
        return "/".join(
            str(stats[f"{name}.{part}"]) for part in ("current", "peak", "allocated", "freed")
        )

    groups = [
        f"{name} " + " ".join(figures(f"{name}.{p}") for p in ("all", "small_pool", "large_pool"))
        for name in GROUPED
    ]
    plain = [
        f"retries {stats['num_alloc_retries']}",
        f"ooms {stats['num_ooms']}",
        f"sync {stats['num_sync_all_streams']}",
        f"dalloc {stats['num_device_alloc']}",
        f"dfree {stats['num_device_free']}",
        f"osa {stats['oversize_allocations.current']}",
        f"oss {stats['oversize_segments.current']}",
        f"mss {stats['max_split_size']}",
        f"used {allocator.reserved_bytes}",
    ]
    return " ".join(["S", *groups, *plain])


def segment_line(segment):
    blocks = " ".join(
        f"{block.size},{'-' if block.state == 'inactive' else block.requested_size},"
        f"{int(block.state == 'active_allocated')},{int(block.state != 'inactive')}"
        for block in segment.blocks
    )
    return (
        f"G {segment.address} {segment.total_size} {segment.allocated_size} "
        f"{segment.active_size} {segment.stream} {int(segment.segment_type == 'large')} "
        f"{int(segment.is_expandable)} {segment.segment_pool_id[0]} {segment.segment_pool_id[1]} "
        f": {blocks}"
    )


def comparable(lines, unordered=("T free_completed",)):
    """Lines without what the README says is undetermined.

    That is the stale requested size of inactive blocks, and the order inside one batch of
    completed frees (a hash table of streams), or of whatever entries `unordered` names.
    """
    parts = [_without_stale_sizes(line) if line.startswith("G ") else line for line in lines]
    ordered = []
    for kind, batch in groupby(
        parts, key=lambda line: next(filter(line.startswith, unordered), "")
    ):
        lines_of_batch = list(batch)
        ordered += sorted(lines_of_batch) if kind else lines_of_batch
    return ordered


def _without_stale_sizes(line):
    head, _, blocks = line.partition(" : ")
    fields = [block.split(",") for block in blocks.split()]
    kept = [
        [size, "-" if active == "0" else asked, *rest, active]
        for size, asked, *rest, active in fields
    ]
    return f"{head} : {' '.join(','.join(block) for block in kept)}"


@pytest.mark.parametrize("case", CASES)
def test_recorded_run_is_reproduced(case):
    """Every address, counter, snapshot, trace entry and error text of a recorded run is equal."""
    run = json.loads((FOLDER / f"{case}.json").read_text())

    actual = comparable(Replay(run).lines)

    expected = comparable(run["output"])
    for expected_line, actual_line in zip(expected, actual, strict=True):
        assert expected_line == actual_line
