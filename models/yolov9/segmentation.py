"""YOLOv9 and GELAN with masks as a workload: detection, and the shape of each object."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memplan.errors import UsageError
from memplan.workload import Batch, DataOptions, TrainingData

from . import loss
from .workload import YoloV9, as_network, decoded

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from .mask_loss import SegmentationLoss
    from .network import DetectionModel
    from .segment_heads import Masks

MASK_RATIO = 4  # pixels of an image a pixel of its masks; Source: the official --mask-ratio


class YoloV9Segmentation(YoloV9):
    """A detector with masks, trained with the official recipe.

    Its arguments are those of `YoloV9`, but for `quad`: the official recipe has no masks for it.
    """

    loss_names = ("box_loss", "seg_loss", "cls_loss", "dfl_loss")

    def __init__(self, name: str, *, quad: bool = False, **arguments: Any) -> None:
        if quad:
            raise UsageError(f"--quad: {name} learns masks, which four images in one have none of.")
        super().__init__(name, **arguments)

    def _batch(self, num_images: int, side: int, objects: int) -> Batch:
        import torch

        masks = torch.zeros(num_images, side // MASK_RATIO, side // MASK_RATIO, dtype=torch.int16)
        return {**super()._batch(num_images, side, objects), "masks": masks}

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, scaled by the batch size, and its parts (box, mask, cls, dfl) `[4]`."""
        criterion = self._criterion(model)
        return criterion(model(batch["images"]), batch["targets"], batch["masks"])

    def _criterion(self, model: torch.nn.Module) -> SegmentationLoss:
        from .mask_loss import SegmentationLoss

        values = self.hyperparameters
        names = ("box", "cls", "dfl", "cls_pw", "fl_gamma")
        gains = {name: values[name] for name in names}
        criterion = loss(as_network(model), **gains, assigner_parts=self.assigner_parts)
        assert isinstance(criterion, SegmentationLoss)
        return criterion

    def predict(  # type: ignore[override]
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return predictions and prototypes of the main branch; see `predictions`."""
        network = as_network(model)
        return predictions(network, *main_branch(network, batch["images"]))

    def evaluate(  # type: ignore[override]
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return predictions, as `predict` does, and the main branch's loss, four parts."""
        network = as_network(model)
        maps, masks = main_branch(network, batch["images"])
        found = predictions(network, maps, masks)
        criterion = replace(self._criterion(model), branches=1)
        _, parts = criterion((maps, *masks), batch["targets"], batch["masks"])
        return found, parts

    def open_data(self, options: DataOptions) -> TrainingData:
        """Return the checked YOLO data set, its polygons as masks.

        Raises:
            BadInputError: the data cannot be used, or has no polygons.
        """
        extra = {"mask_ratio": MASK_RATIO, **(options.extra or {})}
        return super().open_data(replace(options, extra=extra))

    def write_sample(self, directory: Path, *, force: bool = False) -> Path:
        """Write the sample data set with polygons and return the path of its `data.yaml`.

        Raises:
            BadInputError: the directory holds files and `force` is not given, or cannot be written.
        """
        from ..yolo_data.sample import write_sample

        return write_sample(directory, force=force, outlines=True)


def main_branch(network: DetectionModel, images: torch.Tensor) -> tuple[list[torch.Tensor], Masks]:
    """Return maps and masks of the main branch, running only the layers that it needs."""
    from .network import main_inputs
    from .segment_heads import Segments

    head = network.head
    assert isinstance(head, Segments)
    inputs = main_inputs(network, images)
    return head.raw(inputs, head.branches - 1), head.masks(inputs, head.branches - 1)


def predictions(
    network: DetectionModel, maps: list[torch.Tensor], masks: Masks
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `[B, 4 + nc + K, A]`, float32, and prototypes `[B, K, h, w]`.

    The first has box, probabilities and coefficients of each anchor.
    """
    import torch

    boxes = decoded(network, maps)
    return torch.cat((boxes, masks.coefficients.float()), 1), masks.prototypes
