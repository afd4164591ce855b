"""The space of settings, the budget, the Pareto set, and the search over a toy."""

import functools
from dataclasses import replace

import pytest
from trace_toy import Counted

from memplan.answers import Predicted, Setting
from memplan.device import catalogue
from memplan.device.replay import Peaks, Simulator
from memplan.errors import InfeasibleError
from memplan.planner.search import (
    Budget,
    Space,
    configurations,
    fits_budget,
    pareto,
    score,
    search,
    setting_of,
)
from memplan.spec import Split, StepSpec
from memplan.trace.record import record

MIB = 1 << 20
SPACE = {
    "base": StepSpec(precision="fp32"),
    "nominal_batch_size": 64,
}


def setting(memory, speed, micro=1):
    """Return a setting of some device memory and speed."""
    return Setting(
        spec=StepSpec(precision="fp32"),
        split=Split(micro_batch_size=micro),
        nominal_batch_size=64,
        predicted=Predicted(
            allocated_peak_bytes=memory,
            reserved_peak_bytes=memory,
            device_used_peak_bytes=memory,
            peak_phase="backward",
            images_per_second=speed,
            epoch_seconds=None,
        ),
    )


def peaks(used=100, *, fits=True, retries=0):
    """Return peaks of some device-used memory."""
    return Peaks(
        allocated_peak_bytes=used - 30,
        reserved_peak_bytes=used - 10,
        device_used_peak_bytes=used,
        capacity_bytes=1000,
        fits=fits,
        inactive_split_peak_bytes=0,
        num_alloc_retries=retries,
        peak_period="steady_step",
        peak_phase="backward",
        peak_module="0",
        peak_event=3,
        out_of_memory="" if fits else "CUDA out of memory.",
    )


@pytest.mark.parametrize(
    ("effective", "devices", "micro"),
    [
        (1, 1, [1]),
        (12, 1, [1, 2, 3, 4, 6, 12]),
        (13, 1, [1, 13]),
        (64, 4, [1, 2, 4, 8, 16]),
        (2, 2, [1]),
    ],
)
def test_micro_batches_give_the_effective_batch_exactly(effective, devices, micro):
    """The divisors of a device's share, ascending."""
    space = Space(**SPACE, effective_batch_size=effective, devices=devices)

    assert micro == space.micro_batches()


@pytest.mark.parametrize(
    ("effective", "devices", "splits"),
    [
        (1, 1, [(1, 1)]),
        (8, 1, [(1, 8), (2, 4), (4, 2), (8, 1)]),
        (20, 1, [(1, 20), (2, 10), (3, 7), (4, 5), (5, 4), (7, 3), (10, 2), (20, 1)]),
        (40, 2, [(1, 20), (2, 10), (3, 7), (4, 5), (5, 4), (7, 3), (10, 2), (20, 1)]),
    ],
)
def test_splits_come_near_the_effective_batch(effective, devices, splits):
    """Each micro-batch once, with the accumulation that comes nearest, within a twentieth."""
    space = Space(**SPACE, effective_batch_size=effective, devices=devices, rounding_fraction=0.05)

    assert splits == [
        (split.micro_batch_size, split.accumulation_steps) for split in space.splits()
    ]


@pytest.mark.parametrize("effective", [7, 64, 100, 250])
def test_splits_without_rounding_are_the_divisors(effective):
    """Exact splits are those of `micro_batches`."""
    space = Space(**SPACE, effective_batch_size=effective)

    assert space.micro_batches() == [split.micro_batch_size for split in space.splits()]


def test_score_takes_a_percent_for_each_departure():
    """Each lever that only costs speed, and a rounded batch; precision and layout are none."""
    space = Space(**SPACE, effective_batch_size=4, rounding_fraction=0.5)
    plain = setting(1, 100.0, micro=4)

    def scored(**levers):
        return score(replace(plain, spec=replace(plain.spec, **levers)), space)

    assert 100.0 == score(plain, space) == scored(precision="amp-fp16")
    for departure in (
        {"recompute": ("0",)},
        {"allocator": "expandable_segments:True"},
        {"lean": True},
        {"assigner_parts": 4},
    ):
        assert pytest.approx(99.0) == scored(**departure)
    assert pytest.approx(99.0) == score(replace(plain, split=Split(micro_batch_size=5)), space)
    assert pytest.approx(98.01) == scored(lean=True, recompute=("0",))


def test_budget_leaves_what_others_hold():
    """Memory in use is taken off after the margin, and never below nothing."""
    assert 850 == Budget(capacity_bytes=1000, safety_fraction=0.05, taken_bytes=100).num_bytes
    assert 0 == Budget(capacity_bytes=1000, safety_fraction=0.05, taken_bytes=1000).num_bytes


def test_budget_leaves_the_safety_fraction():
    """What may be taken is whole bytes and never more than the fraction allows."""
    assert 950 == Budget(capacity_bytes=1000, safety_fraction=0.05).num_bytes
    assert 1000 == Budget(capacity_bytes=1000, safety_fraction=0).num_bytes
    assert type(Budget(capacity_bytes=1001, safety_fraction=0.3).num_bytes) is int


def test_life_fits_when_within_budget_without_retries():
    """Being over, running out, or emptying the cache to go on: none of them fits."""
    budget = Budget(capacity_bytes=100, safety_fraction=0)

    assert fits_budget(peaks(100), budget)
    assert not fits_budget(peaks(101), budget)
    assert not fits_budget(peaks(100, fits=False), budget)
    assert not fits_budget(peaks(100, retries=1), budget)


def test_pareto_keeps_what_no_other_beats():
    """Least memory first, each faster than the one before it; of equals the first stays."""
    least, middle, most = setting(1, 1.0), setting(2, 3.0), setting(4, 4.0)
    slower, larger, equal = setting(3, 2.0), setting(4, 3.0), setting(2, 3.0, micro=2)

    assert (least, middle, most) == pareto([most, slower, middle, larger, equal, least])
    assert () == pareto([])


def test_setting_of_devices_multiplies_the_rate():
    """Images, accumulation and rate of four cards; the epoch follows from the rate."""
    space = Space(**SPACE, effective_batch_size=64, devices=4)
    made = setting_of(space, space.base, space.split(8), peaks(200), 10.0, 400)

    assert Split(micro_batch_size=8, accumulation_steps=2, devices=4) == made.split
    assert 64 == made.split.effective_batch_size
    assert (40.0, 10.0) == (made.predicted.images_per_second, made.predicted.epoch_seconds)
    assert (170, 190, 200) == (
        made.predicted.allocated_peak_bytes,
        made.predicted.reserved_peak_bytes,
        made.predicted.device_used_peak_bytes,
    )
    assert (
        None is setting_of(space, space.base, space.split(8), peaks(), 10.0).predicted.epoch_seconds
    )


def test_configurations_are_the_whole_product():
    """Every precision, layout and recompute set once, on the same base."""
    space = Space(
        base=StepSpec(),
        choices={
            "precision": ("fp32", "amp-fp16"),
            "memory_format": ("contiguous", "channels-last"),
            "recompute": ((), ("0",)),
        },
        effective_batch_size=4,
        nominal_batch_size=64,
    )

    made = list(configurations(space))

    assert 8 == len({(s.precision, s.memory_format, s.recompute) for s in made}) == len(made)


@functools.cache
def recorded(settings, batch):
    """Return the counted toy's tape, recorded once a batch and setting."""
    return record(Counted(), batch, settings)


def recorder_of(settings):
    """Return the function that records a configuration at a batch."""
    return functools.partial(recorded, settings)


def searched(capacity_bytes, **changes):
    """Return the toy's plan for 4 images a step on an RTX 3090 of another capacity."""
    card = catalogue.card("rtx-3090").with_capacity(capacity_bytes)
    space = Space(**SPACE | {"effective_batch_size": 4} | changes)
    told = []
    outcome = search(
        recorder_of,
        Simulator(card),
        space,
        Budget(capacity_bytes=capacity_bytes, safety_fraction=0.05),
        num_images=40,
        say=told.append,
    )
    return outcome, told


def test_search_takes_the_fastest_that_fits():
    """Of three micro-batches the largest is chosen where there is room; progress is told."""
    outcome, told = searched(8 << 30)

    assert 3 == outcome.num_evaluated
    assert 4 == outcome.chosen.split.micro_batch_size
    assert outcome.chosen == outcome.pareto[-1]
    assert any("Recording" in text and "fp32, contiguous" in text for text in told)
    rate = outcome.chosen.predicted.images_per_second
    assert pytest.approx(40 / rate) == outcome.chosen.predicted.epoch_seconds


def test_search_with_one_micro_batch_needs_no_more():
    """An effective batch of one image has one way to be run."""
    outcome, _ = searched(8 << 30, effective_batch_size=1)

    assert (1, 1) == (
        outcome.chosen.split.micro_batch_size,
        outcome.chosen.split.accumulation_steps,
    )


def test_nothing_that_fits_says_by_how_much():
    """The message names the card, the least that is needed, the budget and the difference."""
    context = catalogue.card("rtx-3090").context_bytes

    with pytest.raises(InfeasibleError, match="too much") as caught:
        searched(context + MIB)

    assert 3 == caught.value.exit_code
    text = str(caught.value)
    assert 1 == len(text.splitlines())
    assert 1 == caught.value.least.split.micro_batch_size
    need = caught.value.least.predicted.device_used_peak_bytes
    assert caught.value.over_bytes == need - int((context + MIB) * 0.95)
    for words in ("Nothing fits", "RTX 3090", "device-used (predicted)", "micro-batch 1"):
        assert words in text
