"""torchvision's detectors: images of any size, what the model makes of them, frozen stages."""

import pytest
import torch
import torchvision
from memplan_models.torchvision_detection import resized
from memplan_models.torchvision_stages import train_last_stages
from torchvision.models.detection.backbone_utils import _mobilenet_extractor, _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from memplan.errors import UsageError
from memplan.registry import make_workload

FASTER = "fasterrcnn_resnet50_fpn"
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def _model(name):
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, weights_backbone=None)


@pytest.mark.parametrize("name", [FASTER, SMALL, "ssd300_vgg16", "keypointrcnn_resnet50_fpn"])
def test_the_transform_is_the_models(name):
    """Heights and widths are those that torchvision itself resizes images to."""
    transform = _model(name).transform.eval()  # in evaluation the largest of several sizes is taken
    for height, width in ((640, 640), (800, 1333), (480, 640), (100, 900)):
        found, _ = transform([torch.zeros(3, height, width)])

        assert tuple(found.image_sizes[0]) == resized(name, height, width)


def test_images_have_the_height_and_width_that_are_given():
    """Both go to the batch, masks included, and the answer's size is the longer side."""
    workload = make_workload("torchvision:maskrcnn_resnet50_fpn", {"height": 48, "width": 96})
    batch = workload.make_batch(2)

    assert 96 == workload.image_size
    assert (2, 3, 48, 96) == tuple(batch["images"].shape)
    assert (2, 8, 48, 96) == tuple(batch["masks"].shape)
    assert float(batch["boxes"].max()) <= 48
    assert "48x96 (height x width) becomes 666x1333" in workload.notes()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 48}, "go together"),
        ({"height": 48, "width": 0}, "width=0 is no number of pixels"),
        ({"height": 48, "width": 96, "image_size": 64}, "--img 64 and --set height=48"),
    ],
)
def test_sizes_that_contradict_are_refused(arguments, message):
    """Half a size, none, or two end in a line."""
    with pytest.raises(UsageError, match=message):
        make_workload(f"torchvision:{FASTER}", arguments)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_stages_are_frozen_as_torchvision_freezes_a_pretrained_resnet(count):
    """The same parameters are trained, and the backbone's norms are fixed."""
    model = _model(FASTER)
    train_last_stages(model, FASTER, count)
    with torch.device("meta"):
        plain = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
        theirs = _resnet_fpn_extractor(plain, count)

    assert [n for n, p in theirs.named_parameters() if p.requires_grad] == [
        n for n, p in model.backbone.named_parameters() if p.requires_grad
    ]
    assert any(isinstance(one, FrozenBatchNorm2d) for one in model.backbone.modules())


@pytest.mark.parametrize("count", [0, 2, 6])
def test_stages_are_frozen_as_torchvision_freezes_a_pretrained_mobilenet(count):
    """MobileNet's stages begin at its strided blocks."""
    model = _model(SMALL)
    train_last_stages(model, SMALL, count)
    with torch.device("meta"):
        plain = torchvision.models.mobilenet_v3_large(norm_layer=FrozenBatchNorm2d)
        theirs = _mobilenet_extractor(plain, fpn=True, trainable_layers=count)

    assert [n for n, p in theirs.named_parameters() if p.requires_grad] == [
        n for n, p in model.backbone.named_parameters() if p.requires_grad
    ]


@pytest.mark.parametrize(("name", "count"), [("ssd300_vgg16", 1), (FASTER, 6), (FASTER, -1)])
def test_stages_that_are_not_there_are_refused(name, count):
    """A model without a pyramid, or a number that it has not, ends in a line."""
    with pytest.raises(UsageError, match=f"trainable_backbone_layers={count}: {name} has"):
        train_last_stages(_model(name), name, count)
