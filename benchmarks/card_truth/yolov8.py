"""YOLOv8's smallest networks, described from their published architecture.

Channels and repeats are those of the n scale; the numbers of parameters that training logs print
check the description. Blocks, assigner and loss are this project's own: YOLOv8's detector has the
head, the task-aligned assigner and the loss terms that YOLOv9's single-branch networks have.
"""

from __future__ import annotations

from typing import Any

import torch
from memplan_models.yolov9.blocks import Conv
from memplan_models.yolov9.heads import Detect
from memplan_models.yolov9.losses import DetectionLoss
from memplan_models.yolov9.workload import YoloV9
from torch import Tensor, nn

from memplan.workload import Batch, OptimizerSettings, Workload

_CLASSIFIER_WIDTH = 1280


class C2f(nn.Module):
    """A map split in two, one half through residual blocks, everything joined."""

    def __init__(self, inputs: int, outputs: int, blocks: int, *, adds: bool) -> None:
        super().__init__()
        self.half = outputs // 2
        self.cv1 = Conv(inputs, outputs)
        self.cv2 = Conv((2 + blocks) * self.half, outputs)
        self.blocks = nn.ModuleList(_Block(self.half, adds=adds) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, outputs, H, W]`."""
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        joined: Tensor = self.cv2(torch.cat(parts, 1))
        return joined


class _Block(nn.Module):
    def __init__(self, channels: int, *, adds: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels, 3), Conv(channels, channels, 3)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.adds else y


class _Pooling(nn.Module):
    """Three poolings after one another, joined (SPPF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        joined: Tensor = self.cv2(torch.cat(maps, 1))
        return joined


def _backbone() -> list[nn.Module]:
    """Return the stages down to strides 8, 16 and 32."""
    return [
        nn.Sequential(
            Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32, 1, adds=True),
            Conv(32, 64, 3, 2), C2f(64, 64, 2, adds=True),
        ),
        nn.Sequential(Conv(64, 128, 3, 2), C2f(128, 128, 2, adds=True)),
        nn.Sequential(Conv(128, 256, 3, 2), C2f(256, 256, 1, adds=True)),
    ]  # fmt: skip


class Detector(nn.Module):
    """YOLOv8n: raw maps in training, (decoded, maps) in evaluation."""

    def __init__(self, nc: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_backbone())
        self.pooling = _Pooling(256)
        self.up = nn.Upsample(scale_factor=2)
        self.up16, self.up8 = C2f(384, 128, 1, adds=False), C2f(192, 64, 1, adds=False)
        self.down16, self.down32 = Conv(64, 64, 3, 2), Conv(128, 128, 3, 2)
        self.out16, self.out32 = C2f(192, 128, 1, adds=False), C2f(384, 256, 1, adds=False)
        self.head = Detect(nc, (64, 128, 256), (8, 16, 32))

    def forward(self, x: Tensor) -> Any:
        """Return what the head returns for images `[B, 3, H, W]`."""
        at8 = self.stages[0](x)
        at16 = self.stages[1](at8)
        at32 = self.pooling(self.stages[2](at16))
        mid = self.up16(torch.cat((self.up(at32), at16), 1))
        small = self.up8(torch.cat((self.up(mid), at8), 1))
        middle = self.out16(torch.cat((self.down16(small), mid), 1))
        large = self.out32(torch.cat((self.down32(middle), at32), 1))
        return self.head([small, middle, large])


class YoloV8n(YoloV9):
    """YOLOv8n trained as the YOLOv9 workload trains: average, validation at twice the batch."""

    def __init__(self, *, num_classes: int, image_size: int, objects_per_image: int) -> None:
        super().__init__(
            "gelan-t",  # for the recipe; the network is built below
            num_classes=num_classes,
            image_size=image_size,
            objects_per_image=objects_per_image,
        )
        self.name = "yolov8n"
        self._loss = DetectionLoss(nc=num_classes)

    def build_model(self) -> Any:
        """Return the network in training mode."""
        return Detector(self.num_classes).train()

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and its parts."""
        return self._loss(model(batch["images"]), batch["targets"])

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return decoded boxes and probabilities."""
        decoded: Tensor = model(batch["images"])[0]
        return decoded

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return decoded boxes and the loss of the same maps, which the package takes as well."""
        decoded, maps = model(batch["images"])
        return decoded, self._loss(maps, batch["targets"])[1]

    def parameter_groups(
        self, model: nn.Module, settings: OptimizerSettings
    ) -> list[dict[str, Any]]:
        """Return one group of all parameters."""
        del settings
        return [{"params": list(model.parameters())}]


class Classifier(nn.Module):
    """YOLOv8n-cls."""

    def __init__(self, nc: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*_backbone())
        self.conv = Conv(256, _CLASSIFIER_WIDTH)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(_CLASSIFIER_WIDTH, nc)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, nc]`."""
        logits: Tensor = self.linear(self.pool(self.conv(self.stages(x))).flatten(1))
        return logits


class YoloV8nClassifier(Workload):
    """YOLOv8n-cls with a moving average, validated at twice the batch."""

    keeps_average = True
    deterministic = True
    cublas_workspace_config = ":4096:8"
    clip_gradient_norm = 10.0

    def __init__(self, *, num_classes: int, image_size: int) -> None:
        self.name = "yolov8n-cls"
        self.num_classes, self.image_size = num_classes, image_size

    def build_model(self) -> nn.Module:
        """Return the network in training mode."""
        return Classifier(self.num_classes).train()

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, S, S]` float32 and labels."""
        side = self.image_size
        return {
            "images": torch.zeros(micro_batch_size, 3, side, side),
            "labels": torch.zeros(micro_batch_size, dtype=torch.int64),
        }

    def make_validation_batch(self, micro_batch_size: int) -> Batch:
        """Return twice the training batch."""
        return self.make_batch(2 * micro_batch_size)

    def compute_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy."""
        loss = nn.functional.cross_entropy(model(batch["images"]), batch["labels"])
        return loss, loss.detach()[None]
