"""Which batch is tried next, on cards whose memory is a line through the batch."""

import pytest

from memplan.recording.find_batch import MOST_TRIALS, BatchSearch
from memplan.script_answer import Trial

_MIB = 1 << 20


def searched(search, *, largest, error=lambda _: "", image_bytes=10 * _MIB):
    """Run the search on a card where `largest` is the largest batch that fits.

    `image_bytes` is what an image seems to take: where it is 0 there is no line to follow.
    """
    search.capacity_bytes = (500 + 10 * largest) * _MIB
    while len(search.trials) < 3 * MOST_TRIALS and (batch := search.next()) is not None:
        text = error(batch)
        used = min(search.capacity_bytes, 500 * _MIB + image_bytes * batch)
        search.add(
            Trial(
                batch=batch,
                runs=batch <= largest and not text,
                device_used_peak_bytes=used,
                error=text,
            )
        )
    return search


@pytest.mark.parametrize("first", [1, 7, 16, 5000])
@pytest.mark.parametrize("largest", [1, 2, 63, 777, 4096])
def test_the_largest_is_found_whatever_the_first(first, largest):
    """It runs, the next does not, in few trials."""
    search = searched(BatchSearch(first), largest=largest)

    assert largest == search.low
    assert largest + 1 == search.high
    assert len(search.trials) <= MOST_TRIALS


def test_a_tolerance_saves_trials():
    """The batch found is short of the largest by no more than that part."""
    search = searched(BatchSearch(16, tolerance=0.1), largest=777, image_bytes=0)
    exact = searched(BatchSearch(16), largest=777, image_bytes=0)

    assert 777 / 1.1 <= search.low <= 777
    assert len(search.trials) < len(exact.trials)


def test_none_runs():
    """Memory runs out at a single image: nothing is left to try."""
    search = searched(BatchSearch(16), largest=0)

    assert 0 == search.low
    assert [1, 2, 4, 8, 16] == sorted(search.trials)


def test_a_command_that_fails_at_its_own_batch_is_not_tried_again():
    """Its error is the answer."""
    search = searched(BatchSearch(16), largest=100, error=lambda _: "fails: KeyError: 'x'")

    assert [16] == list(search.trials)


def test_a_script_that_wants_its_batch_divisible_gets_multiples():
    """After one failure for another reason than memory, the search goes on in such steps."""
    search = searched(
        BatchSearch(16),
        largest=777,
        error=lambda batch: "fails: ValueError: not divisible" if batch % 8 else "",
    )

    assert 768 == search.low
    assert 1 >= sum(bool(trial.error) for trial in search.trials.values())


def test_a_data_set_that_is_smaller_than_the_batch_bounds_it():
    """What fails above a batch that runs is its upper bound."""
    search = searched(
        BatchSearch(8), largest=777, error=lambda b: "fails: ZeroDivisionError" if b > 400 else ""
    )

    assert 400 == search.low
    assert len(search.trials) <= MOST_TRIALS
