"""Every classification model of torchvision as a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memplan.errors import UnknownNameError, UsageError
from memplan.workload import Batch, Workload

if TYPE_CHECKING:
    import torch


class Classification(Workload):
    """A torchvision classifier trained with cross-entropy on random images.

    Args:
        model_name: as `torchvision.models.list_models` spells it.
        image_size: side of the square images, pixels.
        num_classes: classes of the last layer.
    """

    def __init__(self, model_name: str, *, image_size: int = 224, num_classes: int = 1000) -> None:
        self.name = f"torchvision:{model_name}"
        self.image_size = image_size
        self.num_classes = num_classes
        self._model_name = model_name

    def build_model(self) -> torch.nn.Module:
        """Return the model with random weights."""
        import torchvision

        model: torch.nn.Module = torchvision.models.get_model(
            self._model_name, weights=None, num_classes=self.num_classes
        )
        return model.train()

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, S, S]` float32 and labels `[B]` int64."""
        import torch

        side = self.image_size
        return {
            "images": torch.zeros(micro_batch_size, 3, side, side),
            "labels": torch.zeros(micro_batch_size, dtype=torch.int64),
        }

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross-entropy; auxiliary heads are ignored."""
        import torch
        from torch.nn import functional

        outputs = model(batch["images"])
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        loss = functional.cross_entropy(logits, batch["labels"])
        return loss, loss.detach()[None]


def from_name(name: str, **arguments: Any) -> Classification:
    """Return the workload for `torchvision:NAME`.

    Args:
        name: a model such as `resnet50`.
        **arguments: `image_size`, `num_classes`.

    Raises:
        UnknownNameError: torchvision has no such classification model.
        UsageError: an argument the workload does not take.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UnknownNameError("torchvision model", name, known)
    try:
        return Classification(name, **arguments)
    except TypeError as error:
        raise UsageError(f"torchvision:{name} cannot be set so: {error}.") from None
