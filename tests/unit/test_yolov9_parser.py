"""Model description files that users bring, in the official form."""

from __future__ import annotations

import pytest
import torch
from memplan_models import yolov9
from torch import nn

from memplan.errors import BadInputError

OFFICIAL_FORM = """
nc: 5
depth_multiple: {depth}
width_multiple: {width}
anchors: 3
{extra}
backbone:
  [[-1, 1, Conv, [32, 3, 2]],
   [-1, 1, Conv, [64, 3, 2]],
   [-1, 3, RepNCSPELAN4, [64, 32, 16, 1]],
   [-1, 1, nn.Upsample, [None, 2, 'nearest']],
   [[-1, 0], 1, Concat, [1]],
  ]
head:
  [[-1, 1, {module}, {args}],
   [[5], 1, DDetect, [nc]],
  ]
"""


def _write(folder, depth=1.0, width=1.0, extra="", module="ADown", args="[64]"):
    path = folder / "mine.yaml"
    path.write_text(
        OFFICIAL_FORM.format(depth=depth, width=width, extra=extra, module=module, args=args),
        encoding="utf-8",
    )
    return path


def test_description_gives_classes_and_strides(tmp_path):
    """Classes come from the file unless given; strides follow from the layers."""
    net = yolov9.build(_write(tmp_path))

    assert 5 == net.nc
    assert (4.0,) == net.strides
    assert 2 == yolov9.build(_write(tmp_path), nc=2).nc
    assert (1, 69, 16, 16) == tuple(net.train()(torch.zeros(1, 3, 64, 64))[0].shape)


def test_multiples_scale_width_and_depth(tmp_path):
    """Width rounds up to a multiple of 8, and repeats become a sequence."""
    net = yolov9.build(_write(tmp_path, depth=0.67, width=0.3))

    assert 16 == net.model[0].conv.out_channels
    assert 24 == net.model[1].conv.out_channels
    assert isinstance(net.model[2], nn.Sequential)
    assert 2 == len(net.model[2])


def test_activation_is_looked_up_by_its_text(tmp_path):
    """An activation known by its official text replaces SiLU in this network."""
    net = yolov9.build(_write(tmp_path, extra="activation: nn.LeakyReLU(0.1)"))

    assert isinstance(net.model[0].act, nn.LeakyReLU)


def test_text_is_never_evaluated(tmp_path):
    """An activation or argument that is Python code is refused and not run."""
    spy = tmp_path / "ran"
    code = f"open('{spy}', 'w')"

    with pytest.raises(BadInputError, match=r"is not known\. Known: nn\.GELU"):
        yolov9.build(_write(tmp_path, extra=f'activation: "{code}"'))
    with pytest.raises(BadInputError, match="Row 5"):
        yolov9.build(_write(tmp_path, args=f'["{code}"]'))

    assert not spy.exists()


def test_unknown_module_is_named_with_the_known_ones(tmp_path):
    """The message says which module is unknown and which there are."""
    with pytest.raises(BadInputError, match=r"Module 'C3k2' .* Known: .*ADown, .*DualDDetect.*"):
        yolov9.build(_write(tmp_path, module="C3k2"))


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        ("CBLinear", "[[16, 16]]", "only CBFuse can read a CBLinear"),
        ("ELAN1", "[64]", "Row 5"),
        ("DualDDetect", "[nc]", "needs 2 branch"),
    ],
)
def test_rows_that_cannot_be_built_are_named(tmp_path, module, args, message):
    """A row with wrong arguments or inputs is quoted with the reason."""
    with pytest.raises(BadInputError, match=message):
        yolov9.build(_write(tmp_path, module=module, args=args))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: [", "it is no YAML"),
        ("nc: 3", "describes no model"),
        ("nc: 3\nbackbone: [[-1, Conv]]\nhead: []", "Row 0"),
        ("nc: 3\nbackbone: [[-1, 1, Conv, [8]]]\nhead: []", "last row must be a head"),
    ],
)
def test_files_that_describe_no_model_are_refused(tmp_path, text, message):
    """Broken YAML, missing lists, malformed rows and a missing head are told apart."""
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(BadInputError, match=message):
        yolov9.build(path)


def test_missing_file_is_named(tmp_path):
    """A path that does not exist is an error of one line."""
    with pytest.raises(BadInputError, match=r"none\.yaml does not exist"):
        yolov9.build(tmp_path / "none.yaml")
