"""The training loss: forms of targets, no targets, traceability, precision."""

from __future__ import annotations

import pytest
import torch
from memplan_models import yolov9
from memplan_models.yolov9.losses import DetectionLoss, LossGains, pad_targets
from torch._subclasses import FakeTensorMode

from memplan.errors import UsageError

NC = 4


def _maps(batch=2, side=128, dtype=torch.float32, **kwargs):
    generator = torch.Generator().manual_seed(1)
    shapes = [(batch, 64 + NC, side // s, side // s) for s in (8, 16, 32)]
    maps = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [m.to(**kwargs).requires_grad_() for m in maps]


def _rows():
    return torch.tensor(
        [
            [1.0, 2.0, 0.5, 0.5, 0.4, 0.6],
            [0.0, 3.0, 0.3, 0.3, 0.2, 0.2],
            [1.0, 0.0, 0.6, 0.4, 0.5, 0.3],
        ]
    )


def test_pad_targets_keeps_the_order_of_each_image():
    """Rows come grouped by image, in their order, padded with class -1 and zeros."""
    padded = pad_targets(_rows(), 3)

    assert (3, 2, 5) == tuple(padded.shape)
    assert [[3, -1], [2, 0], [-1, -1]] == padded[..., 0].tolist()
    assert torch.equal(_rows()[2, 1:], padded[1, 1])
    assert 0 == float(padded[2, :, 1:].abs().sum())


def test_pad_targets_of_no_rows():
    """Without rows M is 0."""
    assert (4, 0, 5) == tuple(pad_targets(torch.zeros(0, 6), 4).shape)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(2, 5), r"shape \[2, 5\]; rows must be \[n, 6\]"),
        (torch.full((1, 6), 2.0), "image 2 .* batch of 2"),
    ],
)
def test_pad_targets_refuses_what_does_not_fit(rows, message):
    """A wrong shape or an image outside the batch is named."""
    with pytest.raises(UsageError, match=message):
        pad_targets(rows, 2)


def test_all_forms_of_targets_give_one_loss():
    """Rows, padded rows, more padding, and a mask mean the same."""
    loss = DetectionLoss(nc=NC)
    padded = pad_targets(_rows(), 2)
    wide = torch.cat((padded, torch.full((2, 3, 5), -1.0)), 1)
    unmasked = wide.clone()
    unmasked[..., 0].clamp_(min=0)
    forms = [_rows(), padded, wide, (unmasked, wide[..., 0] >= 0)]

    values = [torch.stack((t, *p)).tolist() for t, p in (loss(_maps(), f) for f in forms)]

    for value in values[1:]:
        assert pytest.approx(values[0], rel=1e-6) == value


def test_total_is_the_sum_of_parts_times_the_batch():
    """The total is scaled by the batch size, the parts are not."""
    total, parts = DetectionLoss(nc=NC)(_maps(), _rows())

    assert pytest.approx(2 * float(parts.sum())) == total.item()
    assert not parts.requires_grad


def test_gains_scale_their_parts():
    """Each gain multiplies its own part."""
    _, plain = DetectionLoss(nc=NC)(_maps(), _rows())
    gains = LossGains(box=15.0, cls=1.5, dfl=3.0)
    _, scaled = DetectionLoss(nc=NC, gains=gains)(_maps(), _rows())

    assert pytest.approx([2.0, 3.0, 2.0]) == (scaled / plain).tolist()


@pytest.mark.parametrize("gains", [LossGains(cls_pw=2.0), LossGains(fl_gamma=1.5)])
def test_classification_options_change_only_classification(gains):
    """The weight of positives and the focusing exponent act on the classification loss alone."""
    _, plain = DetectionLoss(nc=NC)(_maps(), _rows())
    _, other = DetectionLoss(nc=NC, gains=gains)(_maps(), _rows())

    assert plain[[0, 2]].tolist() == other[[0, 2]].tolist()
    assert plain[1].item() != other[1].item()


@pytest.mark.parametrize(
    "targets",
    [torch.zeros(0, 6), torch.zeros(2, 0, 5), torch.full((2, 3, 5), -1.0)],
    ids=["no rows", "M = 0", "all padding"],
)
def test_without_targets_only_classification_counts(targets):
    """Box and dfl are 0 and every gradient is finite; padding alone is the same as nothing."""
    maps = _maps()

    total, parts = DetectionLoss(nc=NC)(maps, targets)
    total.backward()

    reference, _ = DetectionLoss(nc=NC)(_maps(), torch.zeros(0, 6))
    assert [0.0, 0.0] == parts[[0, 2]].tolist()
    assert pytest.approx(reference.item()) == total.item()
    assert all(m.grad.isfinite().all() for m in maps)
    assert all(not m.grad[:, :64].any() for m in maps)


def test_tiny_and_degenerate_boxes_give_finite_gradients():
    """Boxes that hold no anchor centre, of no height, or as large as the image do no harm."""
    maps = _maps()
    rows = torch.tensor(
        [
            [0.0, 1.0, 0.5, 0.5, 1e-4, 1e-4],
            [0.0, 1.0, 0.5, 0.5, 0.5, 0.0],
            [1.0, 1.0, 0.5, 0.5, 1.0, 1.0],
        ]
    )

    total, _ = DetectionLoss(nc=NC)(maps, rows)
    total.backward()

    assert total.isfinite()
    assert all(m.grad.isfinite().all() for m in maps)


def test_assigner_parts_leave_the_loss_bit_equal():
    """Assigning a batch in parts changes no bit of the loss."""
    whole = DetectionLoss(nc=NC)(_maps(), _rows())
    parted = DetectionLoss(nc=NC, assigner_parts=2)(_maps(), _rows())

    assert torch.equal(whole[0], parted[0])
    assert torch.equal(whole[1], parted[1])


@pytest.mark.parametrize("num_boxes", [0, 1, 40])
def test_loss_traces_on_a_fake_gpu(num_boxes):
    """No step asks the device for a value or has a shape that depends on the data.

    Fake tensors raise on either, so that the loss passes is the proof.
    """
    with FakeTensorMode():
        with torch.device("cuda"):
            net = yolov9.build("yolov9-t", nc=NC)
        images = torch.empty(2, 3, 128, 128, device="cuda")
        targets = torch.empty(2, num_boxes, 5, device="cuda")

        total, parts = yolov9.loss(net)(net.train()(images), targets)

    assert "cuda" == total.device.type
    assert (3,) == tuple(parts.shape)
    assert total.requires_grad


def test_backward_keeps_little_more_than_logits_and_scores():
    """What one branch keeps for backward is class logits, target scores and little else."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        DetectionLoss(nc=80)(
            [m.detach().repeat(1, 3, 1, 1)[:, :144].requires_grad_() for m in _maps(side=640)],
            _rows(),
        )

    total_bytes = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert 2 * 8400 * 80 * 4 * 2 * 1.05 > total_bytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_give_a_float32_loss(dtype):
    """Maps of half precision are taken in, and everything inside is float32."""
    maps = _maps(dtype=dtype)
    same_values = [m.detach().float() for m in maps]
    expected, _ = DetectionLoss(nc=NC)(same_values, _rows())

    total, _ = DetectionLoss(nc=NC)(maps, _rows())
    total.backward()

    assert torch.float32 == total.dtype
    assert pytest.approx(expected.item(), rel=1e-3) == total.item()
    assert [dtype] * 3 == [m.grad.dtype for m in maps]


def test_autocast_changes_nothing_inside():
    """Under autocast no step of the loss falls back to half precision."""
    expected, _ = DetectionLoss(nc=NC)(_maps(dtype=torch.bfloat16), _rows())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = DetectionLoss(nc=NC)(_maps(dtype=torch.bfloat16), _rows())

    assert torch.equal(expected, total)


def test_targets_of_another_batch_are_refused():
    """Padded targets whose batch is not that of the maps are named with both sizes."""
    with pytest.raises(UsageError, match=r"shape \[3, 1, 5\]; they must be \[2, M, 5\]"):
        DetectionLoss(nc=NC)(_maps(), torch.zeros(3, 1, 5))
