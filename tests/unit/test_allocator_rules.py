"""Small cases of the simulated allocator with exact answers."""

import pytest

from memplan.device.allocator import AllocatorSettings, CachingAllocator
from memplan.device.allocator_oom import pytorch_bytes
from memplan.errors import DeviceOutOfMemoryError, UsageError

MIB = 1 << 20
GIB = 1 << 30


def allocator(text="", capacity=3 * GIB, version=(2, 11), **options):
    """An allocator on a device of 3 GiB."""
    settings = AllocatorSettings.parse(text, version)
    return CachingAllocator(capacity, settings, torch_version=version, **options)


def layout(of):
    """Each segment as (size, [(block size, is in use), ...])."""
    return [
        (segment.total_size, [(b.size, b.state == "active_allocated") for b in segment.blocks])
        for segment in of.snapshot()
    ]


def test_small_requests_share_a_small_segment():
    """1000 bytes and 1 MiB fit in one segment of 2 MiB."""
    simulated = allocator()
    simulated.malloc(1000)
    simulated.malloc(1 * MIB)

    assert [(2 * MIB, [(1024, True), (1 * MIB, True), (1_047_552, False)])] == layout(simulated)


def test_middle_requests_share_a_large_segment():
    """Requests between 1 and 10 MiB are carved from 20 MiB, in order."""
    simulated = allocator()
    for size in (1_048_577, 5_000_000, 10_485_759):
        simulated.malloc(size)

    blocks = [(1_049_088, True), (5_000_192, True), (10_485_760, True), (4_436_480, False)]
    assert [(20 * MIB, blocks)] == layout(simulated)


@pytest.mark.parametrize(
    ("size", "segment", "blocks"),
    [
        (10 * MIB, 10 * MIB, [(10 * MIB, True)]),
        (30_000_000, 31_457_280, [(30_000_128, True), (1_457_152, False)]),
        (12_000_000, 12_582_912, [(12_582_912, True)]),
    ],
)
def test_large_request_has_its_own_segment(size, segment, blocks):
    """From 10 MiB a segment is cut only when more than 1 MiB remains."""
    simulated = allocator()
    simulated.malloc(size)

    assert [(segment, blocks)] == layout(simulated)


def test_oversize_blocks_are_neither_carved_nor_wasted():
    """With `max_split_size_mb:64` a 96 MiB block serves 90 MB but neither 50 MB nor 70 MB."""
    simulated = allocator("max_split_size_mb:64")
    simulated.free(simulated.malloc(100_000_000))
    simulated.malloc(50_000_000)
    assert simulated.stats()["segment.all.current"] == 2

    whole = simulated.malloc(90_000_000)
    assert whole.size == 100_663_296
    simulated.free(whole)
    simulated.malloc(70_000_000)

    assert simulated.stats()["segment.all.current"] == 3


def test_expandable_segment_grows_by_missing_units():
    """Memory is mapped and unmapped in whole units of 2 or 20 MiB."""
    simulated = allocator("expandable_segments:True", trace=True)
    simulated.malloc(1000)
    first = simulated.malloc(30_000_000)
    start = first.address
    second = simulated.malloc(25_000_000)
    simulated.malloc(3_000_000)
    simulated.free(first)
    simulated.empty_cache()
    reused = simulated.malloc(9_000_000)

    assert start + 30_000_128 == second.address
    maps = [(e.action, e.size) for e in simulated.trace if e.action.startswith("segment")]
    assert [
        ("segment_map", 2 * MIB),
        ("segment_map", 40 * MIB),
        ("segment_map", 20 * MIB),
        ("segment_unmap", 20 * MIB),
    ] == maps
    assert simulated.reserved_bytes == 44_040_192
    assert start + 20 * MIB == reused.address


def test_limit_is_named_when_memory_runs_out():
    """A fraction of 0.25 of 3 GiB allows 768 MiB, in PyTorch's words."""
    simulated = allocator()
    simulated.malloc(2 * GIB)
    simulated.set_memory_fraction(0.25)

    with pytest.raises(DeviceOutOfMemoryError) as error:
        simulated.malloc(1 * GIB)

    assert "Tried to allocate 1024.00 MiB." in str(error.value)
    assert "768.00 MiB allowed; " in str(error.value)
    assert 1 * GIB == error.value.requested_bytes
    assert simulated.stats()["num_ooms"] == 1


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ((2, 0), "(GPU 0; 3.00 GiB total capacity; 2.00 GiB already allocated; 1024.00 MiB free;"),
        ((2, 1), "has a total capacty of 3.00 GiB"),
        ((2, 4), "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
        ((2, 10), "PYTORCH_ALLOC_CONF=expandable_segments:True"),
        ((2, 15), "https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing"),
    ],
)
def test_text_is_that_of_the_release(version, words):
    """Each release has its own sentence."""
    simulated = allocator(version=version)
    simulated.malloc(2 * GIB)

    with pytest.raises(DeviceOutOfMemoryError) as error:
        simulated.malloc(2 * GIB)

    assert words in str(error.value)


def test_requests_of_an_exabyte_are_refused_unseen():
    """2^60 bytes are refused without trying, and not counted."""
    simulated = allocator()

    with pytest.raises(DeviceOutOfMemoryError, match="more than 1EB memory"):
        simulated.malloc(1 << 60)

    assert simulated.stats()["num_ooms"] == 0


def test_retry_empties_the_cache_first():
    """A request that only fits without the cache succeeds and counts one retry."""
    simulated = allocator(capacity=100 * MIB)
    simulated.free(simulated.malloc(80 * MIB))

    simulated.malloc(90 * MIB)

    assert simulated.stats()["num_alloc_retries"] == 1
    assert 90 * MIB == simulated.reserved_bytes


def test_old_cached_segments_are_collected_above_the_threshold():
    """With a threshold under a limit, old segments are released before the limit is met."""
    simulated = allocator("garbage_collection_threshold:0.1", memory_fraction=0.5)
    simulated.free(simulated.malloc(400 * MIB))
    simulated.malloc(500 * MIB)

    assert 500 * MIB == simulated.reserved_bytes
    assert simulated.stats()["num_alloc_retries"] == 0


def test_whole_fraction_means_no_limit_since_2_10():
    """A fraction of 1.0 limits PyTorch 2.9 to the device's memory, and 2.10 to nothing."""
    for version, is_named in [((2, 9), True), ((2, 10), False)]:
        simulated = allocator(version=version, memory_fraction=1.0)
        with pytest.raises(DeviceOutOfMemoryError) as error:
            simulated.malloc(4 * GIB)
        assert is_named == ("allowed" in str(error.value))


def test_fraction_out_of_range_is_refused():
    """A fraction above 1 is a usage error."""
    with pytest.raises(UsageError, match=r"1\.5"):
        allocator(memory_fraction=1.5)


def test_early_rejection_counts_apart():
    """PyTorch 2.12 can refuse before the driver is asked."""
    simulated = allocator("throw_on_cudamalloc_oom:True", version=(2, 12), memory_fraction=1.0)

    with pytest.raises(DeviceOutOfMemoryError):
        simulated.malloc(4 * GIB)

    assert simulated.stats()["num_oom_rejections"] == 1
    assert simulated.stats()["num_ooms"] == 0


def test_block_waits_for_the_streams_that_used_it():
    """A freed block is active, not allocated, until the other stream's work is done."""
    simulated = allocator()
    block = simulated.malloc(4096)
    address = block.address
    simulated.record_stream(block, 7)
    simulated.free(block)

    assert address != simulated.malloc(4096).address
    assert simulated.stats()["active_bytes.all.current"] == 8192
    assert simulated.allocated_bytes == 4096

    simulated.complete_events(7)
    assert address == simulated.malloc(4096).address


def test_events_of_one_block_can_be_completed():
    """A recorded trace tells which block's events were done, not which stream's."""
    simulated = allocator()
    block = simulated.malloc(4096)
    simulated.record_stream(block, 7)
    simulated.free(block)
    simulated.complete_events_of(block)
    simulated.malloc(512)

    assert simulated.stats()["active.all.current"] == 1


def test_streams_do_not_share_cached_blocks():
    """A block cached for one stream does not serve another."""
    simulated = allocator()
    simulated.free(simulated.malloc(30 * MIB, 0))
    simulated.malloc(30 * MIB, 1)

    assert 60 * MIB == simulated.reserved_bytes


def test_private_pool_keeps_its_memory_until_released():
    """A pool's cache survives `empty_cache` while the pool has users."""
    simulated = allocator()
    simulated.begin_allocate_to_pool((0, 1))
    block = simulated.malloc(30 * MIB)
    simulated.end_allocate_to_pool((0, 1))
    simulated.free(block)
    simulated.empty_cache()
    assert 30 * MIB == simulated.reserved_bytes

    simulated.release_pool((0, 1))
    simulated.empty_cache()

    assert simulated.reserved_bytes == 0


def test_spare_pool_serves_a_default_request_that_would_fail():
    """A `use_on_oom` pool's cached block is taken before the cache is emptied."""
    simulated = allocator(capacity=100 * MIB)
    simulated.begin_allocate_to_pool((0, 1))
    simulated.free(simulated.malloc(80 * MIB))
    simulated.end_allocate_to_pool((0, 1))
    simulated.set_use_on_oom((0, 1))

    simulated.malloc(60 * MIB)

    assert simulated.stats()["num_alloc_retries"] == 0
    assert 80 * MIB == simulated.reserved_bytes


def test_pool_that_does_not_split_hands_out_whole_blocks():
    """A `no_split` pool gives 20 MiB for 2 MiB."""
    simulated = allocator()
    simulated.begin_allocate_to_pool((0, 1))
    simulated.set_no_split((0, 1))

    assert 20 * MIB == simulated.malloc(2 * MIB).size


def test_pool_without_users_cannot_be_released():
    """Releasing or ending what was never begun is refused."""
    with pytest.raises(UsageError, match=r"\(0, 1\)"):
        allocator().release_pool((0, 1))
    with pytest.raises(UsageError, match=r"\(0, 1\)"):
        allocator().end_allocate_to_pool((0, 1))


@pytest.mark.parametrize(("version", "waits"), [((2, 12), True), ((2, 13), False)])
def test_diversion_alone_is_no_capture_since_2_13(version, waits):
    """Up to PyTorch 2.12 any diversion stops event polling, later only a capture does."""
    simulated = allocator(version=version)
    block = simulated.malloc(512)
    simulated.record_stream(block, 7)
    simulated.free(block)
    simulated.complete_events(7)
    simulated.begin_allocate_to_pool((0, 1))
    simulated.malloc(512)

    assert (2 if waits else 1) == simulated.stats()["active.all.current"]


@pytest.mark.parametrize(
    ("version", "segment"), [((2, 11), 2), ((2, 12), 0), ((2, 13), 0)], ids=str
)
def test_tie_between_equal_blocks_is_broken_by_the_releases_rule(version, segment):
    """Up to 2.11 the lowest address wins, later the oldest segment."""
    addresses = [0x7F0060000000, 0x7F0040000000, 0x7F0020000000]
    simulated = allocator(version=version, addresses=addresses)
    blocks = [simulated.malloc(30 * MIB) for _ in addresses]
    for block in reversed(blocks):
        simulated.free(block)

    assert addresses[segment] == simulated.malloc(30 * MIB).address


def test_peaks_and_sums_can_be_forgotten():
    """Resets leave the current levels."""
    simulated = allocator()
    simulated.free(simulated.malloc(30 * MIB))
    simulated.reset_peak_stats()
    simulated.reset_accumulated_stats()

    stats = simulated.stats()
    assert stats["allocated_bytes.all.peak"] == 0
    assert stats["allocated_bytes.all.allocated"] == 0
    assert 30 * MIB == stats["reserved_bytes.all.peak"]
    assert stats["num_device_alloc"] == 0


def test_settings_can_change_while_blocks_live():
    """Turned off, expandable memory serves no new requests."""
    simulated = allocator("expandable_segments:True")
    simulated.free(simulated.malloc(30 * MIB))
    simulated.apply_settings(AllocatorSettings())
    simulated.malloc(30 * MIB)

    assert simulated.stats()["segment.all.current"] == 1


def test_nothing_is_taken_for_nothing():
    """0 bytes give no block and leave no mark."""
    simulated = allocator(trace=True)

    assert simulated.malloc(0) is None
    simulated.free(None)
    assert not simulated.trace


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (1024, "1024 bytes"),
        (1025, "1.00 KiB"),
        (1 << 30, "1024.00 MiB"),
        ((1 << 30) + 1, "1.00 GiB"),
    ],
)
def test_bytes_are_written_as_pytorch_does(num_bytes, text):
    """Bounds are inclusive and two decimals are shown."""
    assert text == pytorch_bytes(num_bytes)
