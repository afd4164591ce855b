"""Every configuration that ships has the state_dict and the outputs of the official network."""

from __future__ import annotations

import pytest
import torch
import yolov9_recipe as recipe
from memplan_models import yolov9

_MODELS = recipe.golden("yolov9_shapes.json")["models"]


@pytest.fixture(params=sorted(_MODELS))
def case(request):
    """A configuration built on the meta device, beside its golden facts."""
    with torch.device("meta"):
        return yolov9.build(request.param), _MODELS[request.param]


def test_names_are_the_official_configurations():
    """Exactly the configurations of the official repository ship."""
    assert sorted(_MODELS) == yolov9.names()


def test_state_dict_fingerprint(case):
    """Names and shapes of all state_dict entries are the official ones."""
    net, want = case

    expected = (want["fingerprint_key_shape"], want["fingerprint_keys"])

    assert expected == recipe.fingerprint(net.state_dict())


def test_layers_and_parameters(case):
    """Layer types, their parameters, saved indices and strides are the official ones."""
    net, want = case

    assert want["layer_types"] == [type(m).__name__ for m in net.model]
    assert want["layer_parameters"] == [sum(p.numel() for p in m.parameters()) for m in net.model]
    assert want["trainable_parameters"] == sum(
        p.numel() for p in net.parameters() if p.requires_grad
    )
    assert want["saved_indices"] == net.save
    assert tuple(want["strides"]) == net.strides


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_output_shapes(case, mode):
    """Outputs are nested, ordered and shaped as the official heads return them."""
    net, want = case
    net.train(mode == "train")

    with torch.no_grad():
        outputs = recipe.named_tensors(net(torch.zeros(1, 3, 256, 256, device="meta")), "out")

    expected = want[f"{mode}_shapes_1x3x256x256"]
    assert expected == [[name, list(tensor.shape)] for name, tensor in outputs.items()]
