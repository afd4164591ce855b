"""torchvision's classifiers and detectors are workloads, each with its own losses and sizes."""

import numpy as np
import pytest
import torch

from memplan import tape as tapes
from memplan.errors import UnknownNameError, UsageError
from memplan.registry import make_workload
from memplan.trace.record import record
from memplan.workload import Choice, OptimizerSettings

# A region-based model, one of each kind without proposals, and the heads on top.
DETECTORS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fcos_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
)


def _counts(tape):
    names = np.array(tape.operator_names)[tape.operators.name]
    return dict(zip(*np.unique(names, return_counts=True), strict=True))


def _gradients(tape):
    events = tape.events
    rows = (events.kind == tapes.ALLOCATE) & (events.section == tapes.SECTIONS.index("micro_batch"))
    rows &= tape.block_category[events.block] == tapes.CATEGORY_INDEX["gradient"]
    return int(rows.sum())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_gives_every_parameter_a_gradient(name):
    """The summed losses reach all layers, at a small batch and size."""
    workload = make_workload(f"torchvision:{name}", {"image_size": 64, "objects_per_image": 2})
    tape = record(workload, 2, optimizer=OptimizerSettings(momentum=0.0))
    parameters = [p for p in workload.build_model().parameters() if p.requires_grad]

    assert len(parameters) == _gradients(tape)
    assert sum(p.numel() for p in parameters) == tape.description.parameters


@pytest.mark.parametrize(
    ("name", "side", "classes"),
    [
        ("fasterrcnn_resnet50_fpn", 800, 91),
        ("ssd300_vgg16", 300, 91),
        ("keypointrcnn_resnet50_fpn", 800, 2),
        ("resnet18", 224, 1000),
        ("inception_v3", 299, 1000),
    ],
)
def test_defaults_are_what_the_models_were_made_for(name, side, classes):
    """Sides and classes are those of the published training, unless given."""
    made = make_workload(f"torchvision:{name}")
    given = make_workload(f"torchvision:{name}", {"image_size": 96, "num_classes": 5})

    assert (side, classes) == (made.image_size, made.num_classes)
    assert (96, 5) == (given.image_size, given.num_classes)


def test_images_are_resized_as_the_model_does():
    """A detector sees its own side, whatever images it is given."""
    workload = make_workload(
        "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", {"image_size": 64}
    )
    tape = record(workload, 1)
    shapes = {module.path: module.output_shape for module in tape.modules}

    assert (1, 16, 160, 160) == shapes["backbone.body.0"]


def _choice(workload, shape, made_by, module, operator="aten.nonzero"):
    return workload.num_chosen(
        Choice(
            operator=operator,
            shape=shape,
            made_by=made_by,
            module=module,
            section="micro_batch",
            micro_batch_size=2,
        )
    )


def test_region_based_models_take_what_their_constructors_say():
    """2,000 proposals, 128 + 128 anchors, 512 boxes of which at most 128 positive."""
    few = make_workload("torchvision:fasterrcnn_resnet50_fpn", {"objects_per_image": 3})
    many = make_workload("torchvision:fasterrcnn_resnet50_fpn", {"objects_per_image": 40})

    assert 2000 == _choice(few, (8382,), "", "rpn", "torchvision.nms")
    assert 30 == _choice(few, (159882,), "aten.ge", "rpn")
    assert 159852 == _choice(few, (159882,), "aten.eq", "rpn")
    assert 256 == _choice(few, (319764,), "aten.cat", "rpn")
    assert 3 == _choice(few, (3, 159882), "aten.eq", "rpn")
    assert 512 == _choice(few, (2003,), "aten.bitwise_or", "roi_heads")
    assert 60 == _choice(few, (1024,), "aten.gt", "roi_heads")
    assert 256 == _choice(many, (1024,), "aten.gt", "roi_heads")


def test_more_positives_need_more_memory_in_the_mask_head():
    """A mask is predicted for each positive."""

    def activations(positives):
        workload = make_workload(
            "torchvision:maskrcnn_resnet50_fpn",
            {"image_size": 64, "objects_per_image": 2, "positives_per_object": positives},
        )
        tape = record(workload, 1)
        kept = tape.block_category == tapes.CATEGORY_INDEX["activation"]
        allocated = tape.events.kind == tapes.ALLOCATE
        return int(tape.events.requested_bytes[allocated & kept[tape.events.block]].sum())

    assert activations(4) < activations(32)


@pytest.mark.parametrize(
    ("name", "heads"), [("googlenet", 3), ("inception_v3", 2), ("resnet18", 1)]
)
def test_auxiliary_heads_have_losses(name, heads):
    """Every head's cross-entropy is part of the loss."""
    workload = make_workload(f"torchvision:{name}", {"num_classes": 3})
    tape = record(workload, 2)

    assert heads == _counts(tape)["aten.nll_loss_forward.default"]
    parameters = sum(1 for p in workload.build_model().parameters() if p.requires_grad)
    assert parameters == _gradients(tape)


@pytest.mark.parametrize(("name", "side"), [("vit_b_32", 64), ("vit_b_16", 32)])
def test_models_of_one_side_are_built_for_the_given_one(name, side):
    """Vision transformers take their side when they are built."""
    workload = make_workload(f"torchvision:{name}", {"image_size": side, "num_classes": 3})

    assert (2, 3) == record(workload, 2).modules[0].output_shape


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "words"),
    [
        ("fasterrcnn_resnet50", {}, UnknownNameError, "fasterrcnn_resnet50_fpn"),
        ("resnet18", {"objects_per_image": 3}, UsageError, "objects_per_image"),
        ("ssd300_vgg16", {"objects_per_image": 0}, UsageError, "objects-per-image 0 is below 1"),
        ("ssd300_vgg16", {"depth": 3}, UsageError, "depth"),
    ],
)
def test_what_is_not_there_is_refused(name, arguments, kind, words):
    """Names and arguments are checked when the workload is made."""
    with pytest.raises(kind, match=words):
        make_workload(f"torchvision:{name}", arguments)


def test_values_of_the_batch_do_not_depend_on_chance():
    """Two batches are equal, and boxes lie inside the images."""
    workload = make_workload("torchvision:ssd300_vgg16")
    one, two = workload.make_batch(2), workload.make_batch(2)

    assert all(torch.equal(one[name], two[name]) for name in one)
    assert 0 <= float(one["boxes"].min()) < float(one["boxes"].max()) <= 300
