"""Whatever the card has: plans fit, more memory is never slower, small cases equal brute force."""

import functools
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.answers import Predicted, Setting
from memplan.device import catalogue
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.life import Life
from memplan.device.replay import Simulator
from memplan.errors import InfeasibleError
from memplan.fit.predictor import Predictor
from memplan.planner.evaluate import Recordings
from memplan.planner.search import (
    Budget,
    Space,
    fits_budget,
    pareto,
    score,
    search,
    settings_at,
)
from memplan.spec import Split, StepSpec
from memplan.trace.record import record
from memplan.workload import Workload

MIB = 1 << 20
EFFECTIVE = 8
BLOCKS = ("1", "2")
CARD = catalogue.card("rtx-3090")


class Wide(Workload):
    """Three convolutions whose activations, about 3 MiB an image, decide what fits."""

    name = "wide"
    image_size = 64

    def build_model(self):
        """Return the layers in a row."""
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 3, padding=1),
            torch.nn.Sequential(torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU()),
            torch.nn.Sequential(torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU()),
        )

    def make_batch(self, micro_batch_size):
        """Return images alone."""
        return {"images": torch.zeros(micro_batch_size, 3, 64, 64)}

    def compute_loss(self, model, batch):
        """Return the sum of squares of the outputs."""
        loss = model(batch["images"]).square().sum()
        return loss, loss.detach()[None]


@functools.cache
def recorded(configuration, batch):
    """Return a tape, recorded once however many plans ask for it."""
    return record(Wide(), batch, configuration)


def recorder_of(configuration):
    """Return the function that records a configuration at a batch."""
    return functools.partial(recorded, configuration)


SPACE = Space(
    base=StepSpec(memory_format="channels-last"),
    choices={"recompute": ((), BLOCKS)},
    effective_batch_size=EFFECTIVE,
    nominal_batch_size=64,
)


@functools.cache
def planned(capacity_bytes, safety=0.05):
    """Return the plan for a card of a capacity, None where nothing fits."""
    card = CARD.with_capacity(capacity_bytes)
    budget = Budget(capacity_bytes=capacity_bytes, safety_fraction=safety)
    try:
        return search(recorder_of, Simulator(card), SPACE, budget, say=lambda _: None)
    except InfeasibleError:
        return None


# From less than the context and one image, to more than all images at once.
capacities = st.integers(10, 150).map(lambda size: CARD.context_bytes + size * MIB)
EXPANDABLE = "expandable_segments:True"
TAPES = Recordings(recorder_of)
CHOOSING = replace(
    SPACE,
    choices={"allocator": ("", EXPANDABLE)},
    blocks=BLOCKS,
    rounding_fraction=0.3,
)


@functools.cache
def chosen(capacity_bytes):
    """Return the plan that may recompute any blocks, None where nothing fits."""
    card = CARD.with_capacity(capacity_bytes)
    budget = Budget(capacity_bytes=capacity_bytes, safety_fraction=0.05)
    simulators = {
        "": Simulator(card),
        EXPANDABLE: Simulator(card, AllocatorSettings.parse(EXPANDABLE)),
    }
    try:
        return search(TAPES, simulators, CHOOSING, budget, say=lambda _: None)
    except InfeasibleError:
        return None


@settings(max_examples=12, deadline=None, derandomize=True)
@given(capacities)
def test_any_choice_stays_within_its_budget(capacity):
    """With every lever free, the chosen peak and all alternatives fit."""
    outcome = chosen(capacity)
    if outcome is None:
        return
    budget = Budget(capacity_bytes=capacity, safety_fraction=0.05).num_bytes
    for each in outcome.pareto:
        assert each.predicted.device_used_peak_bytes <= budget
        images = each.split.micro_batch_size * each.split.accumulation_steps
        assert abs(images - EFFECTIVE) <= 0.3 * EFFECTIVE
        assert each.split.effective_batch_size == images


@settings(max_examples=16, deadline=None, derandomize=True)
@given(capacities, capacities)
def test_budget_and_plan_move_together(one, other):
    """With every lever free, a larger budget is never ranked lower, a smaller never peaks higher.

    Ranks are images per second less a percent for each departure from the plain way.
    """
    small, large = (chosen(size) for size in sorted((one, other)))
    if small is None:
        return

    assert large is not None
    assert score(small.chosen, CHOOSING) <= score(large.chosen, CHOOSING)
    least, most = (outcome.chosen.predicted.device_used_peak_bytes for outcome in (small, large))
    assert least <= most


@settings(max_examples=4, deadline=None, derandomize=True)
@given(capacities)
def test_plans_are_the_same_every_time(capacity):
    """Nothing in a search depends on the time or on chance."""
    first = chosen(capacity)
    chosen.cache_clear()

    assert first == chosen(capacity)


def speed(outcome):
    """Return a plan's rate, 0 where there is none."""
    return 0.0 if outcome is None else outcome.chosen.predicted.images_per_second


@settings(max_examples=6, deadline=None, derandomize=True)
@given(capacities)
def test_plans_stay_within_their_budget(capacity):
    """The chosen peak and all alternatives fit, and give the batch asked for."""
    outcome = planned(capacity)
    budget = Budget(capacity_bytes=capacity, safety_fraction=0.05).num_bytes
    if outcome is None:
        return
    for each in outcome.pareto:
        assert each.predicted.device_used_peak_bytes <= budget
        assert EFFECTIVE == each.split.effective_batch_size
    memory = [each.predicted.device_used_peak_bytes for each in outcome.pareto]
    rates = [each.predicted.images_per_second for each in outcome.pareto]
    assert sorted(set(memory)) == memory
    assert sorted(set(rates)) == rates
    assert outcome.chosen == outcome.pareto[-1]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(capacities, capacities)
def test_more_memory_never_gives_a_slower_plan(one, other):
    """What fits a card fits a larger one, so its plan is at least as fast."""
    small, large = sorted((one, other))

    assert speed(planned(small)) <= speed(planned(large))


@settings(max_examples=3, deadline=None, derandomize=True)
@given(capacities)
def test_search_equals_brute_force(capacity):
    """The choice is the fastest of all settings, each recorded and replayed by itself."""
    card = CARD.with_capacity(capacity)
    budget = Budget(capacity_bytes=capacity, safety_fraction=0.05)
    simulator = Simulator(card)
    best = 0.0
    for recompute in SPACE.choices["recompute"]:
        configuration = StepSpec(memory_format="channels-last", recompute=recompute)
        for batch in (1, 2, 4, 8):
            predictor = Predictor(
                recorder_of(configuration), [simulator], Life(accumulates=True), batch, batch
            )
            ((found, peaks),) = settings_at(predictor, 0, SPACE, configuration, [batch], None)
            if fits_budget(peaks, budget):
                best = max(best, found.predicted.images_per_second)

    assert best == speed(planned(capacity))


def made(memory, rate):
    """Return a setting of some device memory and speed."""
    return Setting(
        spec=StepSpec(precision="fp32"),
        split=Split(micro_batch_size=1),
        nominal_batch_size=64,
        predicted=Predicted(
            allocated_peak_bytes=memory,
            reserved_peak_bytes=memory,
            device_used_peak_bytes=memory,
            peak_phase="backward",
            images_per_second=float(rate),
            epoch_seconds=None,
        ),
    )


def beats(one, other):
    """Return whether a setting is at least as good in both and better in one."""
    a, b = (
        (-each.predicted.device_used_peak_bytes, each.predicted.images_per_second)
        for each in (one, other)
    )
    return a != b and a[0] >= b[0] and a[1] >= b[1]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_set_equals_brute_force(pairs):
    """Exactly the settings that no other beats are kept, one of equals."""
    given_settings = [made(*pair) for pair in pairs]
    kept = {
        (each.predicted.device_used_peak_bytes, each.predicted.images_per_second)
        for each in given_settings
        if not any(beats(other, each) for other in given_settings)
    }

    front = pareto(given_settings)

    assert sorted(kept) == [
        (each.predicted.device_used_peak_bytes, each.predicted.images_per_second) for each in front
    ]
