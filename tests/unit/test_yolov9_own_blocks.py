"""A user's own blocks in a model description: what they are given, and who may name them."""

import sys

import pytest
import torch
from memplan_models import yolov9
from memplan_models.yolov9.convert import drop_auxiliary

from memplan.errors import BadInputError, UsageError
from memplan.registry import make_workload

BLOCKS = """
import torch
from torch import nn


class C2f(nn.Module):
    def __init__(self, c1, c2, n=1, shortcut=False):
        super().__init__()
        self.n, self.shortcut = n, shortcut
        self.cv = nn.Conv2d(c1, c2, 3, padding=1)

    def forward(self, x):
        return self.cv(x)


class Attention(nn.Module):
    def __init__(self, channels, ratio=4):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels // ratio, 1)
        self.up = nn.Conv2d(channels // ratio, channels, 1)

    def forward(self, x):
        return x * self.up(self.fc(x.mean((2, 3), keepdim=True))).sigmoid()


class Weighted(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.w = nn.Parameter(torch.ones(count))

    def forward(self, xs):
        return sum(w * x for w, x in zip(self.w, xs))


class Halve(nn.Module):
    def forward(self, x):
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1)


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)


class MP(nn.Module):
    def forward(self, x):
        return x[..., ::4, ::4]
"""
DESCRIPTION = """
nc: 3
depth_multiple: 0.67
width_multiple: 0.5
backbone:
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 3, C2f, [32, True]]
  - [-1, 1, Attention, [8]]
head:
  - [[-1, 1], 1, Weighted, [2]]
  - [-1, 1, Halve, []]
  - [-1, 1, {last}, []]
  - [[-1], 1, DDetect, [nc]]
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A module of blocks beside a description that names them; a function writes the latter."""
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts/blocks.py").write_text(BLOCKS)
    (tmp_path / "empty_parts.py").write_text("from own_parts.blocks import C2f\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])

    def write(last="MP"):
        (tmp_path / "mine.yaml").write_text(DESCRIPTION.format(last=last))
        return "mine.yaml"

    yield write
    for name in ("own_parts", "own_parts.blocks", "empty_parts"):
        sys.modules.pop(name, None)


def test_own_blocks_get_what_their_constructors_name(written):
    """Channels, the scaled width and repeats go where a constructor has them; strides follow."""
    net = yolov9.build(written(), blocks="own_parts.blocks")

    many, attention = net.model[1], net.model[2]
    assert (16, 16, 2, True) == (many.cv.in_channels, many.cv.out_channels, many.n, many.shortcut)
    assert (16, 2) == (attention.fc.in_channels, attention.fc.out_channels)
    assert 2 == len(net.model[3].w)
    assert 32 == net.head.cv2[0][0].conv.in_channels
    assert (16.0,) == net.strides  # the own MP, of four, not the known one, of two
    assert (1, 67, 4, 4) == tuple(net(torch.zeros(1, 3, 64, 64))[0].shape)
    assert 3 == drop_auxiliary(net).net.nc


def test_an_unknown_block_names_both_ways_out(written):
    """The message says `--blocks` and the checkout that knows the block."""
    with pytest.raises(BadInputError, match=r"'C2f' .* --blocks package\.module, .*official:PATH"):
        yolov9.build(written())


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("no_such_module", "'no_such_module' cannot be imported"),
        ("empty_parts", "'empty_parts' defines no torch.nn.Module"),
    ],
)
def test_a_module_without_blocks_is_told(written, blocks, message):
    """What cannot be imported, or only imports blocks itself, ends in a line."""
    with pytest.raises(BadInputError, match=message):
        yolov9.build(written(), blocks=blocks)


def test_what_gives_no_map_is_told_with_its_row(written):
    """A block whose result is no image is refused by its row."""
    with pytest.raises(BadInputError, match=r"Row 5 .*it gives no map"):
        yolov9.build(written("Flat"), blocks="own_parts.blocks")


def test_only_descriptions_take_blocks(written):
    """The workload imports them when it builds; another family refuses the option by name."""
    workload = make_workload(written(), {"blocks": "own_parts.blocks", "image_size": 64})

    assert "C2f" in {type(one).__name__ for one in workload.build_model().modules()}
    with pytest.raises(UsageError, match="--blocks"):
        make_workload("torchvision:resnet18", {"blocks": "own_parts.blocks"})
