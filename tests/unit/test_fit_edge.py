"""The largest batch that fits is one that was recorded, and so is the next."""

import itertools

import pytest

from memplan.fit.edge import MOST_IMAGES, Verdict, largest_fitting

LIMIT = 1_000_000
CURVES = {
    "line": lambda n: 5_000 + 300 * n,
    "square": lambda n: 5_000 + n + n * n // 7,
    "cube": lambda n: n**3,
    "stairs": lambda n: 5_000 + 4_096 * -(-n // 13),
    "threshold": lambda n: 5_000 + 10 * n + (900 * n if n >= 700 else 0),
    "nearly flat": lambda n: 999_000 + n // 90,
    "root": lambda n: int(30_000 * n**0.5),
}


class Recorded:
    """A curve that is asked batch by batch, and remembers which."""

    def __init__(self, curve, runs_to=MOST_IMAGES):
        self.curve, self.runs_to = curve, runs_to
        self.asked, self.failures = [], {}

    def __call__(self, batches):
        """Return verdicts on those batches that run."""
        self.asked += batches
        self.failures |= {n: "it raises" for n in batches if n > self.runs_to}
        runs = [n for n in batches if n <= self.runs_to]
        return {n: Verdict(self.curve(n) <= LIMIT, self.curve(n)) for n in runs}

    def largest(self, known=(16, 32), **options):
        """Return what is found, from a few known batches."""
        return largest_fitting(self, self(list(known)), LIMIT, failures=self.failures, **options)


@pytest.mark.parametrize("known", [(16, 32), (1, 64), (5,), (4_000, 9_000)])
@pytest.mark.parametrize("name", CURVES)
def test_the_edge_of_any_rising_curve_is_found(name, known):
    """Whatever was known before: the largest that fits, with the next one asked too."""
    recorded = Recorded(CURVES[name])
    found = recorded.largest(known)
    expected = next(n for n in itertools.count() if CURVES[name](n + 1) > LIMIT)

    assert (expected, True) == (found.batch, found.is_edge)
    assert {expected, expected + 1} <= {0, *recorded.asked}
    assert len(recorded.asked) <= 40


def test_a_right_guess_costs_two_recordings():
    """The expected batch and the next, side by side, end the search."""
    recorded = Recorded(CURVES["line"])

    assert 3_316 == recorded.largest(guess=lambda: 3_316).batch
    assert [16, 32, 3_316, 3_317] == recorded.asked


def test_a_wrong_guess_does_no_harm():
    """Far too small, far too large, or beyond all that is looked into: the answer is the same."""
    for guess in (1, 40, 3_000, 500_000, 1 << 30):
        assert 2_635 == Recorded(CURVES["square"]).largest(guess=lambda: guess).batch  # noqa: B023


@pytest.mark.parametrize("guess", [1, MOST_IMAGES])
def test_no_wrong_guess_leads_far_beyond_what_is_known_at_once(guess):
    """A step that loops over its images would be recorded for hours."""
    recorded = Recorded(CURVES["line"])

    assert 3_316 == recorded.largest([1, 2], guess=lambda: guess).batch
    assert max(recorded.asked) < MOST_IMAGES // 10


@pytest.mark.parametrize("known", [(1,), (4,), (1, 8), (16, 900), (5_000,)])
def test_where_luck_decides_what_is_known_makes_no_difference(known):
    """Memory that rises and falls has many edges; the one at the guess is found."""
    recorded = Recorded(lambda n: 66 * n + 40_000 * (n % 5))

    assert 14_001 == recorded.largest(known, guess=lambda: 14_001).batch


def test_batches_that_do_not_run_bound_what_was_checked():
    """The largest that runs is answered, and why no larger one was checked."""
    found = Recorded(CURVES["line"], runs_to=300).largest(guess=lambda: 3_316)

    assert (300, False) == (found.batch, found.is_edge)
    assert "batch 301 could not be checked (it raises)" == found.unchecked


def test_none_may_fit():
    """Where not even one image fits, that one was recorded."""
    recorded = Recorded(lambda n: LIMIT + n)

    assert (0, True) == (recorded.largest().batch, recorded.largest().is_edge)
    assert 1 in recorded.asked


def test_what_is_not_looked_into_is_said():
    """Where the largest that is looked into fits, it is the answer, and no more is claimed."""
    found = Recorded(lambda _: 7).largest(most=500)

    assert (500, "batches above 500 were not looked into") == (found.batch, found.unchecked)


def test_luck_beyond_a_batch_that_does_not_fit_is_taken():
    """A larger batch that is known to fit is the lower bound, as fragmentation may have it."""
    recorded = Recorded(lambda n: LIMIT + 1 if n == 20 else 300 * n)
    found = recorded.largest((16, 20, 32))

    assert 3_333 == found.batch
