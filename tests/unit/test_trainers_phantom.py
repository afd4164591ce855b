"""The guard meets PyTorch's own out-of-memory error, raised by its allocator."""

import functools
import re
from pathlib import Path

import pytest
from trainers_child import allocate, deferred_spike, leak, spike, untouched

import memplan
from memplan.device import catalogue
from memplan.errors import UsageError
from memplan.phantom.child import PhantomChild
from memplan.trainers.phantom_step import runs

VARIABLES = {"PYTHONPATH": str(Path(__file__).parent)}


def test_the_allocators_own_error_is_survived():
    """A card of 600 MiB has no room for 16384 samples (64 MiB a layer) at once, but for pieces.

    Forward and backward pass together, and a backward pass that a loop starts itself.
    """
    card = catalogue.card("rtx-3090")
    capacity = 600 << 20
    with PhantomChild(card, capacity_bytes=capacity, other_bytes=0, variables=VARIABLES) as child:
        answers = [child.call(step, {"samples": 16384}) for step in (spike, deferred_spike)]

    for pieces, has_gradients, messages in answers:
        assert pieces in (2, 4, 8)
        assert has_gradients
        assert messages
        assert all(message.startswith("CUDA out of memory.") for message in messages)


def test_a_leak_is_found_by_the_watch_and_a_steady_loop_finds_nothing():
    """What stays allocated grows by 2 MiB a step; the loop goes on."""
    card = catalogue.card("rtx-3090")
    with PhantomChild(card, capacity_bytes=2 << 30, variables=VARIABLES) as child:
        steady = child.call(leak, {"steps": 100, "kib": 0})
        leaking = child.call(leak, {"steps": 150, "kib": 2048})

    assert [] == steady
    assert "leak" == leaking[0][0]


def test_the_largest_batch_is_found_to_the_sample():
    """On a card of 1 GiB the batch that is found runs, and one sample of 2 MiB more does not."""
    card = catalogue.card("rtx-3090")
    step = {"module": "trainers_child", "name": "allocate"}

    largest = memplan.find_batch(allocate, card=card, capacity_bytes=1 << 30)

    assert 100 < largest <= 512
    with PhantomChild(card, capacity_bytes=1 << 30, variables=VARIABLES) as child:
        assert child.call(runs, {**step, "batch": largest})["fits"]
        assert not child.call(runs, {**step, "batch": largest + 1})["fits"]


def test_a_step_that_leaves_the_card_untouched_is_refused():
    """One that stays on the CPU would fit with any batch."""
    with pytest.raises(UsageError, match=r"untouched\(1\) leaves the card untouched"):
        memplan.find_batch(untouched, card="rtx-3090")


def test_an_error_of_the_step_names_the_users_line():
    """In one line, which `find_batch` raises in the process that asked."""
    found = runs("trainers_child", "broken", 1)

    assert not found["fits"]
    assert re.fullmatch(r"ValueError: shapes 3 and 4 \(trainers_child\.py:\d+\)", found["error"])


@pytest.mark.parametrize(
    ("step", "options", "words"),
    [
        (lambda _: None, {}, "cannot be imported"),
        (functools.partial(allocate), {}, "not a partial"),
        ("allocate", {}, "not a str"),
        (allocate, {"card": None}, "card=None"),
        (allocate, {"most": "9"}, "most='9'"),
        (allocate, {"most": 0}, "most=0"),
    ],
)
def test_wrong_arguments_are_refused_before_a_process_starts(step, options, words):
    """A lambda lives in this process alone; types and ranges are told."""
    with pytest.raises(UsageError, match=words):
        memplan.find_batch(step, **{"card": "rtx-3090", **options})
