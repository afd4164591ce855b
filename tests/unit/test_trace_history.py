"""A card's history survives its compact file, and replays from it."""

import lzma

import numpy as np
import pytest
from golden_snapshots import CASES, golden_content

from memplan.errors import BadInputError, BadTapeError
from memplan.trace.history import SUFFIX, Recording, check_replay, load_recording
from memplan.trace.snapshot import snapshot_of


@pytest.fixture(params=CASES)
def snapshot(request):
    """A run of the released allocator, as a card would have left it."""
    return snapshot_of(golden_content(request.param), 0)


def relative(snapshot):
    """Return a snapshot's entries with addresses counted from the lowest."""
    places = [entry.address for entry in snapshot.trace if entry.action != "oom"]
    low = min([*places, *(segment.address for segment in snapshot.segments)])
    return [
        entry if entry.action == "oom" else entry._replace(address=entry.address - low)
        for entry in snapshot.trace
    ]


def test_a_history_reads_back_entry_by_entry(snapshot, tmp_path):
    """Entries, segments, blocks and settings are those recorded, apart from the base address."""
    path = tmp_path / f"case{SUFFIX}"
    Recording(facts={"measured": {}}, snapshot=snapshot).save(path)
    found = load_recording(path).snapshot

    assert relative(snapshot) == relative(found)
    assert snapshot.settings == found.settings
    assert snapshot.torch_version == found.torch_version
    assert [
        (one.total_size, one.stream, one.segment_type, one.is_expandable, one.segment_pool_id)
        for one in snapshot.segments
    ] == [
        (one.total_size, one.stream, one.segment_type, one.is_expandable, one.segment_pool_id)
        for one in found.segments
    ]
    assert [
        [(block.size, block.state) for block in segment.blocks] for segment in snapshot.segments
    ] == [[(block.size, block.state) for block in segment.blocks] for segment in found.segments]


def test_the_file_is_small(snapshot, tmp_path):
    """An entry takes a few bytes: random programs about eight, real training fewer."""
    path = tmp_path / f"case{SUFFIX}"
    Recording(facts={}, snapshot=snapshot).save(path)

    assert path.stat().st_size < 12 * len(snapshot.trace) + 2000


def test_the_peaks_that_were_read_are_compared(tmp_path):
    """A figure that is not the replay's shows as bytes of difference."""
    snapshot = snapshot_of(golden_content("native"), 0)
    path = tmp_path / f"case{SUFFIX}"
    plain = check_replay(Recording(facts={}, snapshot=snapshot))
    facts = {"measured": {"reserved_peak_bytes": 1, "allocated_peak_bytes": None}}
    Recording(facts=facts, snapshot=snapshot).save(path)
    check = check_replay(load_recording(path))

    assert 0 == plain.difference_bytes
    assert {"reserved_peak_bytes"} == set(check.peaks)
    assert check.difference_bytes == check.peaks["reserved_peak_bytes"][1] - 1
    assert not check.is_exact


def test_facts_alone_make_a_recording(tmp_path):
    """A CPU or a failed case leaves no history, which a replay says."""
    path = tmp_path / f"case{SUFFIX}"
    Recording(facts={"failure": "killed"}).save(path)
    found = load_recording(path)

    assert ({"failure": "killed"}, None) == (found.facts, found.snapshot)
    with pytest.raises(BadTapeError, match="no allocator history"):
        check_replay(found)


@pytest.mark.parametrize("content", [b"", b"no archive", lzma.compress(b"nor this"), None])
def test_damaged_files_are_refused(tmp_path, content):
    """Cut, foreign and doubly foreign files are one-line errors."""
    path = tmp_path / f"case{SUFFIX}"
    if content is None:
        Recording(facts={"long": "x" * 5000}).save(path)
        content = path.read_bytes()[:-20]
    path.write_bytes(content)

    with pytest.raises(BadTapeError, match="cannot be read as a recording"):
        load_recording(path)


def test_missing_and_unknown_files_are_refused(tmp_path):
    """No file, and one of a schema to come."""
    with pytest.raises(BadTapeError, match="does not exist"):
        load_recording(tmp_path / "none")
    path = tmp_path / f"case{SUFFIX}"
    with lzma.open(path, "wb") as file:
        text = np.frombuffer(b'{"schema": "memplan.recording/9"}', dtype=np.uint8)
        np.savez(file, header=text)
    with pytest.raises(BadTapeError, match=r"memplan\.recording/9"):
        load_recording(path)
    with pytest.raises(BadInputError, match="cannot be written"):
        Recording(facts={}).save(tmp_path / "no-folder" / "case")
