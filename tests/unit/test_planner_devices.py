"""Unequal cards sharing one batch."""

import itertools

import pytest

from memplan.planner.devices import best_sharing, seconds_between, share


def _line(start, slope):
    return lambda batch: start + slope * batch


@pytest.mark.parametrize("total", range(3, 16))
def test_no_other_sharing_is_done_earlier(total):
    """Of three cards the greedy shares end as early as the best of all that fit."""
    largest = (4, 9, 6)
    seconds = (_line(1, 3), _line(2, 1), _line(0, 2))
    everything = [
        split
        for split in itertools.product(*(range(1, most + 1) for most in largest))
        if sum(split) == total
    ]
    best = min(max(at(n) for n, at in zip(split, seconds, strict=True)) for split in everything)

    chosen = share(total, largest, seconds)

    assert total == sum(chosen)
    assert best == max(at(n) for n, at in zip(chosen, seconds, strict=True))


def test_the_slower_card_takes_fewer_images():
    """A card of half the speed takes half as many."""
    assert (8, 4) == share(12, (64, 64), (_line(0, 1), _line(0, 2)))


def test_cards_too_small_share_nothing():
    """More images than fit, or fewer than cards, are no sharing."""
    seconds = (_line(0, 1), _line(0, 1))

    assert share(9, (4, 4), seconds) is None
    assert share(1, (4, 4), seconds) is None


def test_accumulation_makes_room():
    """Sixteen images on cards of 4 and 2 need accumulation, in equal steps of the batch."""
    sharing = best_sharing(16, (4, 2), (_line(1, 1), _line(1, 2)))

    assert 4 == sharing.accumulation_steps
    assert 4 == sum(sharing.micro_batches)


def test_nothing_fits_is_none():
    """Where a card takes not even one image there is no sharing."""
    assert best_sharing(8, (8, 0), (_line(0, 1), _line(0, 1))) is None


def test_times_between_known_sizes_lie_on_a_line():
    """Half way between two batches is half way between their times."""
    assert 3.0 == seconds_between([1, 3], [2.0, 4.0])(2)
