"""The integer program equals trying every choice."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.planner.milp import Choices

MIB = 1 << 20


@st.composite
def problems(draw):
    """Return a few choices over a few points, some of them excluding each other."""
    count, points = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    whole = st.integers(-20, 10)
    change = draw(
        st.lists(st.lists(whole, min_size=count, max_size=count), min_size=points, max_size=points)
    )
    held = draw(st.lists(st.integers(0, 60), min_size=points, max_size=points))
    seconds = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    pairs = list(itertools.combinations(range(count), 2))
    exclusive = draw(st.lists(st.sampled_from(pairs), max_size=2)) if pairs else []
    return Choices(
        np.array(seconds, dtype=np.float64),
        MIB * np.array(held, dtype=np.float64),
        MIB * np.array(change, dtype=np.float64),
        tuple(exclusive),
    )


def allowed(choices):
    """Yield every choice that takes at most one of those that exclude each other."""
    for flags in itertools.product((False, True), repeat=len(choices.seconds)):
        chosen = np.array(flags)
        if all(chosen[list(members)].sum() <= 1 for members in choices.exclusive):
            yield chosen


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), st.integers(0, 70))
def test_cheapest_choice_equals_brute_force(choices, limit):
    """No choice within the limit is cheaper, and there is one if any is."""
    limit_bytes = float(limit * MIB)
    costs = [
        choices.cost(chosen)
        for chosen in allowed(choices)
        if choices.peak_bytes(chosen) <= limit_bytes
    ]

    found = choices.cheapest(limit_bytes)

    if not costs:
        assert found is None
        return
    assert found is not None
    assert choices.peak_bytes(found) <= limit_bytes
    assert any(np.array_equal(found, chosen) for chosen in allowed(choices))
    assert min(costs) == choices.cost(found)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems())
def test_least_memory_equals_brute_force(choices):
    """No choice has a lower peak."""
    least = min(choices.peak_bytes(chosen) for chosen in allowed(choices))

    assert least == choices.peak_bytes(choices.least_memory())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.lists(st.integers(0, 70), min_size=2, max_size=5))
def test_a_lower_limit_never_costs_less(choices, limits):
    """The price of memory rises as the limit falls."""
    found = [choices.cheapest(float(limit * MIB)) for limit in sorted(limits)]
    costs = [np.inf if one is None else choices.cost(one) for one in found]

    assert sorted(costs, reverse=True) == costs


def test_nothing_is_chosen_where_nothing_is_needed():
    """A limit that holds anyway costs nothing."""
    choices = Choices(np.ones(2), np.array([5.0]), np.array([[-1.0, -2.0]]))

    assert not choices.cheapest(5.0).any()
