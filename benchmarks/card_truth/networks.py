"""Networks of published runs, as workloads of their plain loops."""

from __future__ import annotations

from collections.abc import Callable

import torch

from memplan.errors import BadInputError
from memplan.workload import Batch, Workload


class ImageClassifier(Workload):
    """A network trained with cross-entropy and validated at the same batch.

    Args:
        name: what to call it.
        make_model: returns the network.
        image_size: side of the square images, pixels.
        smoothing: of the labels, as a loss of its own that keeps the logarithms.
        sends_bytes: whether images go to the device as uint8 and are normalized there.
    """

    def __init__(
        self,
        name: str,
        make_model: Callable[[], torch.nn.Module],
        image_size: int,
        *,
        smoothing: float = 0.0,
        sends_bytes: bool = False,
    ) -> None:
        self.name = name
        self.image_size = image_size
        self._make_model = make_model
        self._smoothing = smoothing
        self._sends_bytes = sends_bytes

    def build_model(self) -> torch.nn.Module:
        """Return the network in training mode."""
        return self._make_model().train()

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, S, S]` and labels `[B]` int64."""
        side = self.image_size
        dtype = torch.uint8 if self._sends_bytes else torch.float32
        return {
            "images": torch.zeros(micro_batch_size, 3, side, side, dtype=dtype),
            "labels": torch.zeros(micro_batch_size, dtype=torch.int64),
        }

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with float images, normalized in place where they came as bytes."""
        if not self._sends_bytes:
            return batch
        return {**batch, "images": batch["images"].float().sub_(0.5).div_(0.5)}

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss."""
        outputs, labels = model(batch["images"]), batch["labels"]
        if self._smoothing:
            logs = torch.nn.functional.log_softmax(outputs, dim=-1)
            picked = -logs.gather(dim=-1, index=labels.unsqueeze(1)).squeeze(1)
            loss = (1 - self._smoothing) * picked + self._smoothing * -logs.mean(dim=-1)
            loss = loss.mean()
        else:
            loss = torch.nn.functional.cross_entropy(outputs, labels)
        return loss, loss.detach()[None]

    def make_validation_batch(self, micro_batch_size: int) -> Batch:
        """Return as many images as in training."""
        return self.make_batch(micro_batch_size)


def of_library(library: str, network: str, num_classes: int) -> Callable[[], torch.nn.Module]:
    """Return what makes a network of torchvision or timm with random weights.

    Raises:
        BadInputError: timm is not installed.
    """
    if library == "torchvision":
        import torchvision

        name, _, note = network.partition(" without ")
        more = {"aux_logits": False, "init_weights": False} if note else {}
        return lambda: torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **more
        )
    try:
        import timm
    except ImportError:
        raise BadInputError(
            f"{network} is timm's, which is not installed. "
            "`pip install -c constraints.txt '.[benchmarks]'` does."
        ) from None
    return lambda: timm.create_model(network, pretrained=False, num_classes=num_classes)


class SegmentNetwork(Workload):
    """A temporal segment network: frames of a video through one ResNet, their features averaged.

    Source: Wang et al. 2016, "Temporal segment networks"; head and dropout as mmaction2's published
    configuration states them (`configs/_base_/models/tsn_r50.py` at e81f8b51).

    Args:
        depth: of the ResNet.
        segments: frames a video.
        channels: of a frame; optical flow has two for each of five images.
        num_classes: classes.
        binary: whether each class is a decision of its own.
    """

    clip_gradient_norm = 40.0

    def __init__(
        self, depth: int, segments: int, channels: int, num_classes: int, *, binary: bool
    ) -> None:
        self.name = f"tsn_r{depth}"
        self.image_size = 224
        self._depth, self._segments, self._channels = depth, segments, channels
        self._classes, self._binary = num_classes, binary

    def build_model(self) -> torch.nn.Module:
        """Return the network in training mode."""
        import torchvision

        resnet = torchvision.models.get_model(
            f"resnet{self._depth}", weights=None, num_classes=self._classes
        )
        if self._channels != resnet.conv1.in_channels:
            resnet.conv1 = torch.nn.Conv2d(self._channels, 64, 7, stride=2, padding=3, bias=False)
        return _Segments(resnet, self._segments).train()

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return frames `[B, T, C, S, S]` float32, normalized on the host, and labels."""
        side, wide = self.image_size, self._classes if self._binary else 0
        shape = (micro_batch_size, wide) if wide else (micro_batch_size,)
        return {
            "images": torch.zeros(micro_batch_size, self._segments, self._channels, side, side),
            "labels": torch.zeros(shape, dtype=torch.float32 if wide else torch.int64),
        }

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss."""
        functional = torch.nn.functional
        measure = functional.cross_entropy
        if self._binary:
            measure = functional.binary_cross_entropy_with_logits
        loss = measure(model(batch["images"]), batch["labels"])
        return loss, loss.detach()[None]


class _Segments(torch.nn.Module):
    """A ResNet over all frames, whose pooled features are averaged before the last layer."""

    def __init__(self, resnet: torch.nn.Module, segments: int) -> None:
        super().__init__()
        self.last = resnet.fc
        resnet.fc = torch.nn.Identity()
        self.resnet = resnet
        self.dropout = torch.nn.Dropout(0.4)
        self._segments = segments

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return logits `[B, classes]` of frames `[B, T, C, S, S]`."""
        features = self.resnet(frames.flatten(0, 1))
        mean = features.unflatten(0, (-1, self._segments)).mean(1)
        return self.last(self.dropout(mean))
