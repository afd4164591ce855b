"""What lived at the peak, from histories that can be counted by hand."""

from memplan.recording.script_events import WORKSPACE, History, Mark, breakdown

_KIB = 1024


def alloc(address, size, label=""):
    return {"action": "alloc", "addr": address, "size": size, "user_metadata": label}


def free(address, size, label=""):
    return {"action": "free_requested", "addr": address, "size": size, "user_metadata": label}


def snapshot(events, standing=()):
    blocks = [
        {"address": address, "size": size, "state": "active_allocated"}
        for address, size in standing
    ]
    segments = [{"address": 0, "blocks": blocks}] if blocks else []
    return {"device_traces": [events], "segments": segments}


FORWARD, BACKWARD = "forward\x1fconv", "backward\x1fconv"


def test_sizes_are_rounded_as_the_allocator_rounds_them():
    """A block takes a multiple of 512 bytes."""
    found = breakdown(snapshot([alloc(0, 1, FORWARD)], [(0, 512)]), 0, [], [])

    assert 512 == found["peak_bytes"]


def test_what_forward_keeps_is_activation_and_what_it_frees_is_temporary():
    """The phase of the free decides."""
    events = [
        alloc(0, 4 * _KIB, FORWARD),
        alloc(8192, 2 * _KIB, FORWARD),
        free(8192, 2 * _KIB, FORWARD),
        free(0, 4 * _KIB, BACKWARD),
    ]
    found = breakdown(snapshot(events), 0, [], [])

    assert {"activation": 4 * _KIB, "temporary": 2 * _KIB} == found["categories"]
    assert 6 * _KIB == found["peak_bytes"]
    assert ("forward", "conv") == (found["peak_phase"], found["peak_module"])


def test_a_mark_names_what_lay_at_an_address_at_that_moment_only():
    """An address taken again after the mark is not what it was."""
    events = [
        alloc(0, _KIB, BACKWARD),
        free(0, _KIB, BACKWARD),
        alloc(0, _KIB, FORWARD),
        alloc(4096, _KIB, FORWARD),
        free(0, _KIB, BACKWARD),
        free(4096, _KIB, BACKWARD),
    ]
    mark = Mark(num_allocations=1, categories={0: "gradient"})
    history = History(events, {}, 3)
    history.categorize([mark])
    categories = [block.category for block, is_alloc in history.steps if is_alloc]

    assert ["gradient", "activation", "activation"] == categories


def test_a_mark_at_a_live_block_gives_its_category():
    """What stands at the address when the mark is made gets the name."""
    events = [alloc(0, _KIB, "between\x1f"), alloc(4096, _KIB, FORWARD), free(4096, _KIB, BACKWARD)]
    mark = Mark(num_allocations=1, categories={0: "parameter"})
    found = breakdown(snapshot(events, [(0, _KIB)]), 0, [mark], [])

    assert {"parameter": _KIB, "activation": _KIB} == found["categories"]


def test_a_history_that_begins_late_counts_what_was_there_before():
    """Blocks known from their free, or from the end, live from the start."""
    events = [alloc(0, _KIB, FORWARD), free(4096, 3 * _KIB, FORWARD), free(0, _KIB, BACKWARD)]
    found = breakdown(snapshot(events, [(65536, 2 * _KIB)]), 0, [], [])

    assert 6 * _KIB == found["peak_bytes"]


def test_what_lives_between_steps_into_one_is_input():
    """Images made on the card before forward are the step's input."""
    events = [alloc(0, _KIB, "between\x1f"), alloc(2048, 512, FORWARD), free(0, _KIB, BACKWARD)]
    found = breakdown(snapshot(events, [(2048, 512)]), 0, [], [])

    assert _KIB == found["categories"]["input"]


def test_the_curve_ends_at_what_is_left_and_reaches_the_peak():
    """Each point is the most of its stretch."""
    events = [alloc(i * 1024, 1024, FORWARD) for i in range(5)]
    events += [free(i * 1024, 1024, BACKWARD) for i in range(4)]
    steps = [{"num_allocations": 5}]
    timeline = breakdown(snapshot(events, [(4096, 1024)]), 0, [], steps)["timeline"]
    totals = [sum(point) for point in zip(*timeline["categories"].values(), strict=True)]

    assert 5 * 1024 == max(totals)
    assert 1024 == totals[-1] - 1024
    assert 1 == len(timeline["step_ends"])


def test_other_entries_of_a_history_are_passed_over():
    """Segments, and out-of-memory entries that have no address, hold no block."""
    events = [{"action": "segment_alloc", "addr": 0, "size": 2 << 20}, alloc(0, _KIB, FORWARD)]
    events.append({"action": "oom", "size": 1 << 30, "device_free": 0})

    assert _KIB == breakdown(snapshot(events, [(0, _KIB)]), 0, [], [])["peak_bytes"]


def test_a_librarys_workspace_is_temporary_and_stands_to_the_end():
    """It is given back under its own label only after the script, whichever module made it."""
    events = [
        alloc(0, 8 * _KIB, FORWARD),
        alloc(65536, _KIB, FORWARD),
        free(0, 8 * _KIB, f"{WORKSPACE}\x1f"),
        free(1 << 20, 4 * _KIB, f"{WORKSPACE}\x1f"),
    ]
    found = breakdown(snapshot(events, [(65536, _KIB)]), 0, [], [])

    assert {"temporary": 12 * _KIB, "activation": _KIB} == found["categories"]
    assert 12 * _KIB == found["timeline"]["categories"]["temporary"][-1]
