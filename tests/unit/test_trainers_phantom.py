"""The guard meets PyTorch's own out-of-memory error, raised by its allocator."""

from pathlib import Path

import pytest
from trainers_child import allocate, deferred_spike, spike

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


def test_the_largest_batch_is_found_to_the_sample():
    """On a card of 1 GiB the batch that is found runs, and one sample of 2 MiB more does not."""
    card = catalogue.card("rtx-3090")
    step = {"module": "trainers_child", "name": "allocate"}

    largest = memplan.find_batch(allocate, card=card, capacity_bytes=1 << 30)

    assert 100 < largest <= 512
    with PhantomChild(card, capacity_bytes=1 << 30, variables=VARIABLES) as child:
        assert child.call(runs, {**step, "batch": largest})
        assert not child.call(runs, {**step, "batch": largest + 1})


def test_a_step_that_cannot_be_imported_is_refused():
    """A lambda lives in this process alone."""
    with pytest.raises(UsageError, match="cannot be imported"):
        memplan.find_batch(lambda _: None, card="rtx-3090")
