"""Batches of every layout in pieces."""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from memplan.errors import BadInputError
from memplan.trainers.batches import joined, num_samples, split


@dataclass(frozen=True)
class Pair:
    """A batch of its owner's class."""

    x: torch.Tensor
    name: str = "pair"


ROWS = torch.arange(5)


def _rows(batch):
    """Return the tensors' rows of a batch, flat."""
    if isinstance(batch, torch.Tensor | np.ndarray):
        return [batch.tolist()]
    if isinstance(batch, Pair):
        return _rows(batch.x)
    members = batch.values() if hasattr(batch, "values") else batch
    return [rows for one in members for rows in _rows(one)]


@pytest.mark.parametrize(
    "batch",
    [
        ROWS,
        {"x": ROWS},
        [ROWS, ROWS],
        (ROWS, {"a": [ROWS]}),
        defaultdict(list, x=ROWS),
        OrderedDict(x=ROWS),
        Pair(ROWS),
        {"x": ROWS, "weights": np.arange(5)},
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_an_odd_batch_keeps_its_kind_and_each_sample_once(batch):
    """Five samples come as two and three, in a container of the same class."""
    (one, first), (two, second) = split(batch, 2)

    assert (2, 3) == (one, two)
    assert type(batch) is type(first) is type(second)
    both = zip(_rows(first), _rows(second), strict=True)
    assert all(a + b == [0, 1, 2, 3, 4] for a, b in both)


def test_lists_of_samples_of_any_size_are_split_by_sample():
    """Images of different sizes beside their targets, as torchvision's detectors take them."""
    images = [torch.ones(3, size, size) for size in (4, 5, 6)]
    targets = [{"boxes": torch.ones(n, 4)} for n in (2, 0, 7)]

    pieces = split((images, targets), 2)

    assert [1, 2] == [count for count, _ in pieces]
    assert [7] == [len(one["boxes"]) for one in pieces[1][1][1][1:]]
    assert images[1:] == pieces[1][1][0]


def test_a_list_of_dictionaries_is_one_of_samples():
    """As Detectron2 takes its batches."""
    samples = [{"image": torch.ones(3, 4, 4), "boxes": torch.ones(n, 4)} for n in (2, 5)]

    assert 2 == num_samples(samples)
    assert [samples[1]] == split(samples, 2)[1][1]


@pytest.mark.parametrize(
    "batch",
    [
        [{"image": torch.ones(3, 4)}, {"image": torch.ones(3, 4)}],
        ([torch.ones(3, 4), torch.ones(3, 4)], [torch.ones(3), torch.ones(3)]),
        {"text": "none"},
        None,
        7,
        iter([torch.ones(2)]),
    ],
    ids=["dicts", "lists", "text", "none", "number", "iterator"],
)
def test_a_batch_that_may_be_read_two_ways_or_none_is_refused(batch):
    """Guessing would split colour channels; the way out is named."""
    with pytest.raises(BadInputError, match=r"cannot be split\. Give guard"):
        split(batch, 2)


def test_more_pieces_than_samples_are_as_many_as_samples():
    """Nothing comes in empty pieces; a batch of none is one piece."""
    assert [1, 1] == [count for count, _ in split(torch.ones(2), 8)]
    assert [0] == [count for count, _ in split(torch.ones(0), 8)]


def test_what_pieces_brought_is_joined_as_the_batch_would_have_brought_it():
    """Rows in a row, numbers by their samples, anything else as the last piece has it."""
    one = {"rows": torch.ones(1), "loss": torch.tensor(4.0), "mean": 1.0, "name": "a"}
    two = {"rows": torch.ones(3), "loss": torch.tensor(0.0), "mean": 5.0, "name": "b"}

    whole = joined([(1, one), (3, two)])

    assert (4, 1.0, 4.0, "b") == (
        len(whole["rows"]),
        float(whole["loss"]),
        whole["mean"],
        whole["name"],
    )
