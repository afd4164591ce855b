"""Golden runs of the released allocator, laid out as a memory snapshot."""

import json
from pathlib import Path

from memplan.device.allocator import AllocatorSettings

FOLDER = Path(__file__).parent / "golden/allocator"
CASES = ["native", "expandable", "max_split_roundup"]


def block_row(address, text):
    size, requested, is_allocated, is_active = map(int, text.split(","))
    state = "active_allocated" if is_allocated else "active_pending_free"
    return {
        "address": address,
        "size": size,
        "requested_size": requested,
        "state": state if is_active else "inactive",
        "frames": [],
    }


def segment_row(line):
    head, _, blocks = line.partition(" : ")
    _, address, total, allocated, active, stream, is_large, is_expandable, *pool = head.split()
    rows, at = [], int(address)
    for text in blocks.split():
        rows.append(block_row(at, text))
        at += rows[-1]["size"]
    return {
        "device": 0,
        "address": int(address),
        "total_size": int(total),
        "allocated_size": int(allocated),
        "active_size": int(active),
        "requested_size": 0,
        "stream": int(stream),
        "segment_type": "large" if is_large == "1" else "small",
        "segment_pool_id": tuple(map(int, pool)),
        "is_expandable": is_expandable == "1",
        "frames": [],
        "blocks": rows,
    }


def trace_row(line):
    _, action, address, size, stream = line.split()
    place = "device_free" if action == "oom" else "addr"
    row = {"action": action, place: int(address), "size": int(size), "stream": int(stream)}
    return row | {"frames": [], "time_us": 0, "compile_context": "N/A", "user_metadata": ""}


def golden_content(case, start=0):
    """A golden run as PyTorch 2.11 would dump it, without the first `start` entries."""
    run = json.loads((FOLDER / f"{case}_2.11.0.json").read_text())
    lines = run["output"]
    last = max(at for at, line in enumerate(lines) if line.startswith("SNAP "))
    settings = AllocatorSettings.parse(run["allocator_settings"])
    table = settings.roundup_power2_divisions
    return {
        "segments": [segment_row(line) for line in lines[last + 1 :] if line.startswith("G ")],
        "device_traces": [[trace_row(line) for line in lines if line.startswith("T ")][start:]],
        "external_annotations": [],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": run["allocator_settings"],
            "max_split_size": settings.max_split_bytes or -1,
            "garbage_collection_threshold": 0.0,
            "expandable_segments": settings.expandable_segments,
            "roundup_power2_divisions": {str(1 << at): each for at, each in enumerate(table)},
            "graph_capture_record_stream_reuse": False,
        },
    }
