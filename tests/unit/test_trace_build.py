"""Models are built with values where they need them, and recorded without."""

from __future__ import annotations

import pytest
import torch

from memplan.registry import make_workload
from memplan.trace.build import build, make_fake
from memplan.trace.fake_cuda import fake_cuda


@pytest.mark.parametrize("name", ["torchvision:regnet_y_400mf", "torchvision:swin_t", "yolov9-t"])
def test_a_model_built_without_filling_weights_has_all_its_parameters(name):
    """RegNet computes its depths with tensors; a model built on fake ones would be too small."""
    workload = make_workload(name, {})

    shapes = [tuple(p.shape) for p in workload.build_model().parameters()]

    assert shapes == [tuple(p.shape) for p in build(workload).parameters()]


def test_made_fake_keeps_shapes_strides_types_and_sharing():
    """A weight used in two places stays one weight; integers and frozen weights stay so."""
    one, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    other.weight = one.weight
    one.bias.requires_grad_(requires_grad=False)
    model = torch.nn.Sequential(one, other, torch.nn.BatchNorm1d(3))
    before = {name: (t.shape, t.stride(), t.dtype) for name, t in model.state_dict().items()}

    with fake_cuda():
        made = make_fake(model)

        assert before == {n: (t.shape, t.stride(), t.dtype) for n, t in made.state_dict().items()}
        assert made[0].weight is made[1].weight
        assert not made[0].bias.requires_grad
        assert all(isinstance(p, torch.nn.Parameter) for p in made.parameters())
