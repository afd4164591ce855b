"""Operators one by one: what a recording asks for, beside PyTorch's own code on phantom cards."""

import pytest

from benchmarks import phantom_operators
from benchmarks.phantom_operators import Compared

# Recorded as an operator without a rule, and told of as such.
WITHOUT_RULE = {"cdist"}


@pytest.mark.parametrize("card", ["rtx-3090", "h100-80gb"])
def test_operators_ask_for_what_pytorch_asks(card):
    """Blocks are taken and given back alike, under deterministic algorithms, too."""
    found = list(phantom_operators.run([card]))

    assert 500 < len(found)
    assert WITHOUT_RULE == {one.name for one in found if not one.is_alike}


def test_blocks_of_another_size_or_order_are_no_twins():
    """Only what goes back between two allocations may go in any order."""
    taken = [8, 16, -8, -16]

    def alike(phantom):
        return Compared("t4", "toys", "toy", taken, phantom).is_alike

    assert alike([8, 16, -16, -8])
    assert not alike([16, 8, -16, -8])
    assert not alike([8, 17, -17, -8])
    assert not alike([8, 16, -8])
