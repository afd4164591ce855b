"""What holds for the simulated allocator whatever is asked of it."""

import numpy as np
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from memplan.device.allocator import AllocatorSettings, CachingAllocator
from memplan.device.allocator_replay import replay_by_calls, replay_stream
from memplan.errors import DeviceOutOfMemoryError

MIB = 1 << 20
OPTIONS = [
    "",
    "expandable_segments:True",
    "max_split_size_mb:32",
    "max_split_size_mb:32,max_non_split_rounding_mb:64",
    "max_split_size_mb:32,expandable_segments:True",
    "roundup_power2_divisions:[1:2,8:4,>:8]",
    "large_segment_size_mb:32,expandable_segments:True",
    "garbage_collection_threshold:0.3,per_process_memory_fraction:0.9",
]
SIZES = st.one_of(
    st.integers(0, 4096),
    st.sampled_from([512, 1 * MIB, 1 * MIB + 1, 10 * MIB - 1, 10 * MIB, 20 * MIB, 32 * MIB]),
    st.integers(1, 2 * MIB),
    st.integers(1 * MIB, 80 * MIB),
)
VERSIONS = st.sampled_from([(2, 1), (2, 6), (2, 9), (2, 10), (2, 11), (2, 12), (2, 13), (2, 15)])
OPS = st.lists(st.tuples(st.sampled_from("aaaaffffse"), SIZES, st.integers(0, 10**6)), max_size=120)


def options_for(text, version):
    """The settings of a string, without the options that the release does not know."""
    since = {
        "large_segment_size_mb": (2, 11),
        "max_non_split_rounding_mb": (2, 6),
        "per_process_memory_fraction": (2, 10),
    }
    entries = [
        entry for entry in text.split(",") if version >= since.get(entry.split(":")[0], (2,))
    ]
    return AllocatorSettings.parse(text if len(entries) == text.count(",") + 1 else "", version)


def program_of(ops):
    """Arrays for `replay_stream`: each free takes one of the blocks that are live."""
    kinds, blocks, sizes, live = [], [], [], []
    for op, size, choice in ops:
        if op == "f" and not live:
            continue
        name = len(kinds)
        if op == "a":
            live.append(name)
        elif op == "f":
            name = live.pop(choice % len(live))
        kinds.append("afes".index(op))
        blocks.append(name)
        sizes.append(size if op in "as" else 0)
    return np.array(kinds, np.int8), np.array(blocks, int), np.array(sizes, int)


@given(
    ops=OPS,
    text=st.sampled_from(OPTIONS),
    version=VERSIONS,
    capacity=st.integers(30, 600),
)
@settings(max_examples=300, deadline=None)
def test_written_out_replay_equals_allocator(ops, text, version, capacity):
    """The fast replay returns what the allocator's own methods return, timeline included."""
    program = program_of(ops)
    options = options_for(text, version)

    fast = replay_stream(*program, capacity * MIB, options, torch_version=version, timeline=True)
    allocator = CachingAllocator(capacity * MIB, options, torch_version=version)
    slow = replay_by_calls(*program, allocator, timeline=True)

    assert slow == fast
    assert slow.allocated_timeline_bytes.tolist() == fast.allocated_timeline_bytes.tolist()
    assert slow.reserved_timeline_bytes.tolist() == fast.reserved_timeline_bytes.tolist()


class Naive:
    """Drives an allocator and keeps only which bytes each live block was given."""

    def __init__(self, allocator):
        self.allocator = allocator
        self.live = []

    def step(self, op, size, choice):
        """Do one random thing."""
        stream = choice % 2
        if op == "a":
            try:
                block = self.allocator.malloc(size, stream)
            except DeviceOutOfMemoryError:
                return
            if block is not None:
                self.live.append((block, block.address, block.size))
        elif op == "e":
            self.allocator.empty_cache()
        elif op == "s":
            self.allocator.complete_events(stream)
        elif self.live:
            block, _address, _size = self.live.pop(choice % len(self.live))
            if choice % 5 == 0:
                self.allocator.record_stream(block, 1 - block.stream)
            self.allocator.free(block)


def check_invariants(naive):
    allocator = naive.allocator
    ends = 0
    for _block, address, size in sorted(naive.live, key=lambda entry: entry[1]):
        assert ends <= address
        ends = address + size
    stats = allocator.stats()
    levels = [stats[f"{name}_bytes.all.current"] for name in ("requested", "active", "reserved")]
    assert sorted(levels) == levels
    assert stats["allocated_bytes.all.current"] <= stats["active_bytes.all.current"]
    assert sum(size for _block, _address, size in naive.live) == allocator.allocated_bytes
    segments = allocator.snapshot()
    assert sum(segment.total_size for segment in segments) == allocator.reserved_bytes
    for segment in segments:
        check_segment(segment)


def check_segment(segment):
    assert sum(block.size for block in segment.blocks) == segment.total_size
    address = segment.address
    was_inactive = False
    for block in segment.blocks:
        assert address == block.address
        assert not (was_inactive and block.state == "inactive")
        was_inactive = block.state == "inactive"
        address += block.size


@given(ops=OPS, text=st.sampled_from(OPTIONS), version=VERSIONS, capacity=st.integers(30, 600))
@settings(max_examples=150, deadline=None)
def test_blocks_never_overlap_and_no_byte_is_lost(ops, text, version, capacity):
    """Live blocks are disjoint, levels are ordered, and segments are tiled by their blocks."""
    options = options_for(text, version)
    naive = Naive(CachingAllocator(capacity * MIB, options, torch_version=version))
    for op in ops:
        naive.step(*op)
        check_invariants(naive)


@given(ops=OPS, text=st.sampled_from(OPTIONS), version=VERSIONS)
@settings(max_examples=100, deadline=None)
def test_freeing_everything_gives_everything_back(ops, text, version):
    """After all blocks are free, emptying the cache leaves nothing reserved and the driver full."""
    options = options_for(text, version)
    naive = Naive(CachingAllocator(600 * MIB, options, torch_version=version))
    for op in ops:
        naive.step(*op)
    for block, _address, _size in naive.live:
        naive.allocator.free(block)
    naive.allocator.empty_cache()

    assert naive.allocator.reserved_bytes == 0
    assert naive.allocator.device_free_bytes == 600 * MIB
    assert not naive.allocator.snapshot()


@given(size=st.integers(1, 200 * MIB), text=st.sampled_from(OPTIONS), version=VERSIONS)
@example(size=31457281, text="max_split_size_mb:32", version=(2, 1))
@settings(max_examples=100, deadline=None)
def test_free_then_allocate_reuses(size, text, version):
    """A request of the size just freed gets the same address and no new driver memory.

    But for one below `max_split_size_mb` whose segment was rounded up to that: such a block is only
    for requests of its kind. Source: `get_free_block` of c10/cuda/CUDACachingAllocator.cpp.
    """
    options = options_for(text, version)
    allocator = CachingAllocator(1000 * MIB, options, torch_version=version)
    first = allocator.malloc(size)
    address, reserved = first.address, allocator.reserved_bytes
    assume(not size < (options.max_split_bytes or 0) <= reserved)
    allocator.free(first)

    again = allocator.malloc(size)

    assert address == again.address
    assert reserved == allocator.reserved_bytes
