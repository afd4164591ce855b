"""Outputs, losses and gradients equal those of the official code within stated tolerances."""

from __future__ import annotations

import pytest
import torch
import yolov9_recipe as recipe
from memplan_models import yolov9
from memplan_models.yolov9.losses import DetectionLoss
from torch import nn

_GOLDEN = recipe.golden("yolov9_parity.json")
_BRANCHES = {"Single": 1, "Dual": 2, "Triple": 3}
_NETWORKS = [
    "yolov9-s",
    pytest.param("yolov9-c", marks=pytest.mark.slow),
    pytest.param("gelan-c", marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _filled(cfg):
    net = yolov9.build(cfg)
    net.load_state_dict(recipe.state_for(net))
    return net.double()


def _golden_batch(want):
    side = want["side"]
    rows = recipe.targets("main", want["boxes"], want["nc"])
    return recipe.image(want["batch"], side, side).double(), rows


@pytest.mark.parametrize("cfg", _NETWORKS)
def test_evaluation_outputs(cfg):
    """Decoded boxes, scores and maps in evaluation are the official ones."""
    want = _GOLDEN["models"][cfg]
    net = _filled(cfg).eval()
    images, _ = _golden_batch(want)

    with torch.no_grad():
        outputs = net(images)

    assert {} == recipe.all_differences(outputs, "eval", want["eval_fp64"], 1e-6)


@pytest.mark.parametrize("cfg", _NETWORKS)
def test_evaluation_with_calibrated_batch_norm(cfg):
    """Outputs stay equal when batch norm has the statistics of the images themselves."""
    want = _GOLDEN["models"][cfg]
    net = _filled(cfg)
    images, _ = _golden_batch(want)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0

    with torch.no_grad():
        net.train()(images)
        outputs = net.eval()(images)

    assert {} == recipe.all_differences(outputs, "eval", want["eval_calibrated_fp64"], 1e-5)


@pytest.mark.parametrize("cfg", _NETWORKS)
def test_training_step(cfg):
    """Raw maps, batch-norm buffers, loss and gradients of one step are the official ones."""
    want = _GOLDEN["models"][cfg]
    loss = want["fp64_network_fp32_loss"]
    net = _filled(cfg).train()
    images, rows = _golden_batch(want)

    outputs = net(images)
    found = recipe.all_differences(outputs, "train", want["train_fp64"], 1e-6)
    total, parts = yolov9.loss(net)(_to_float(outputs), rows)
    total.backward()

    assert {} == found
    assert {} == _buffer_differences(net, want)
    expected = [loss[k] for k in ("total", "box", "cls", "dfl")]
    assert pytest.approx(expected, rel=1e-5) == [total.item(), *parts.tolist()]
    gradients = {n: p.grad.norm() for n, p in net.named_parameters() if p.grad is not None}
    assert pytest.approx(loss["grad_norm_total"], rel=1e-4) == float(
        torch.stack(list(gradients.values())).norm()
    )
    floor = 1e-6 * loss["grad_norm_total"]
    named = {n: float(gradients[n]) for n in loss["grad_norm_named"]}
    assert pytest.approx(loss["grad_norm_named"], rel=1e-3, abs=1e-3 * floor) == named


@pytest.mark.parametrize("name", sorted(_GOLDEN["loss_cases"]))
def test_loss_of_given_maps(name):
    """Loss and gradients of given raw maps are the official ones, for one to three branches."""
    want = _GOLDEN["loss_cases"][name]
    case, kind = name.split("/")
    rows = recipe.targets(case, want["boxes"], want["nc"], *want["box_size"])
    size = (want["batch"], want["nc"] + 64, want["height"], want["width"])
    maps = [recipe.raw_maps(f"{case}|{j}", *size) for j in range(want["branches"])]
    for level in [level for branch in maps for level in branch]:
        level.requires_grad_()
    loss_fn = DetectionLoss(nc=want["nc"], branches=_BRANCHES[kind])

    total, parts = loss_fn(maps[0] if len(maps) == 1 else maps, rows)
    total.backward()

    found = {}
    for j, branch in enumerate(maps):
        for i, level in enumerate(branch):
            golden = want["grads"][f"{j}.{i}"]
            found |= recipe.differences(f"grad|{case}|{j}.{i}", level.grad, golden, 1e-4)
    expected = [want[k] for k in ("total", "box", "cls", "dfl")]
    assert pytest.approx(expected, rel=1e-5, abs=1e-11) == [total.item(), *parts.tolist()]
    assert {} == found


def _buffer_differences(net, want):
    # In float32 the official numbers carry noise; the golden file says how much.
    tolerance = max(1e-5, 10 * want["train_fp32_vs_fp64_rel"])
    state = net.state_dict()
    found = {}
    for name, golden in want["bn_after_one_train_forward"].items():
        found |= recipe.differences(name, state[name], golden, tolerance)
    return found


def _to_float(nested):
    if isinstance(nested, torch.Tensor):
        return nested.float()
    return [_to_float(item) for item in nested]
