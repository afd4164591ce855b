"""PyTorch memory snapshots are read without running them, and replayed.

The histories are the golden runs of the released allocator, laid out as a snapshot file.
"""

import gzip
import pickle
import random
import tracemalloc

import pytest
from golden_snapshots import CASES, golden_content

from memplan.device.allocator import AllocatorSettings, CachingAllocator
from memplan.errors import BadTapeError
from memplan.trace.snapshot import read_snapshot
from memplan.trace.snapshot_pools import pool_totals
from memplan.trace.snapshot_replay import check_snapshot, replay_snapshot

GIB = 1 << 30


@pytest.fixture
def saved(tmp_path):
    """Writes content as a snapshot file and returns its path."""

    def save(content):
        path = tmp_path / "snapshot.pickle"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        return path

    return save


@pytest.mark.parametrize("case", CASES)
def test_history_from_the_start_replays_exactly(saved, case):
    """Every call leaves the recorded entries, and every block ends where it was recorded."""
    snapshot = read_snapshot(saved(golden_content(case)))

    check = check_snapshot(snapshot)

    assert snapshot.is_cold_start
    assert (0, "") == (check.num_differing_steps, check.first_difference)
    assert check.is_layout_equal
    assert check.recorded_reserved_peak_bytes == check.peaks.reserved_peak_bytes


@pytest.mark.parametrize("start", [1, 79, 100, 333, 700, 1200, 1640])
@pytest.mark.parametrize("case", ["native", "max_split_roundup"])
def test_history_from_mid_run_replays_from_the_rebuilt_state(saved, case, start):
    """The state before the recording is rebuilt from the final one.

    Where unknown slack of a finished block makes that impossible, the check says so.
    """
    snapshot = read_snapshot(saved(golden_content(case, start)))

    check = check_snapshot(snapshot)

    assert not snapshot.is_cold_start
    if (case, start) == ("max_split_roundup", 1200):
        assert check.num_differing_steps > 0
        assert check.first_difference.startswith("entry 40: recorded alloc ")
    else:
        assert (0, "") == (check.num_differing_steps, check.first_difference)
        assert check.is_layout_equal


def test_expandable_history_from_mid_run_is_refused(saved):
    """What was mapped before cannot be told from the end."""
    snapshot = read_snapshot(saved(golden_content("expandable", 500)))

    with pytest.raises(BadTapeError, match="mid-run"):
        check_snapshot(snapshot)


def test_file_without_history_is_refused(saved):
    """A snapshot of the state alone cannot be replayed."""
    snapshot = read_snapshot(saved(golden_content("native") | {"device_traces": [[]]}))

    with pytest.raises(BadTapeError, match="_record_memory_history"):
        check_snapshot(snapshot)
    with pytest.raises(BadTapeError, match="_record_memory_history"):
        replay_snapshot(snapshot, 1 * GIB)


def test_what_if_with_expandable_segments_reserves_less(saved):
    """The same calls under expandable segments hold less than they did."""
    snapshot = read_snapshot(saved(golden_content("native")))

    native = replay_snapshot(snapshot, 80 * GIB)
    expandable = replay_snapshot(
        snapshot, 80 * GIB, AllocatorSettings.parse("expandable_segments:True")
    )

    assert native.requested_peak_bytes == expandable.requested_peak_bytes
    assert expandable.reserved_peak_bytes < native.reserved_peak_bytes
    assert (0, "") == (native.num_ooms, native.oom_message)


def test_what_if_on_a_small_device_stops_with_pytorchs_words(saved):
    """A device of 1 GiB runs out, and the sentence says at which request."""
    snapshot = read_snapshot(saved(golden_content("native", 1200)))

    peaks = replay_snapshot(snapshot, 1 * GIB)

    assert peaks.num_ooms == 1
    assert "GPU 0 has a total capacity of 1024.00 MiB" in peaks.oom_message


def content_of(allocator, **extra):
    """A simulated allocator's state and history as a snapshot file of PyTorch 2.2."""
    segments = [
        {
            **{name: getattr(segment, name) for name in segment.__slots__},
            "device": 0,
            "blocks": [
                {name: getattr(block, name) for name in block.__slots__} for block in segment.blocks
            ],
        }
        for segment in allocator.snapshot()
    ]
    rows = [
        {
            "action": entry.action,
            "device_free" if entry.action == "oom" else "addr": entry.address,
            "size": entry.size,
            "stream": entry.stream,
            "time_us": 0,
        }
        for entry in allocator.trace
    ]
    return {"segments": segments, "device_traces": [rows], **extra}


def test_frees_that_waited_for_a_stream_wait_in_the_replay(saved):
    """Blocks finish where the recording shows it, also when it began after they were freed."""
    allocator = CachingAllocator(1 * GIB, torch_version=(2, 2), trace=True)
    blocks = [allocator.malloc(30_000_000) for _ in range(3)]
    for block in blocks[:2]:
        allocator.record_stream(block, 7)
        allocator.free(block)
    allocator.malloc(20_000_000)
    allocator.complete_events(7)
    allocator.malloc(29_000_000)
    content = content_of(allocator)

    for start in (0, 8, 10):
        content["device_traces"][0] = content_of(allocator)["device_traces"][0][start:]
        check = check_snapshot(read_snapshot(saved(content)))
        assert (0, "") == (check.num_differing_steps, check.first_difference)
    assert replay_snapshot(read_snapshot(saved(content)), 1 * GIB).num_ooms == 0


def test_release_is_told_by_the_fields(saved):
    """Each release added fields, and the file is taken for the newest that fits."""
    content = golden_content("native")
    rows, segments = content["device_traces"][0], content["segments"]

    def version_without(table, *names):
        for row in table:
            for name in names:
                row.pop(name, None)
        return read_snapshot(saved(content)).torch_version

    assert (2, 11) == version_without(rows)
    assert (2, 9) == version_without(rows, "user_metadata")
    assert (2, 8) == version_without(
        [content["allocator_settings"]], "graph_capture_record_stream_reuse"
    )
    assert (2, 7) == version_without(rows, "compile_context")
    assert (2, 4) == version_without([content], "external_annotations")
    assert (2, 2) == version_without([content], "allocator_settings")
    assert (2, 1) == version_without(rows, "time_us")
    assert (2, 0) == version_without(segments, "is_expandable")


@pytest.mark.parametrize(
    ("extra", "version"),
    [
        ({"host_segments": []}, (2, 14)),
        ({"allocator_settings": {"max_round_threshold": 1}}, (2, 13)),
    ],
)
def test_newest_releases_are_told_by_what_they_added(saved, extra, version):
    """Host memory came with 2.14, and the rounding threshold with 2.13."""
    assert version == read_snapshot(saved(golden_content("native") | extra)).torch_version


def test_recorded_options_are_used(saved):
    """Options come from the file; before 2.3 only expandable segments show."""
    recorded = read_snapshot(saved(golden_content("max_split_roundup"))).settings
    assert 64 << 20 == recorded.max_split_bytes
    assert (8,) * 16 == recorded.roundup_power2_divisions

    content = golden_content("expandable")
    del content["allocator_settings"], content["external_annotations"]
    assert read_snapshot(saved(content)).settings.expandable_segments


class Malicious:
    """Runs a function when it is unpickled by the ordinary unpickler."""

    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_file_that_names_a_function_is_refused_and_not_run(saved, capsys, protocol):
    """Nothing in a snapshot is ever called."""
    content = golden_content("native") | {"extra": Malicious()}

    with pytest.raises(BadTapeError, match=r"names .*print.* was not run"):
        read_snapshot(saved(pickle.dumps(content, protocol)))

    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps(golden_content("native"))[:-1000],
        b"cos\nsystem\n(S'true'\ntR.",
        b"Pelsewhere\n.",
        [1, 2, 3],
        {"segments": []},
        {"segments": [], "device_traces": []},
        {"segments": [{}], "device_traces": [[{"action": "alloc"}]]},
        {"segments": 7, "device_traces": 8},
    ],
)
def test_damaged_file_is_refused_with_one_line(saved, content):
    """Whatever is in the file, the error names it and the way out in one line."""
    path = saved(content)

    with pytest.raises(BadTapeError) as error:
        read_snapshot(path)

    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path):
    """A path without a file is named."""
    with pytest.raises(BadTapeError, match=r"none\.pickle cannot be read"):
        read_snapshot(tmp_path / "none.pickle")


def test_block_that_does_not_fill_its_segment_is_refused(saved):
    """Blocks must tile their segment."""
    content = golden_content("native")
    content["segments"][0]["blocks"].pop()

    with pytest.raises(BadTapeError, match="do not fill"):
        read_snapshot(saved(content))


def test_device_that_was_not_recorded_is_refused(saved):
    """Another device's part must be in the file."""
    with pytest.raises(BadTapeError, match="device 3"):
        read_snapshot(saved(golden_content("native")), device=3)


def _framed(*frames):
    """Content with one live block of 512 bytes asked for by these frames, innermost first."""
    rows = [{"filename": name, "line": line, "name": "f"} for name, line in frames]
    block = {"size": 512, "requested_size": 512, "state": "active_allocated", "frames": rows}
    free = {"size": 1536, "state": "inactive"}
    segment = {
        "device": 0, "address": 4096, "total_size": 2048, "allocated_size": 512,
        "active_size": 512, "stream": 0, "segment_type": "small", "blocks": [block, free],
    }  # fmt: skip
    return {"segments": [segment], "device_traces": [[]]}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (
            [("??", 0), ("/x/site-packages/torch/nn/modules/linear.py", 9), ("/home/me/net.py", 7)],
            "/home/me/net.py:7 f",
        ),
        ([("/x/site-packages/torch/nn/linear.py", 9)], "/x/site-packages/torch/nn/linear.py:9 f"),
        ([], "no frames recorded"),
    ],
)
def test_memory_is_held_by_the_users_innermost_line(saved, frames, expected):
    """Frames of packages and of C++ are passed over where a frame of the user's own is there."""
    assert {expected: 512} == dict(read_snapshot(saved(_framed(*frames))).held_by)


def test_frames_of_2_0_stand_in_a_blocks_history(saved):
    """PyTorch 2.0 keeps frames in a list of the block's past."""
    content = _framed(("/home/me/net.py", 7))
    block = content["segments"][0]["blocks"][0]
    block["history"] = [{"addr": 4096, "frames": block.pop("frames")}]

    assert {"/home/me/net.py:7 f": 512} == dict(read_snapshot(saved(content)).held_by)


@pytest.mark.parametrize("form", ["list", "gzip", "protocol 5"])
def test_other_forms_of_a_file_read_alike(saved, form):
    """Segments alone as a list, a packed file, and the newest pickle protocol."""
    content = _framed(("/home/me/net.py", 7))
    content = content["segments"] if form == "list" else content
    data = pickle.dumps(content, protocol=5)
    snapshot = read_snapshot(saved(gzip.compress(data) if form == "gzip" else data))

    assert (512, 2048, ()) == (snapshot.allocated_bytes, snapshot.reserved_bytes, snapshot.trace)


def test_a_damaged_packed_file_is_refused(saved):
    """Half a gzip file is no snapshot."""
    data = gzip.compress(pickle.dumps(_framed()))
    with pytest.raises(BadTapeError, match=r"snapshot\.pickle"):
        read_snapshot(saved(data[: len(data) // 2]))


def test_pools_add_up(saved):
    """In use, free, and the largest request that fits what is free."""
    (pool,) = pool_totals(read_snapshot(saved(_framed())).segments)

    assert ("small", 1, 1) == (pool.pool, pool.num_segments, pool.num_blocks)
    assert (2048, 512, 1536, 1536) == (
        pool.reserved_bytes, pool.allocated_bytes, pool.inactive_bytes, pool.largest_inactive_bytes,
    )  # fmt: skip


def _large_content(num_entries, depth=30):
    """A history with a stack of its own for each entry, of frames that entries share."""
    rng = random.Random(14)
    frames = [{"filename": "/home/me/net.py", "line": at, "name": f"f{at}"} for at in range(400)]
    stacks = [rng.choices(frames, k=depth) for _ in range(50)]
    content = golden_content("native")
    row = content["device_traces"][0][0]
    content["device_traces"] = [
        [row | {"addr": 512 * at, "frames": list(rng.choice(stacks))} for at in range(num_entries)]
    ]
    return content


def test_a_large_file_takes_less_memory_than_it_has_bytes(saved):
    """Entries are columns and equal stacks one object, however many there are."""
    path = saved(_large_content(100_000))
    tracemalloc.start()
    try:
        read_snapshot(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 0.6 * path.stat().st_size


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("count", [1, 1_001])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_stacks_are_those_of_the_file(saved, protocol, count, depth):
    """Each entry tells the frames that it was written with; more than a pickler's batch, too."""
    content = _large_content(count, depth)
    rows = content["device_traces"][0]
    rows[count // 2]["frames"] = rows[0]["frames"] * 700
    rows[-1]["frames"] = rows[0]["frames"]  # one list for an allocation and what frees it
    trace = read_snapshot(saved(pickle.dumps(content, protocol))).trace

    assert [row["frames"] for row in rows] == [list(trace.asked(at).frames) for at in range(count)]
    assert [row["addr"] for row in rows] == [entry.address for entry in trace]
    assert 51 >= len({id(trace.asked(at).frames) for at in range(count)})
