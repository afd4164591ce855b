"""Building networks: initial state, devices, sizes of images, blocks to recompute."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from memplan_models import yolov9
from torch import nn
from torch._subclasses import FakeTensorMode

from memplan.errors import BadInputError, UnknownNameError


@pytest.fixture(scope="module")
def tiny():
    """A freshly built yolov9-t."""
    return yolov9.build("yolov9-t", nc=3)


def test_unknown_name_suggests_the_nearest():
    """A misspelt configuration is answered with the nearest one."""
    with pytest.raises(UnknownNameError, match=r"'yolov9_s'. Did you mean 'yolov9-s'\?"):
        yolov9.build("yolov9_s")


def test_class_number_must_be_positive():
    """A class number below 1 is refused with its value."""
    with pytest.raises(BadInputError, match="nc is 0"):
        yolov9.build("yolov9-t", nc=0)


def test_batch_norm_starts_in_the_official_state(tiny):
    """Batch norm has the official constants and the statistics after one zero image."""
    norms = [m for m in tiny.modules() if isinstance(m, nn.BatchNorm2d)]

    assert {(1e-3, 0.03)} == {(m.eps, m.momentum) for m in norms}
    assert {1} == {int(m.num_batches_tracked) for m in norms}
    assert all(bool((m.running_var == torch.tensor(0.9)).all()) for m in norms)
    assert all(not m.running_mean.any() for m in norms)


def test_activations_work_in_place(tiny):
    """Every SiLU is in-place and belongs to one block, so that it has a path of its own."""
    activations = [m for _, m in tiny.named_modules(remove_duplicate=False) if type(m) is nn.SiLU]

    assert all(m.inplace for m in activations)
    assert len(activations) == len(set(map(id, activations)))


def test_relu_configurations_stay_by_themselves():
    """`gelan` uses ReLU throughout, and a network built after it still has SiLU."""
    with torch.device("meta"):
        relu, silu = yolov9.build("gelan"), yolov9.build("gelan-t")

    assert {nn.ReLU} == {type(m) for m in relu.modules() if isinstance(m, nn.ReLU | nn.SiLU)}
    assert {nn.SiLU} == {type(m) for m in silu.modules() if isinstance(m, nn.ReLU | nn.SiLU)}


def test_head_biases(tiny):
    """Box biases are 1; class biases expect five objects an image of 640 pixels."""
    for scores in (tiny.head.cv3, tiny.head.cv5):
        for stack, stride in zip(scores, (8, 16, 32), strict=True):
            expected = math.log(5 / 3 / (640 / stride) ** 2)
            assert pytest.approx([expected] * 3) == stack[-1].bias.tolist()
    for boxes in (tiny.head.cv2, tiny.head.cv4):
        assert all(bool((stack[-1].bias == 1).all()) for stack in boxes)


def test_builds_and_runs_on_a_fake_gpu():
    """A network builds and evaluates on a GPU that is not there, at changing image sizes."""
    with FakeTensorMode():
        with torch.device("cuda"):
            net = yolov9.build("gelan-t", nc=3).eval()
        with torch.no_grad():
            shapes = [
                tuple(net(torch.empty(2, 3, h, w, device="cuda"))[0].shape)
                for h, w in ((128, 128), (96, 160), (128, 128))
            ]

    assert "cuda" == next(net.parameters()).device.type
    assert [(2, 7, 336), (2, 7, 315), (2, 7, 336)] == shapes


def test_evaluation_follows_size_and_precision(tiny):
    """Evaluating one size or precision leaves nothing behind that another would trip over."""
    net = copy.deepcopy(tiny).eval()
    images = torch.rand(1, 3, 64, 96)

    with torch.no_grad():
        first = net(images)[0][1]
        net(torch.rand(1, 3, 128, 64))
        net.double()(images.double())
        again = net.float()(images)[0][1]

    assert torch.equal(first, again)


def test_recompute_blocks_are_layers_with_parameters(tiny):
    """Pooling, joining and the head are no blocks to recompute; the others are."""
    blocks = yolov9.recompute_blocks(tiny)

    assert "model.0" == blocks[0]
    assert "model.28" == blocks[-1]
    assert not {"model.10", "model.11", "model.29"} & set(blocks)
    assert all(any(True for _ in tiny.get_submodule(b).parameters()) for b in blocks)


def test_importing_the_package_does_not_import_torch():
    """Listing names stays quick because torch comes with the first network."""
    code = (
        "import sys; from memplan_models import yolov9; yolov9.names();"
        " print('torch' in sys.modules)"
    )

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert "False\n" == result.stdout


def test_loss_stays_a_function_after_its_first_use(tiny):
    """`yolov9.loss` is not shadowed by a module of that name."""
    yolov9.loss(tiny)

    assert yolov9.loss(tiny).branches == 2
