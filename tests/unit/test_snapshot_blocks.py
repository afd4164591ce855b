"""Recorded histories block by block: whole, begun late, of one entry, without stacks."""

import pytest
from golden_snapshots import golden_content

from memplan.present.replay import replay_sections
from memplan.trace.snapshot import snapshot_of
from memplan.trace.snapshot_blocks import OTHER_LINES, snapshot_blocks


def blocks_of(content):
    """Return a content's blocks and its snapshot."""
    snapshot = snapshot_of(content, 0)
    return snapshot_blocks(snapshot, "a history"), snapshot


def in_use(snapshot):
    """Return the bytes of blocks that are allocated or wait for a stream at the end."""
    return sum(segment.active_size for segment in snapshot.segments)


@pytest.mark.parametrize("start", [0, 1, 100, 700, 1640])
@pytest.mark.parametrize("case", ["native", "expandable", "max_split_roundup"])
def test_what_is_left_is_what_the_segments_hold(case, start):
    """However late a history begins, its last event leaves the bytes in use of the snapshot."""
    lives, snapshot = blocks_of(golden_content(case, start))

    assert in_use(snapshot) == lives.allocated_bytes()[-1]
    assert snapshot.reserved_bytes == lives.reserved_bytes[-1]
    assert (lives.made < lives.freed).all()
    assert lives.num_events == len(snapshot.trace)


def test_a_history_of_one_entry_shows_what_was_there():
    """All blocks but perhaps one were made before it."""
    content = golden_content("native")
    content["device_traces"] = [content["device_traces"][0][-1:]]
    lives, snapshot = blocks_of(content)

    assert 1 == lives.num_events
    assert in_use(snapshot) <= lives.allocated_bytes()[0]


def test_entries_of_2_0_need_no_stacks_nor_times():
    """Fields that older releases lack are done without."""
    content = golden_content("native")
    needed = ("action", "addr", "device_free", "size", "stream")
    rows = [{k: row[k] for k in needed if k in row} for row in content["device_traces"][0]]
    lives, _ = blocks_of({"segments": content["segments"], "device_traces": [rows]})

    assert ("unattributed",) == lives.bands


def test_lines_that_hold_most_are_bands():
    """Without categories memory is told apart by the lines that asked for it."""
    content = golden_content("native")
    allocs = [row for row in content["device_traces"][0] if row["action"] == "alloc"]
    stacks = [[{"filename": "/a/train.py", "line": n, "name": "step"}] for n in range(9)]
    for number, row in enumerate(allocs):
        row["frames"] = stacks[number % 9]
    lives, _ = blocks_of(content)

    lines = [band for band in lives.bands if band != OTHER_LINES]
    assert len(lines) == 6
    assert all(band.startswith("/a/train.py:") for band in lines)
    assert OTHER_LINES in lives.bands


def test_a_snapshot_that_memplan_wrote_says_so():
    """Whatever else it claims counts as measured."""
    content = golden_content("native")

    said = [
        snapshot_of(content | {"memplan": value}, 0).origin
        for value in ({"origin": "phantom"}, {"origin": "<b>"}, {"origin": ["x"]}, "x", None)
    ]
    assert ["phantom", "measured", "measured", "measured", "measured"] == said


def test_sections_say_where_nothing_was_replayed():
    """A snapshot without history has the tables of what was held."""
    answer = {
        "file": "a.pickle",
        "simulated": {},
        "recorded": {"allocated_bytes": 0, "reserved_bytes": 512},
        "note": "No history.",
        "origin": "measured",
        "recorded_origin": "measured",
        "pools": [],
        "held_by": {},
    }

    assert ["a.pickle: 0 B allocated, 512 B reserved (measured).\nNo history."] == [
        section.text for section in replay_sections(answer)
    ]
