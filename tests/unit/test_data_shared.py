"""Shared memory gives back what was put in, here and in a loader process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from memplan_models.yolo_data.shared import SharedSequence

from memplan.processes import CleanContext


def _as_it_is(item):
    return item


class _Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


def _elsewhere(items):
    """Return the items as a loader process reads them."""
    loader = torch.utils.data.DataLoader(
        _Items(items),
        batch_size=None,
        num_workers=1,
        collate_fn=_as_it_is,
        multiprocessing_context=CleanContext(),
    )
    return list(loader)


def test_a_sequence_gives_equal_objects():
    """By place from either end, in slices, and all of them."""
    items = [Path("a"), ("b", 2), None, {"c": np.arange(3)}]
    shared = SharedSequence(items)

    assert 4 == len(shared)
    assert items[:3] == [shared[0], shared[1], shared[-2]]
    assert items[:3] == shared[:3]
    assert [0, 1, 2] == shared[3]["c"].tolist()
    with pytest.raises(IndexError):
        shared[4]


def test_an_empty_sequence_is_empty():
    """Nothing is shared, and nothing found."""
    assert [] == list(SharedSequence([]))


def test_a_process_reads_the_same():
    """It is sent descriptors, not the objects."""
    items = [Path("a"), ("b", 2), "c" * 100_000]

    assert items == _elsewhere(SharedSequence(items))
