"""Memory's causes told apart from readings, and the cheapest remedy chosen; no device."""

import pytest

from memplan.answers import Predicted, Setting, Split
from memplan.spec import StepSpec
from memplan.training.remedy import Action, Means, cheapest, planned_lighter
from memplan.training.watch import Cause, Finding, Reading, Watch

MIB = 1 << 20
CAPACITY = 8192 * MIB


def _reading(step, *, stays=1000, peak=4000, reserved=4500, others=500):
    """Return a reading of MiB; `others` are used beside what is reserved."""
    return Reading(
        step=step,
        allocated_bytes=int(stays * MIB),
        allocated_peak_bytes=int(peak * MIB),
        reserved_bytes=int(reserved * MIB),
        device_used_bytes=int((reserved + others) * MIB),
    )


def _found(watch, readings):
    return [one for one in map(watch.add, readings) if one is not None]


def test_a_steady_run_finds_nothing():
    """What comes and goes between the same bounds is no trend."""
    readings = (_reading(n, peak=4000 + n % 7, stays=1000 + n % 3) for n in range(3000))

    assert [] == _found(Watch(CAPACITY), readings)


def test_a_leak_is_what_stays_growing():
    """1 MiB a step is found when a tenth of the way is gone, and told again near the end."""
    watch = Watch(CAPACITY)
    grown = (_reading(n, stays=1000 + n, peak=4000 + n, reserved=4500 + n) for n in range(3600))
    first, near = _found(watch, grown)

    assert (Cause.LEAK, Cause.LEAK) == (first.cause, near.cause)
    assert not first.is_urgent
    assert MIB == pytest.approx(first.bytes_a_step, rel=0.1)
    assert 3200 < first.steps_left < 3450
    assert near.is_urgent
    assert 90 <= near.steps_left <= 100


def test_a_leak_of_an_epoch_is_found_too():
    """20 MiB every 200 steps, as of something that each evaluation keeps."""
    grown = (
        _reading(n, stays=1000 + n // 200 * 20, peak=4000 + n // 200 * 20) for n in range(4000)
    )
    found = _found(Watch(CAPACITY), grown)

    assert [Cause.LEAK] == [one.cause for one in found]


def test_a_leak_that_the_run_outlasts_is_not_told():
    """Of 1 KiB a step, 100,000 steps take 100 MiB of the gigabytes there are."""
    grown = (_reading(n, stays=1000 + n / 1024) for n in range(3000))

    assert [] == _found(Watch(CAPACITY, last_step=100_000), grown)


def test_a_cache_that_fills_is_no_leak():
    """What rises by less and less comes to rest."""
    filling = (_reading(n, stays=1500 - 500 * 0.99**n) for n in range(800))

    assert [] == _found(Watch(CAPACITY), filling)


def test_fragmentation_is_what_is_held_growing_alone():
    """Reserved grows by 2 MiB a step, allocated does not."""
    grown = (_reading(n, reserved=4500 + 2 * n) for n in range(200))
    found = _found(Watch(CAPACITY), grown)

    assert [Cause.FRAGMENTATION] == [one.cause for one in found]
    assert 2 * MIB == pytest.approx(found[0].bytes_a_step, rel=0.1)


def test_batches_of_many_sizes_do_not_fragment():
    """Records among random peaks get rare, and what is held follows them."""
    state, held = 1, 0.0
    found = []
    watch = Watch(CAPACITY)
    for step in range(3000):
        state = state * 1103515245 % (1 << 31)
        peak = 2000 + 2000 * state / (1 << 31)
        held = max(held, peak * 1.1)
        found += [watch.add(_reading(step, peak=peak, reserved=held))]

    assert set() == {one.cause for one in found if one} - {Cause.CROWDED}


def test_a_crowded_batch_is_one_step_alone():
    """3 GiB more than usual, and a batch crowded by as much again would not fit."""
    spike = [_reading(100, peak=7000, reserved=7100)]
    watch = Watch(CAPACITY)
    usual = [_reading(n) for n in range(100)]
    [found] = _found(
        watch, [*usual, *spike, *(_reading(n, reserved=7100) for n in range(101, 200))]
    )

    assert (Cause.CROWDED, True, 3000 * MIB) == (found.cause, found.is_urgent, found.grown_bytes)


def test_a_crowded_batch_with_room_to_spare_is_not_told():
    """500 MiB more while 3 GiB are free."""
    readings = [*(_reading(n) for n in range(100)), _reading(100, peak=5000, reserved=5100)]

    assert [] == _found(Watch(CAPACITY), readings)


def test_a_batch_above_the_plan_is_told():
    """The plan said 4.5 GiB at most; there is room, so that nothing is urgent."""
    watch = Watch(CAPACITY, predicted_peak_bytes=4500 * MIB)
    readings = [*(_reading(n) for n in range(100)), _reading(100, peak=5000, reserved=5100)]
    [found] = _found(watch, readings)

    assert (Cause.CROWDED, False) == (found.cause, found.is_urgent)


def test_another_process_is_what_is_used_beside_ours():
    """It takes 2 GiB at once, then most of the rest; each is told once."""
    readings = [_reading(n) for n in range(50)]
    readings += [_reading(n, others=2500) for n in range(50, 100)]
    readings += [_reading(n, others=3600) for n in range(100, 150)]
    first, second = _found(Watch(CAPACITY), readings)

    assert (Cause.OTHERS, 2000 * MIB, False) == (first.cause, first.grown_bytes, first.is_urgent)
    assert (Cause.OTHERS, 1100 * MIB, True) == (second.cause, second.grown_bytes, second.is_urgent)


def test_a_cause_that_goes_on_after_something_was_done_is_told_again():
    """The cache was emptied, and what is held grows again."""
    watch = Watch(CAPACITY)
    grown = [_reading(n, reserved=4500 + 2 * n) for n in range(200)]
    assert 1 == len(_found(watch, grown))
    watch.acted(Cause.FRAGMENTATION)

    assert [Cause.FRAGMENTATION] == [one.cause for one in _found(watch, grown)]


def _finding(cause, *, is_urgent):
    return Finding(cause=cause, grown_bytes=MIB, bytes_a_step=1, steps_left=9, is_urgent=is_urgent)


@pytest.mark.parametrize(
    ("cause", "is_urgent", "means", "expected"),
    [
        (Cause.LEAK, False, {}, Action.WARN),
        (Cause.LEAK, True, {}, Action.SMALLER),
        (Cause.LEAK, True, {"micro_batch_size": 1, "can_lighten": True}, Action.LIGHTER),
        (Cause.LEAK, True, {"is_lighter_faster": True, "can_lighten": True}, Action.LIGHTER),
        (Cause.CROWDED, True, {"is_lighter_faster": True}, Action.SMALLER),
        (Cause.LEAK, True, {"micro_batch_size": 1}, Action.WARN),
        (Cause.FRAGMENTATION, False, {}, Action.EMPTY_CACHE),
        (Cause.FRAGMENTATION, False, {"times_emptied": 1}, Action.EXPANDABLE),
        (Cause.FRAGMENTATION, False, {"times_emptied": 1, "is_expandable": True}, Action.WARN),
        (Cause.FRAGMENTATION, True, {"times_emptied": 1, "is_expandable": True}, Action.SMALLER),
        (Cause.CROWDED, True, {}, Action.SMALLER),
        (Cause.CROWDED, True, {"micro_batch_size": 1, "can_lighten": True}, Action.LIGHTER),
        (Cause.OTHERS, False, {}, Action.WARN),
        (Cause.OTHERS, True, {"cached_bytes": 500 * MIB}, Action.EMPTY_CACHE),
        (Cause.OTHERS, True, {"cached_bytes": 500 * MIB, "times_emptied": 1}, Action.SMALLER),
        (Cause.OTHERS, True, {}, Action.SMALLER),
    ],
)
def test_the_cheapest_remedy_that_helps_is_taken(cause, is_urgent, means, expected):
    """Cache before micro-batch before recomputation; the allocator's settings at a restart."""
    given = Means(**{"micro_batch_size": 8, "cached_bytes": 0, **means})

    assert expected == cheapest(_finding(cause, is_urgent=is_urgent), given)


def _setting(size, used, speed, **levers):
    return Setting(
        spec=StepSpec(**levers),
        split=Split(
            micro_batch_size=size, accumulation_steps=16 // size, devices=1
        ),
        nominal_batch_size=16,
        predicted=Predicted(
            allocated_peak_bytes=used, reserved_peak_bytes=used, device_used_peak_bytes=used,
            peak_phase="backward", images_per_second=speed, epoch_seconds=None,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (_setting(8, 70, 95.0, lean=True), {"lean": True}),
        (_setting(8, 70, 95.0, recompute=("1", "2")), {"recompute": ("1", "2")}),
        (_setting(8, 70, 95.0, lean=True, memory_format="channels-last"), None),
        (_setting(8, 101, 95.0, lean=True), None),
        (_setting(8, 70, 85.0, lean=True), None),
        (_setting(16, 70, 95.0, lean=True), None),
    ],
)
def test_the_plan_says_whether_lean_blocks_or_a_smaller_micro_batch_cost_less(other, expected):
    """Of 8 at once now, and 4 at once at 90 images a second as the other way."""
    settings = [_setting(8, 100, 100.0), _setting(4, 60, 90.0), other]

    found = planned_lighter(settings, StepSpec(), 8)

    assert found == (None if expected is None else StepSpec(**expected))
