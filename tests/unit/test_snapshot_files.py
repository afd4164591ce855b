"""Snapshot files that no release of PyTorch wrote yet, or that somebody damaged."""

import copy
import gzip
import pickle
import time

import pytest

from memplan.blocks import NO_FRAMES
from memplan.errors import BadTapeError
from memplan.trace.snapshot import read_snapshot
from memplan.trace.snapshot_blocks import snapshot_blocks
from memplan.trace.snapshot_replay import check_snapshot

BASE, MIB = 1 << 30, 1 << 20
FRAME = {"filename": "/home/me/train.py", "line": 3, "name": "step"}
SEGMENT = {
    "device": 0,
    "address": BASE,
    "total_size": 2 * MIB,
    "allocated_size": 512,
    "active_size": 512,
    "requested_size": 512,
    "stream": 0,
    "segment_type": "small",
    "segment_pool_id": (0, 0),
    "is_expandable": False,
    "blocks": [
        {"address": BASE, "size": 512, "requested_size": 512, "state": "active_allocated"},
        {"address": BASE + 512, "size": 2 * MIB - 512, "requested_size": 0, "state": "inactive"},
    ],
}


def row(action="alloc", **others):
    """Return one entry as PyTorch 2.11 writes it."""
    known = {"action": action, "addr": BASE, "size": 512, "stream": 0, "frames": [dict(FRAME)]}
    return known | {"time_us": 1, "compile_context": "N/A", "user_metadata": ""} | others


GROWTH = row("segment_alloc", size=2 * MIB)


def content(*rows, **others):
    """Return a file of one device, of which entries are given."""
    return {
        "segments": [copy.deepcopy(SEGMENT)],
        "device_traces": [list(rows)],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1},
    } | others


@pytest.fixture
def saved(tmp_path):
    """Writes content, or bytes, as a file and returns its path."""

    def save(what, protocol=4):
        path = tmp_path / "snapshot.pickle"
        path.write_bytes(what if isinstance(what, bytes) else pickle.dumps(what, protocol))
        return path

    return save


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 1_200])
def test_entries_of_actions_yet_unknown_are_passed_over(saved, protocol, at, count):
    """They need not have the fields that others have, wherever they stand."""
    rows = [GROWTH, row()]
    rows[at:at] = [{"action": "compacted", "time_us": number} for number in range(count)]

    found = read_snapshot(saved(content(*rows), protocol))

    assert [entry.action for entry in found.trace] == ["segment_alloc", "alloc"]
    assert check_snapshot(found).is_layout_equal


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("others", [[], [GROWTH, row()], [GROWTH]])
def test_the_release_is_told_by_the_fields_of_any_entry(saved, device, others):
    """A history of one entry, or none, does not make a file an older one."""
    traces = [others, [GROWTH]] if device else [[GROWTH], others]
    segments = [SEGMENT | {"device": device, "blocks": SEGMENT["blocks"]}]
    written = content(device_traces=traces, segments=segments)

    assert read_snapshot(saved(written), device).torch_version == (2, 11)


def test_frames_may_tell_more_than_texts_and_numbers(saved):
    """A list in a frame is no reason to refuse the file."""
    frames = [FRAME | {"module": ["a", "b"]}, dict(FRAME)]
    found = read_snapshot(saved(content(GROWTH, row(frames=frames), row("free_completed"))))

    assert found.trace.asked(1).frames == tuple(frames)


def test_what_is_no_text_takes_no_place_of_one(saved):
    """Two to the power of forty items would be written out of a list of two, forty deep."""
    bomb = []
    for _ in range(40):
        bomb = [bomb, bomb]
    frames = [{"filename": bomb, "line": bomb, "name": bomb}, FRAME | {"line": bomb, "name": bomb}]
    written = content(GROWTH, row(frames=frames, category=bomb))
    written["segments"][0]["blocks"][0]["frames"] = frames

    found = read_snapshot(saved(written))

    assert found.held_by == {"/home/me/train.py:0": 512}
    assert snapshot_blocks(found, "").labels[0].line == "/home/me/train.py:0"


def test_places_are_printable(saved):
    """A name with half a character, an end of line or a colour is shown without."""
    written = content(GROWTH, row())
    written["segments"][0]["blocks"][0]["frames"] = [FRAME | {"name": "a\nb\x1b[31m\udc80"}]

    assert read_snapshot(saved(written)).held_by == {"/home/me/train.py:3 a?b?[31m?": 512}


@pytest.mark.parametrize("value", [-1, 1 << 63, 1 << 900, float("inf"), 1.5, "1", None, [], (1,)])
@pytest.mark.parametrize("key", ["addr", "size", "address", "total_size", "active_size"])
def test_numbers_that_none_can_be_are_refused(saved, key, value):
    """No more than 63 bits, whole, and not below nothing."""
    entry = row()
    written = content(GROWTH, entry)
    (entry if key in entry else written["segments"][0])[key] = value

    with pytest.raises(BadTapeError, match=r"of 0 to 63 bits|more than 64 bits|integer|fill"):
        read_snapshot(saved(written))


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("key", ["addr", "size", "stream"])
def test_an_entry_that_lacks_a_field_is_refused(saved, protocol, key):
    """The message says which."""
    entry = row()
    del entry[key]
    with pytest.raises(BadTapeError, match=f"lacks '{key}'"):
        read_snapshot(saved(content(GROWTH, row(), entry), protocol))


@pytest.mark.parametrize(
    "change",
    [{"segment_pool_id": ()}, {"segment_pool_id": 3}, {"segment_type": [[]]}, {"stream": 0.5}],
)
def test_a_segment_of_another_form_is_refused(saved, change):
    """In one line, whatever stands in place of what was expected."""
    with pytest.raises(BadTapeError, match="is not laid out as"):
        read_snapshot(saved(content(GROWTH, segments=[SEGMENT | change])))


def test_an_entry_that_stands_twice_is_read(saved):
    """As where a tool puts lists of entries together anew."""
    twice = row("snapshot")
    written = content(twice, GROWTH, twice, row(), last=twice)

    actions = [entry.action for entry in read_snapshot(saved(written)).trace]
    assert actions == ["snapshot", "segment_alloc", "snapshot", "alloc"]


def test_a_long_stack_that_many_share_is_looked_through_once(saved):
    """A file of two megabytes would take a minute for its entries, and another for its blocks."""
    frames = [{"filename": "kernel.cpp", "line": at, "name": ""} for at in range(50_000)]
    written = content(GROWTH, *(row(frames=frames) for _ in range(20_000)))
    block = {"size": 512, "state": "active_allocated", "frames": frames}
    written["segments"][0] |= {"blocks": [block] * 4096}
    begin = time.process_time()

    found = read_snapshot(saved(written))

    assert len(found.trace.asked(2).frames) == 50_000
    assert found.held_by == {NO_FRAMES: 2 * MIB}
    assert time.process_time() - begin < 15


def test_segments_upon_one_another_are_refused(saved):
    """Memory is held once."""
    twice = [SEGMENT, SEGMENT | {"address": BASE + MIB}]
    with pytest.raises(BadTapeError, match="overlap"):
        read_snapshot(saved(content(GROWTH, segments=twice)))


def test_a_late_history_that_contradicts_the_segments_is_not_replayed(saved):
    """What was freed in it lay where a block is that was there all the time."""
    written = content(row("free_completed", addr=BASE + 256))
    with pytest.raises(BadTapeError, match="contradicts the segments"):
        check_snapshot(read_snapshot(saved(written)))


def test_damage_to_a_packed_file_is_found(saved):
    """Its checksum stands behind the content, and is looked at where that fills whole pieces."""
    rest = MIB - len(pickle.dumps(content(GROWTH, row(), note="x" * 1_000), 3)) + 1_000
    data = pickle.dumps(content(GROWTH, row(), note="x" * rest), 3)
    assert len(data) == MIB
    packed = bytearray(gzip.compress(data, 0))
    packed[packed.index(b"train.py")] ^= 1

    with pytest.raises(BadTapeError, match="CRC"):
        read_snapshot(saved(bytes(packed)))
