"""Convolutions whose workspace finds no memory take the next plan, as PyTorch lets them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_toy import Counted

from memplan import tape as tapes
from memplan.device import catalogue
from memplan.device.allocator import AllocatorSettings, CachingAllocator
from memplan.device.allocator_replay import replay_by_calls, replay_stream
from memplan.device.life import Life, Program
from memplan.device.plan_fallback import NO_KEY, NO_PLAN_TEXT, PlanFallback
from memplan.device.replay import Simulator
from memplan.trace.record import record
from memplan.units import MIB

SCRATCH = 3


@pytest.fixture(autouse=True)
def _no_cache_on_disk(monkeypatch):
    monkeypatch.setenv("MEMPLAN_CACHE", "off")


def program(*events):
    """Return kinds, blocks, sizes (MiB to bytes) and keys of events; no key is `NO_KEY`."""
    rows = [(*event, NO_KEY)[:4] for event in events]
    kinds, blocks, sizes, keys = np.array(rows, dtype=np.int64).T
    return (kinds, blocks, sizes * MIB), keys


def run(events, capacity, plans, **options):
    """Replay both ways, check that they agree, and return the result and the fast fallback."""
    arrays, keys = events
    in_bytes = {key: [size * MIB for size in sizes] for key, sizes in plans.items()}
    fallbacks = [PlanFallback(keys, in_bytes.__getitem__) for _ in range(2)]
    fast = replay_stream(*arrays, capacity * MIB, fallback=fallbacks[0], timeline=True, **options)
    slow = replay_by_calls(
        *arrays,
        CachingAllocator(capacity * MIB, *options.values()),
        fallback=fallbacks[1],
        timeline=True,
    )

    if fast.oom_event < 0:
        assert slow == fast
        for name in ("allocated_timeline_bytes", "reserved_timeline_bytes"):
            assert getattr(slow, name).tolist() == getattr(fast, name).tolist()
    return fast, fallbacks[0]


def test_the_next_plan_with_room_is_taken():
    """60 MiB beside 50 of 100 fail, 45 do: one retry and one out-of-memory are counted."""
    result, fallback = run(program((0, 1, 50), (SCRATCH, 0, 60, 7)), 100, {7: [60, 60, 44, 0]})

    assert -1 == result.oom_event
    assert (2, 2) == (result.num_ooms, result.num_alloc_retries)
    assert 94 * MIB == result.allocated_peak_bytes == result.reserved_peak_bytes
    assert 1 == fallback.num_convolutions


def test_a_failed_request_has_emptied_the_cache():
    """The cached 40 MiB went back to the driver while the first plan was tried."""
    events = program((0, 1, 40), (0, 2, 30), (1, 1, 0), (SCRATCH, 0, 90, 7), (0, 3, 60))
    result, _ = run(events, 100, {7: [90, 10]})

    assert -1 == result.oom_event
    assert [40, 70, 70, 40, 100] == (result.reserved_timeline_bytes // MIB).tolist()


def test_a_plan_once_taken_is_kept():
    """With room for the best plan again, the second call still takes the one that ran."""
    events = program((0, 1, 50), (SCRATCH, 0, 60, 7), (1, 1, 0), (SCRATCH, 0, 60, 7))
    result, fallback = run(events, 100, {7: [60, 44, 0]})

    assert 1 == result.num_ooms
    assert [50, 94, 0, 44] == (result.allocated_timeline_bytes // MIB).tolist()
    assert [50, 44, 0, 44] == (fallback.applied(events[0][2]) // MIB).tolist()


def test_plans_are_kept_apart_by_key():
    """What one problem falls back on changes nothing for another."""
    events = program((0, 1, 50), (SCRATCH, 0, 60, 7), (1, 1, 0), (SCRATCH, 0, 60, 8))
    result, fallback = run(events, 100, {7: [60, 44], 8: [60, 44]})

    assert [50, 94, 0, 60] == (result.allocated_timeline_bytes // MIB).tolist()
    assert 1 == fallback.num_convolutions


def test_a_kept_plan_without_room_begins_the_list_anew():
    """In the second call the kept plan fails first, then the list from its first plan on."""
    events = program((SCRATCH, 0, 60, 7), (0, 1, 50), (SCRATCH, 0, 60, 7))
    result, _ = run(events, 100, {7: [60, 55, 0]})

    assert -1 == result.oom_event
    assert 3 == result.num_ooms
    assert [60, 50, 50] == (result.allocated_timeline_bytes // MIB).tolist()


def test_without_any_plan_the_step_fails_in_pytorch_words():
    """The message is the one of PyTorch's convolution, with the allocator's own behind it."""
    result, fallback = run(program((0, 1, 50), (SCRATCH, 0, 60, 7)), 100, {7: [60, 58]})

    assert 1 == result.oom_event
    assert 2 == result.num_ooms
    assert result.oom_message.startswith(f"{NO_PLAN_TEXT} (none of cuDNN's 2 plans finds room")
    assert "CUDA out of memory. Tried to allocate 60.00 MiB." in result.oom_message
    assert 0 == fallback.num_convolutions


def test_other_requests_do_not_fall_back():
    """A tensor, or scratch that is no convolution's, ends the replay as ever."""
    result, _ = run(program((0, 1, 50), (SCRATCH, 0, 60)), 100, {})

    assert 1 == result.oom_event
    assert result.oom_message.startswith("CUDA out of memory. Tried to allocate 60.00 MiB.")


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("aafssss"), st.integers(0, 60), st.integers(0, 3)), max_size=60
    ),
    text=st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:32"]),
    capacity=st.integers(40, 160),
    shares=st.lists(st.integers(0, 4), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_both_replays_fall_back_alike(rows, text, capacity, shares):
    """Whatever falls back, the fast replay counts what the allocator's own methods count."""
    events, live, best = [], [], {}
    for op, size, key in rows:
        if op == "a":
            live.append(len(events))
            events.append((0, live[-1], size))
        elif op == "f" and live:
            events.append((1, live.pop(key % len(live)), 0))
        elif op == "s":
            events.append((SCRATCH, 0, best.setdefault(key, size), key))
    if events:
        plans = {
            key: [size, *(size * share // 4 for share in shares)] for key, size in best.items()
        }
        run(program(*events), capacity, plans, settings=AllocatorSettings.parse(text))


def test_a_life_fits_with_slower_plans_where_the_best_do_not():
    """Between what fits with any plan and what the best need, a card runs, and says how."""
    card = catalogue.card("rtx-3090")
    tape = record(Counted(), 65536)
    plain = Simulator(card)
    life = Program(tape, Life())
    sizes = life.sizes(
        tape.events.requested_bytes, plain.device_bytes(tape.convolutions, tape.launches)
    )
    needed = plain.peaks(life, sizes, tape.convolutions)
    assert (0, "") == (needed.num_slower_plans, needed.note)
    steps = range(needed.device_used_peak_bytes, plain.outside.num_bytes, -2 * MIB)
    tight = [
        Simulator(card.with_capacity(capacity)).peaks(life, sizes, tape.convolutions)
        for capacity in steps
    ]
    helped = [peaks for peaks in tight if peaks.fits and peaks.num_slower_plans]

    assert helped
    assert all("a slower plan at this capacity" in peaks.note for peaks in helped)
    assert all(peaks.num_ooms and peaks.num_alloc_retries for peaks in helped)
    assert all(peaks.device_used_peak_bytes <= peaks.capacity_bytes for peaks in helped)
    without = Simulator(card.with_capacity(helped[0].capacity_bytes)).peaks(life, sizes)
    assert not without.fits
    assert [not peaks.fits for peaks in tight] == sorted(not peaks.fits for peaks in tight)


def test_forward_and_backward_keep_plans_of_their_own():
    """One key is one convolution in one thread, the same in every step."""
    tape = record(Counted(), 2)
    life = Program(tape, Life())
    keys = life.plan_keys
    asks = life.asks == tapes.CONVOLUTION

    assert (keys[~asks] == NO_KEY).all()
    assert set(life.about[asks].tolist()) == {Program.convolution_of(k) for k in keys[asks]}
    assert len(tape.convolutions) == len(set(keys[asks].tolist()))
