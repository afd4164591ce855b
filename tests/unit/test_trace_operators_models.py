"""Whole training steps: every operator they call is understood."""

import pytest

from memplan.registry import make_workload
from memplan.spec import StepSpec
from memplan.trace.record import record

MODELS = (
    "yolov9-t",
    "torchvision:resnet18",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_32",
    "torchvision:swin_t",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:densenet121",
    "torchvision:regnet_y_400mf",
    "torchvision:googlenet",
)


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("precision", "memory_format"),
    [("amp-fp16", "contiguous"), ("amp-bf16", "channels-last"), ("fp32", "contiguous")],
)
def test_no_operator_of_a_training_step_is_unknown(name, precision, memory_format):
    """Model, loss, clipping, optimizer, average and validation call what has a rule."""
    settings = StepSpec(precision=precision, memory_format=memory_format)
    tape = record(make_workload(name), 2, settings)

    assert {} == tape.description.unknown_operators
