"""The last number that holds, by halving and by guesses."""

import pytest

from memplan.evaluation.bisection import last_holding, most_within


@pytest.mark.parametrize("last", range(40))
@pytest.mark.parametrize("guess", [None, lambda *bounds: bounds[0], lambda *_: 10**9])
def test_the_last_number_is_found_however_bad_the_guesses(last, guess):
    """In about twice as many steps as halving takes, none of them at a bound."""
    tried = []

    def holds(number):
        tried.append(number)
        return number <= last

    assert last == last_holding(holds, 0, 40, guess=guess)
    assert all(0 < number < 40 for number in tried)
    assert len(tried) <= 2 * 6


def test_steps_are_multiples():
    """Sides of images are multiples of a stride."""
    assert 96 == last_holding(lambda side: side % 32 == 0 and side <= 100, 32, 320, step=32)


@pytest.mark.parametrize("limit", [*range(5, 400, 7), 1000])
def test_most_within_is_the_last_number_that_stays_within(limit):
    """Of bytes that rise in stairs, for limits between, at and above the steps."""

    def bytes_at(count):
        return 3 * count + 8 * (count // 10)

    expected = max((one for one in range(1, 101) if bytes_at(one) <= limit), default=1)

    assert (None if expected == 100 else expected) == most_within(bytes_at, limit, 1, 100)
