"""The convolutional networks of the xMem study, as its training loop fed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.xmem_step import Batch, Training

IMAGE_SIZE = 86
# The study's name: torchvision's, and outputs. Its MobileNetV3 and MNASNet are spelled out there
# and equal the stock ones but for the outputs.
# Source: `perf_estimator/models.py` of the artifact, which lists every network of the study.
CNNS = {
    "VGG11": ("vgg11", 1000),
    "VGG16": ("vgg16", 1000),
    "VGG19": ("vgg19", 1000),
    "ResNet50": ("resnet50", 1000),
    "ResNet101": ("resnet101", 1000),
    "ResNet152": ("resnet152", 1000),
    "MobileNetV2": ("mobilenet_v2", 1000),
    "MobeNetV3Small": ("mobilenet_v3_small", 10),
    "MobeNetV3Large": ("mobilenet_v3_large", 10),
    "MnasNet": ("mnasnet1_0", 10),
    "ConvNeXtTiny": ("convnext_tiny", 1000),
    "ConvNeXtBase": ("convnext_base", 1000),
    "RegNetX400MF": ("regnet_x_400mf", 1000),
    "RegNetX32GF": ("regnet_x_32gf", 1000),
    "RegNetY400MF": ("regnet_y_400mf", 1000),
    "RegNetY32GF": ("regnet_y_32gf", 1000),
}


def cnn_training(
    name: str, optimizer: str, batch_size: int, *, zeroes_before_forward: bool
) -> Training:
    """Return the training of one of `CNNS` on CIFAR-10 images enlarged to 86 x 86.

    Args:
        name: the network, as the study calls it.
        optimizer: class in `torch.optim`.
        batch_size: images, >= 1.
        zeroes_before_forward: see `Training`.
    """
    return Training(
        build_model=_maker(name),
        make_batch=lambda: _images(batch_size),
        compute_loss=_cross_entropy,
        after_step=lambda outputs: torch.max(outputs, 1),
        optimizer=optimizer,
        zeroes_before_forward=zeroes_before_forward,
    )


def _maker(name: str) -> Callable[[], torch.nn.Module]:
    import torchvision

    stock, num_classes = CNNS[name]

    def build() -> torch.nn.Module:
        model: torch.nn.Module
        model = torchvision.models.get_model(stock, weights=None, num_classes=num_classes)
        return model.train()

    return build


def _images(batch_size: int) -> Batch:
    return {
        "images": torch.zeros(batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
        "labels": torch.zeros(batch_size, dtype=torch.int64),
    }


def _cross_entropy(model: torch.nn.Module, batch: Batch) -> tuple[Any, torch.Tensor]:
    outputs = model(batch["images"])
    return outputs, torch.nn.functional.cross_entropy(outputs, batch["labels"])
