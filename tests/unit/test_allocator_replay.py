"""Replay of recorded programs: peaks, where they are, and where memory runs out."""

import time

import numpy as np
import pytest

from memplan.device.allocator import AllocatorSettings, CachingAllocator
from memplan.device.allocator_replay import replay_by_calls, replay_stream
from memplan.errors import BadTapeError

MIB = 1 << 20
GIB = 1 << 30


def program(*events):
    """Arrays of (kind, block, size) events."""
    kinds, blocks, sizes = zip(*events, strict=True) if events else ((), (), ())
    return np.array(kinds, np.int8), np.array(blocks, int), np.array(sizes, int)


def test_peaks_are_where_they_are_first_reached():
    """The first event that reaches a peak is reported, and the timeline follows each event."""
    events = program((0, 1, 30 * MIB), (3, 0, 12 * MIB), (1, 1, 0), (2, 0, 0), (3, 0, 42 * MIB))

    result = replay_stream(*events, 1 * GIB, timeline=True)

    assert (42 * MIB, 1) == (result.allocated_peak_bytes, result.allocated_peak_event)
    assert (42 * MIB, 1) == (result.reserved_peak_bytes, result.reserved_peak_event)
    allocated = [size * MIB for size in (30, 42, 0, 0, 42)]
    assert allocated == result.allocated_timeline_bytes.tolist()
    reserved = [size * MIB for size in (30, 42, 42, 0, 42)]
    assert reserved == result.reserved_timeline_bytes.tolist()


def test_replay_stops_where_memory_runs_out():
    """The event, the count and PyTorch's sentence are kept; later events are not run."""
    events = program((0, 1, 60 * MIB), (0, 2, 60 * MIB), (1, 1, 0), (1, 2, 0))

    result = replay_stream(*events, 100 * MIB, total_bytes=1 * GIB)

    assert (1, 1, 1) == (result.oom_event, result.num_ooms, result.num_alloc_retries)
    assert result.oom_message.startswith(
        "CUDA out of memory. Tried to allocate 60.00 MiB. GPU 0 has a total capacity of "
        "1024.00 MiB of which 40.00 MiB is free. Of the allocated memory 60.00 MiB"
    )


def test_empty_program_takes_nothing():
    """No events and requests of 0 bytes leave every figure at its start."""
    nothing = replay_stream(*program(), 1 * GIB)
    zero_bytes = replay_stream(*program((0, 1, 0), (3, 0, 0), (1, 1, 0)), 1 * GIB)

    assert nothing == zero_bytes
    assert (0, -1, -1) == (
        nothing.reserved_peak_bytes,
        nothing.reserved_peak_event,
        nothing.oom_event,
    )


def test_ids_may_be_used_again():
    """A block id can be allocated anew once it was freed."""
    events = program((0, 1, 512), (1, 1, 0), (0, 1, 1024), (1, 1, 0))

    assert replay_stream(*events, 1 * GIB).allocated_peak_bytes == 1024


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([(0, 1, 512), (1, 2, 0)], "Event 1 frees block 2"),
        ([(0, 1, 512), (1, 1, 0), (1, 1, 0)], "Event 2 frees block 1"),
        ([(0, 1, 512), (0, 1, 512)], "Event 1 allocates block 1"),
        ([(4, 1, 512)], "none of 0 to 3"),
    ],
)
def test_impossible_program_is_refused(events, words):
    """What is not allocated cannot be freed, and an id holds one block."""
    with pytest.raises(BadTapeError, match=words):
        replay_stream(*program(*events), 1 * GIB)


def test_arrays_of_different_length_are_refused():
    """The three arrays describe the same events."""
    kinds, blocks, sizes = program((0, 1, 512), (1, 1, 0))

    with pytest.raises(BadTapeError, match="length"):
        replay_stream(kinds, blocks, sizes[:1], 1 * GIB)


def training_like(num_steps, num_layers, seed):
    """A stream as a training step makes it: weights, saved activations, scratch, gradients."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(64, 3_000_000, num_layers) * 4
    maps = rng.integers(1, 64, num_layers) * rng.choice([1600, 6400, 25600, 102400], num_layers) * 4
    events = [(0, layer, size) for layer, size in enumerate(weights)]
    name = num_layers
    for step in range(num_steps):
        saved, gradients = [], []
        for size in maps:
            events += [(3, 0, rng.integers(1, size)), (0, name, size), (0, name + 1, 512)]
            events += [(0, name + 2, size), (1, name + 2, 0)]
            saved.append((name, name + 1))
            name += 3
        for layer in reversed(range(num_layers)):
            events += [(0, name, maps[layer]), (3, 0, maps[layer]), (0, name + 1, weights[layer])]
            events += [(1, name, 0), *((1, block, 0) for block in saved[layer])]
            gradients.append(name + 1)
            name += 2
        if step == 0:
            events += [(0, name + layer, weights[layer]) for layer in range(num_layers)]
            name += num_layers
        events += [(1, block, 0) for block in gradients]
    return program(*events)


@pytest.mark.parametrize("text", ["", "expandable_segments:True", "max_split_size_mb:64"])
def test_long_stream_equals_the_allocator_at_any_capacity(text):
    """Peaks, verdict and message equal those of the allocator's own methods."""
    events = training_like(3, 80, seed=1)
    settings = AllocatorSettings.parse(text)
    needed = replay_stream(*events, 1 << 50, settings).reserved_peak_bytes
    for fraction in (0.5, 0.9, 0.97, 1.0):
        capacity = int(needed * fraction)
        allocator = CachingAllocator(capacity, settings)

        expected = replay_by_calls(*events, allocator)

        assert expected == replay_stream(*events, capacity, settings)


@pytest.mark.parametrize("text", ["", "expandable_segments:True"])
def test_thirty_thousand_events_take_a_tenth_of_a_second(text):
    """A stream as long as a network's lifecycle replays in 0.1 s on one core."""
    events = tuple(array[:30_000] for array in training_like(6, 500, seed=2))
    settings = AllocatorSettings.parse(text)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        replay_stream(*events, 80 * GIB, settings)
        seconds.append(time.process_time() - start)

    assert events[0].size == 30_000
    assert min(seconds) < 0.1
