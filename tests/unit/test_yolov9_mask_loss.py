"""The loss of masks: gradients, padding, no objects, precision, what it keeps."""

from __future__ import annotations

import pytest
import torch
from memplan_models.yolov9.losses import pad_targets
from memplan_models.yolov9.mask_loss import SegmentationLoss, _CroppedCrossEntropy
from torch._subclasses import FakeTensorMode

NC, SIDE, K = 3, 64, 8
_ROWS = torch.tensor([[0.0, 1.0, 0.4, 0.5, 0.5, 0.6], [1.0, 2.0, 0.5, 0.5, 0.7, 0.4]])


def _given(dtype=torch.float32, **place):
    """Return maps, coefficients and prototypes of two images."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape):
        return torch.randn(shape, generator=generator).to(dtype=dtype, **place).requires_grad_()

    maps = [drawn(2, 64 + NC, SIDE // s, SIDE // s) for s in (8, 16, 32)]
    anchors = sum(level[0, 0].numel() for level in maps)
    return maps, drawn(2, K, anchors), drawn(2, K, SIDE // 4, SIDE // 4)


def _masks():
    masks = torch.zeros(2, SIDE // 4, SIDE // 4, dtype=torch.int16)
    masks[0, 4:12, 3:10] = 1
    masks[1, 5:11, 3:13] = 1
    return masks


def test_gradients_are_the_slopes_of_the_loss():
    """Numerical differentiation of mixtures and prototypes agrees, across all parts of them."""
    generator = torch.Generator().manual_seed(1)
    mixtures = torch.randn(2, 12, 3, generator=generator, dtype=torch.double).requires_grad_()
    prototypes = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.double).requires_grad_()
    masks = torch.randint(0, 4, (2, 4, 5), generator=generator)
    wanted = torch.randint(1, 4, (2, 12), generator=generator)
    corners = torch.tensor([0.5, 0.2, 4.0, 3.5], dtype=torch.double).expand(2, 12, 4)
    weight = torch.rand(2, 12, generator=generator, dtype=torch.double)

    assert torch.autograd.gradcheck(
        lambda a, b: _CroppedCrossEntropy.apply(a, b, masks, wanted, corners, weight),
        (mixtures, prototypes),
    )


def test_only_pixels_within_the_box_count():
    """Of a mask of one row, columns from 1 up to 3 are judged: two pixels of log 2 each."""
    total = _CroppedCrossEntropy.apply(
        torch.zeros(1, 1, 1),
        torch.zeros(1, 1, 1, 6),
        torch.ones(1, 1, 6, dtype=torch.int16),
        torch.ones(1, 1, dtype=torch.int64),
        torch.tensor([[[1.0, 0.0, 3.0, 1.0]]]),
        torch.ones(1, 1),
    )

    assert pytest.approx(2 * 0.6931472) == total.item()


def test_padding_changes_nothing():
    """Rows of class -1 behind an image's objects have no part in the loss."""
    padded = pad_targets(_ROWS, 2)
    wide = torch.cat((padded, torch.tensor([-1.0, 0, 0, 0, 0]).expand(2, 4, 5)), 1)
    loss = SegmentationLoss(nc=NC)

    expected, parts = loss(_given(), padded, _masks())

    assert 0 < parts[1]
    assert pytest.approx(expected.item(), rel=1e-6) == loss(_given(), wide, _masks())[0].item()


@pytest.mark.parametrize(
    "targets", [torch.zeros(0, 6), torch.full((2, 3, 5), -1.0)], ids=["no rows", "all padding"]
)
def test_without_objects_the_loss_is_finite(targets):
    """The official loss divides by no object; here classification alone is left."""
    given = _given()

    total, parts = SegmentationLoss(nc=NC)(given, targets, _masks() * 0)
    total.backward()

    assert [0.0, 0.0, 0.0] == parts[[0, 1, 3]].tolist()
    assert 0 < total.item() < float("inf")
    assert all(level.grad.isfinite().all() for level in given[0])


def test_masks_are_made_in_single_precision():
    """Half-precision outputs under autocast give the loss of their values in float32."""
    maps, mixtures, prototypes = _given(torch.bfloat16)
    loss = SegmentationLoss(nc=NC)

    with torch.autocast("cpu", torch.bfloat16):
        _, parts = loss((maps, mixtures, prototypes), _ROWS, _masks())
    full = ([level.float() for level in maps], mixtures.float(), prototypes.float())
    _, expected = loss(full, _ROWS, _masks())

    assert pytest.approx(expected[1].item(), rel=1e-5) == parts[1].item()


def test_no_mask_is_kept_for_backward():
    """What autograd keeps is as large as coefficients and prototypes, not as the masks."""
    kept = []
    maps, mixtures, prototypes = _given()

    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        SegmentationLoss(nc=NC)((maps, mixtures, prototypes), _ROWS, _masks())

    one_of_each = 2 * 10 * (SIDE // 4) ** 2  # of two images, of ten anchors each
    assert one_of_each > max(kept)


def test_the_loss_is_recorded_on_a_gpu_that_is_not_there():
    """No step asks for a value, so sizes follow from shapes alone; coarser masks are resized."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        masks = torch.zeros(2, 8, 8, dtype=torch.int16, device="cuda")
        maps = [torch.empty(2, 64 + NC, SIDE // s, SIDE // s) for s in (8, 16, 32)]
        given = (maps, torch.empty(2, K, 84), torch.empty(2, K, 16, 16))
        total, parts = SegmentationLoss(nc=NC)(given, torch.empty(2, 2, 5), masks)

    assert ("cuda", (4,)) == (total.device.type, tuple(parts.shape))
