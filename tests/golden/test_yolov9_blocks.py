"""Every block that a description may name gives what the official one does, from the same rows."""

import pytest
import torch
import yolov9_recipe as recipe
from memplan_models.yolov9.convert import drop_auxiliary, fuse
from memplan_models.yolov9.network import DetectionModel, main_maps, make_lean
from memplan_models.yolov9.parser import known_modules

_GOLDEN = recipe.golden("yolov9_blocks.json")
_STEM = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]]
_SEGMENTS = {
    "Segment",
    "DSegment",
    "DualDSegment",
}  # heads of another task, with tests of their own
_EXACT = ("Conv, no activation", "RepConvN", "Res", "CSP", "DWConv", "SPPF", "BottleneckCSP")


def _network(rows):
    """Return the network that benchmarks/official_blocks.py built of the rows."""
    ends = rows[-1][2].endswith("Detect")
    head = rows if ends else [*rows, [[len(_STEM) + len(rows) - 1], 1, "DDetect", ["nc"]]]
    parts = {"backbone": _STEM, "head": head}
    return DetectionModel(
        {"nc": 3, "depth_multiple": 0.67, "width_multiple": 0.5, "anchors": 3, **parts}
    )


def test_no_block_is_left_out():
    """What descriptions may name is what was compared with the official code."""
    compared = {row[2] for case in _GOLDEN.values() for row in case["rows"]}

    assert set() == {*known_modules()} - compared - _SEGMENTS


@pytest.mark.parametrize("name", _GOLDEN)
def test_a_block_is_the_official_one(name):
    """Entries, parameters, strides and outputs are those of the official network."""
    want = _GOLDEN[name]
    net = _network(want["rows"])
    net.load_state_dict(recipe.state_for(net))
    net.double().eval().head.training = True

    with torch.no_grad():
        found = net(recipe.image(1, 64, 64).double())

    assert want["state"] == recipe.fingerprint(net.state_dict())[0]
    assert want["parameters"] == sum(one.numel() for one in net.parameters())
    assert pytest.approx(want["strides"]) == list(net.strides)
    assert {} == recipe.all_differences(found, "out", want["outputs"], 1e-6)


@pytest.mark.parametrize("name", _EXACT)
def test_lean_blocks_train_alike(name):
    """Gradients of a block that keeps less are those of the plain one."""
    images = recipe.image(2, 64, 64).double()
    gradients = []
    for is_lean in (False, True):
        net = _network(_GOLDEN[name]["rows"])
        net.load_state_dict(recipe.state_for(net))
        net.double().train()
        assert not is_lean or make_lean(net)
        sum(one.square().sum() for one in net(images)).backward()
        gradients.append({key: one.grad for key, one in net.named_parameters()})

    for key, plain in gradients[0].items():
        if plain is not None:
            torch.testing.assert_close(gradients[1][key], plain, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", ["Conv, dilated", "DWConv", "ConvTranspose", "DualDetect", "Res"])
def test_merged_norms_change_nothing(name):
    """An export's network, norms merged and one branch, gives the main branch's maps."""
    net = _network(_GOLDEN[name]["rows"])
    net.load_state_dict(recipe.state_for(net))
    net.double().eval()
    images = recipe.image(1, 64, 64).double()

    with torch.no_grad():
        small = fuse(drop_auxiliary(net).net)
        for mine, theirs in zip(main_maps(small, images), main_maps(net, images), strict=True):
            torch.testing.assert_close(mine, theirs)
