"""The assigner: who gets which anchor, in how much memory, in however many parts."""

from __future__ import annotations

import weakref

import pytest
import torch
from memplan_models.yolov9.assigner import TaskAlignedAssigner
from memplan_models.yolov9.boxes import complete_iou, complete_iou_matrix
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Upper bound of the assigner's live temporaries a pair of box and anchor.
BYTES_PER_PAIR = 17
OFFICIAL_BYTES_PER_PAIR = 104  # yolov9 at 5b1ea9a8, measured on its own assigner


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside and still alive; `peak` is the most at once."""

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {self._key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, inputs)
        self.peak = max(self.peak, self.live)
        return out

    @staticmethod
    def _key(tensor):
        return tensor.untyped_storage()._cdata

    def _count(self, tensor, inputs):
        key, num_bytes = self._key(tensor), tensor.untyped_storage().nbytes()
        if key in inputs or key in self._known:
            return
        self._known.add(key)
        self.live += num_bytes
        weakref.finalize(tensor.untyped_storage(), self._release, key, num_bytes)

    def _release(self, key, num_bytes):
        self._known.discard(key)
        self.live -= num_bytes


def _random_boxes(generator, *shape, side=640.0, largest=160.0):
    centre = torch.rand(*shape, 2, generator=generator) * side
    half = torch.rand(*shape, 2, generator=generator) * largest / 2
    return torch.cat((centre - half, centre + half), -1)


def _batch(batch=4, num_boxes=50, dtype=torch.float32, nc=80):
    """Return the assigner's arguments at 640 pixels: 8400 anchors."""
    generator = torch.Generator().manual_seed(9)
    points = []
    for stride in (8, 16, 32):
        ticks = (torch.arange(640 // stride) + 0.5) * stride
        points.append(torch.cartesian_prod(ticks, ticks).flip(-1))
    anchors = torch.cat(points)
    targets = _random_boxes(generator, batch, num_boxes)
    labels = torch.randint(0, nc, (batch, num_boxes), generator=generator)
    labels[0, num_boxes // 2 :] = -1
    logits = torch.randn(batch, nc, len(anchors), generator=generator).to(dtype)
    around = _random_boxes(generator, batch, len(anchors), side=40.0)
    return logits, around + anchors.repeat(1, 2), anchors, labels, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_temporaries_stay_below_the_stated_bytes(dtype):
    """At B=4, M=50, A=8400 a pair of box and anchor costs a sixth of the official bytes."""
    arguments = _batch(dtype=dtype)

    with LiveBytes() as counter:
        TaskAlignedAssigner()(*arguments)

    per_pair = counter.peak / (4 * 50 * 8400)
    assert BYTES_PER_PAIR >= per_pair
    assert OFFICIAL_BYTES_PER_PAIR / 6 > per_pair


def test_parts_bound_the_temporaries():
    """One image at a time needs about a quarter of what a batch of four needs."""
    arguments = _batch()

    with LiveBytes() as counter:
        TaskAlignedAssigner(parts=4)(*arguments)

    assert BYTES_PER_PAIR * 50 * 8400 * 1.2 > counter.peak


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_parts_do_not_change_the_result(count):
    """The assignment is bit-equal in however many parts, more than there are images included."""
    arguments = _batch()
    whole = TaskAlignedAssigner()(*arguments)

    parts = TaskAlignedAssigner(parts=count)(*arguments)

    assert torch.equal(whole.box_index, parts.box_index)
    assert torch.equal(whole.score, parts.score)
    assert torch.equal(whole.foreground, parts.foreground)


def test_no_anchor_for_padding():
    """Rows of class -1 get no anchor, and images without boxes are all background."""
    logits, boxes, anchors, labels, targets = _batch(batch=2, num_boxes=6)
    labels[1] = -1

    result = TaskAlignedAssigner()(logits, boxes, anchors, labels, targets)

    assert 3 > int(result.box_index[0].max())
    assert not result.foreground[1].any()
    assert not result.score[1].any()


def test_scores_lie_where_the_foreground_is():
    """Each box's best anchor scores the best overlap of its anchors; background scores 0."""
    logits, boxes, anchors, labels, targets = _batch(batch=1, num_boxes=1)
    labels[:] = 7

    result = TaskAlignedAssigner()(logits, boxes, anchors, labels, targets)
    mine = result.foreground[0].nonzero().squeeze(1)
    overlap = complete_iou(targets[0].expand(len(mine), 4), boxes[0, mine]).clamp(min=0)

    assert 10 == len(mine)
    assert pytest.approx(float(overlap.max())) == float(result.score.max())
    assert 0 == float(result.score[~result.foreground].abs().sum())


def test_a_contested_anchor_goes_to_the_larger_overlap():
    """Of two boxes around one anchor, the one that the prediction overlaps more gets it."""
    anchors = torch.tensor([[16.0, 16.0]])
    predicted = torch.tensor([[[8.0, 8.0, 24.0, 24.0]]])
    targets = torch.tensor([[[2.0, 2.0, 30.0, 30.0], [8.0, 8.0, 25.0, 25.0]]])

    result = TaskAlignedAssigner()(
        torch.zeros(1, 3, 1), predicted, anchors, torch.tensor([[0, 1]]), targets
    )

    assert [[1]] == result.box_index.tolist()
    assert [[True]] == result.foreground.tolist()


def test_matrix_of_overlaps_equals_the_pairwise_formula():
    """The in-place matrix of CIoU equals the formula pair by pair."""
    generator = torch.Generator().manual_seed(3)
    rows, columns = _random_boxes(generator, 2, 7), _random_boxes(generator, 2, 40)

    expected = complete_iou(
        rows.unsqueeze(2).expand(2, 7, 40, 4), columns.unsqueeze(1).expand(2, 7, 40, 4)
    )

    assert torch.allclose(expected, complete_iou_matrix(rows, columns), rtol=0, atol=1e-6)
