"""Every classification and detection model of torchvision as a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memplan.errors import UnknownNameError, UsageError
from memplan.family import Family
from memplan.workload import Batch, Workload

from .torchvision_detection import Detection

if TYPE_CHECKING:
    import torch

_SIDE = 224
# Sides that a model's auxiliary head, or its authors, ask for.
_SIDES = {"inception_v3": 299}
# Weight of each auxiliary head's loss. Source: 0.3 in GoogLeNet (Szegedy et al. 2014, section 5),
# 0.4 in PyTorch's fine-tuning tutorial for Inception v3.
_AUXILIARY_WEIGHTS = {"googlenet": 0.3, "inception_v3": 0.4}
# Models built for one side only, and what their constructors call it.
_SIDE_ARGUMENTS = {"vit": "image_size", "maxvit": "input_size"}


class Classification(Workload):
    """A torchvision classifier trained with cross-entropy on random images.

    Args:
        model_name: as `torchvision.models.list_models` spells it.
        image_size: side of the square images, pixels; None takes 224, or 299 for Inception v3.
        num_classes: classes of the last layer.
        validation_batch_size: images validated at once, >= 1; None validates nothing.
    """

    def __init__(
        self,
        model_name: str,
        *,
        image_size: int | None = None,
        num_classes: int = 1000,
        validation_batch_size: int | None = None,
    ) -> None:
        if validation_batch_size is not None and validation_batch_size < 1:
            raise UsageError(f"--val-batch {validation_batch_size} is below 1.")
        self.name = f"torchvision:{model_name}"
        self.image_size = image_size or _SIDES.get(model_name, _SIDE)
        self.num_classes = num_classes
        self.validation_batch_size = validation_batch_size
        self._model_name = model_name

    def build_model(self) -> torch.nn.Module:
        """Return the model with random weights."""
        import torchvision

        more: dict[str, Any] = {}
        argument = _SIDE_ARGUMENTS.get(self._model_name.partition("_")[0])
        if argument is not None:
            side = self.image_size
            more[argument] = side if argument == "image_size" else (side, side)
        if self._model_name in _AUXILIARY_WEIGHTS:
            more["init_weights"] = False  # values play no part, and drawing them takes minutes
        model: torch.nn.Module = torchvision.models.get_model(
            self._model_name, weights=None, num_classes=self.num_classes, **more
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

    def make_validation_batch(self, micro_batch_size: int) -> Batch | None:
        """Return `validation_batch_size` images with labels; None where nothing is validated."""
        del micro_batch_size
        count = self.validation_batch_size
        return None if count is None else self.make_batch(count)

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross-entropy, with the weighted ones of auxiliary heads."""
        import torch
        from torch.nn import functional

        outputs = model(batch["images"])
        heads = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        loss = functional.cross_entropy(heads[0], batch["labels"])
        for logits in heads[1:]:
            weight = _AUXILIARY_WEIGHTS.get(self._model_name, 1.0)
            loss = loss + weight * functional.cross_entropy(logits, batch["labels"])
        return loss, loss.detach()[None]


class TorchvisionFamily(Family):
    """`torchvision:NAME`: what torchvision's model builders make."""

    # A name picks a model of torchvision and runs nothing else.
    names_are_plain = True
    imported_when_used = ("torchvision",)

    def made_by(self, name: str) -> type[Classification | Detection]:
        """Return the class of a model's workload.

        Raises:
            UnknownNameError: torchvision has no such classification or detection model.
        """
        import torchvision

        classifiers = torchvision.models.list_models(module=torchvision.models)
        detectors = torchvision.models.list_models(module=torchvision.models.detection)
        if name not in classifiers and name not in detectors:
            raise UnknownNameError("torchvision model", name, [*classifiers, *detectors])
        return Detection if name in detectors else Classification

    def make(self, name: str, **arguments: Any) -> Classification | Detection:
        """Return the workload of a model such as `resnet50` or `fasterrcnn_resnet50_fpn`.

        Raises:
            UnknownNameError: torchvision has no such classification or detection model.
            UsageError: an argument is out of its range.
        """
        return self.made_by(name)(name, **arguments)


FAMILY = TorchvisionFamily()
