"""Networks with masks and their loss equal the official code within stated tolerances."""

from __future__ import annotations

import pytest
import torch
import yolov9_recipe as recipe
from memplan_models.yolov9.arguments import CFG_FOLDER
from memplan_models.yolov9.convert import drop_auxiliary
from memplan_models.yolov9.mask_loss import SegmentationLoss
from memplan_models.yolov9.network import DetectionModel
from memplan_models.yolov9.parser import read_description

_GOLDEN = recipe.golden("yolov9_segment.json")


def _narrow(cfg, width):
    """Return a configuration with its channels, also those that no multiple scales, times width."""
    description = read_description(CFG_FOLDER / f"{cfg}.yaml") | {"width_multiple": width}
    for row in [*description["backbone"], *description["head"]]:
        if row[2] == "CBLinear":
            row[3] = [[int(channels * width) for channels in row[3][0]]]
    return DetectionModel(description, 80, cfg)


@pytest.mark.parametrize("cfg", sorted(_GOLDEN["networks"]))
def test_outputs(cfg):
    """Boxes, scores, coefficients and prototypes are the official ones, in both modes."""
    want = _GOLDEN["networks"][cfg]
    net = _narrow(cfg, want["width_multiple"])
    net.load_state_dict(recipe.state_for(net))
    images = recipe.image(1, 64, 96).double()

    with torch.no_grad():
        evaluated = net.double().eval()(images)
        trained = net.train()(images)

    assert {} == recipe.all_differences(evaluated, "eval", want["eval"], 1e-6)
    assert {} == recipe.all_differences(trained, "train", want["train"], 1e-6)


def test_the_main_branch_is_bit_identical_without_the_auxiliary_one():
    """Boxes, coefficients and prototypes of yolov9-c-dseg stay, in a network with one branch."""
    net = _narrow("yolov9-c-dseg", 0.25).eval()
    net.load_state_dict(recipe.state_for(net))
    images = recipe.image(1, 64, 96)

    small = drop_auxiliary(net).net
    with torch.no_grad():
        expected = recipe.named_tensors(net(images), "eval")
        found = recipe.named_tensors(small(images), "eval")

    assert ("DSegment", 1) == (type(small.head).__name__, small.head.branches)
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def _ellipses(rows, batch, height, width):
    """Return which row each pixel belongs to: that whose box's ellipse has its middle, the last."""
    masks = torch.zeros(batch, height, width, dtype=torch.int16)
    down, across = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    for image in range(batch):
        for number, (_, _, x, y, w, h) in enumerate(rows[rows[:, 0] == image].tolist(), start=1):
            inside = ((across - x) / (w / 2)) ** 2 + ((down - y) / (h / 2)) ** 2 < 1
            masks[image][inside] = number
    return masks


def _given(name, want):
    """Return the outputs that a golden case was measured with, and them by their golden names."""
    batch, height, width = want["batch"], want["height"], want["width"]
    label = f"seg {name}"
    maps = [
        recipe.raw_maps(f"{label}|{j}", batch, 64 + want["nc"], height, width)
        for j in range(want["branches"])
    ]
    anchors = sum(level[0, 0].numel() for level in maps[0])
    mixtures = [
        recipe.uniform(f"mix|{name}|{j}", (batch, 32, anchors), -1, 1) for j in range(len(maps))
    ]
    prototypes = [
        recipe.uniform(f"proto|{name}|{j}", (batch, 32, height // 4, width // 4), -1, 1)
        for j in range(len(maps))
    ]
    named = {f"map.{j}.{i}": x for j, levels in enumerate(maps) for i, x in enumerate(levels)}
    named |= {f"mix.{j}": x for j, x in enumerate(mixtures)}
    named |= {f"proto.{j}": x for j, x in enumerate(prototypes)}
    for tensor in named.values():
        tensor.requires_grad_()
    return (maps, mixtures, prototypes), named


@pytest.mark.parametrize("case", sorted(_GOLDEN["loss_cases"]))
def test_loss(case):
    """Loss, its parts and gradients of given outputs are the official ones."""
    want = _GOLDEN["loss_cases"][case]
    name = case.split("/")[0]
    rows = recipe.targets(f"seg {name}", want["boxes"], want["nc"], *want["box_size"])
    coarse = 4 * want["coarse"]
    masks = _ellipses(rows, want["batch"], want["height"] // coarse, want["width"] // coarse)
    outputs, named = _given(name, want)
    if want["branches"] == 1:
        outputs = tuple(part[0] for part in outputs)
    loss = SegmentationLoss(nc=want["nc"], branches=want["branches"])

    total, parts = loss(outputs, rows, masks)
    total.backward()

    assert pytest.approx([want["total"], *want["parts"]], rel=2e-6) == [
        total.item(),
        *parts.tolist(),
    ]
    found = {}
    for key, tensor in named.items():
        found |= recipe.differences(f"grad|{name}|{key}", tensor.grad, want["grads"][key], 1e-4)
    assert {} == found
