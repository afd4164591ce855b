"""Average precision of boxes and of masks, by COCO's rules.

Masks are compared at the size of the prototypes, a quarter of the images', as the official
validation does during training; an object's mask ends where a smaller one is in front of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .evaluation import DetectionEvaluator
from .masks import overlaps
from .nms import non_max_suppression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from memplan.workload import Batch

    from .coco import ImageRecord
    from .evaluation import ClassMetrics


class SegmentationEvaluator:
    """Collects boxes and masks of detections and objects.

    Args:
        class_names: names by class number.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._num_classes = len(class_names)
        self._boxes = DetectionEvaluator(class_names)
        self._masks = DetectionEvaluator(class_names, "mask")

    @property
    def images(self) -> Mapping[int, ImageRecord]:
        """What was collected, by image number, with the overlaps of masks."""
        return self._masks.images

    def update(self, predictions: Any, batch: Batch) -> None:
        """Add one validation batch.

        Args:
            predictions: what NMS is run on, `[B, 4 + num_classes + K, A]`, or per image the
                detections that it left, `[k, 6 + K]`; and prototypes `[B, K, h, w]`.
            batch: as `YoloData.validation_batches` made it with masks, on any device.
        """
        found, prototypes = predictions
        if isinstance(found, torch.Tensor):
            found = non_max_suppression(found, num_extra=prototypes.shape[1])
        self._boxes.update([rows[:, :6] for rows in found], batch)
        height, width = batch["images"].shape[-2:]
        for place, image_id in enumerate(batch["image_ids"].tolist()):
            rows = found[place]
            fractions = rows[:, :4] / rows.new_tensor([width, height, width, height])
            iou = overlaps(
                torch.cat([fractions, rows[:, 4:]], 1),
                prototypes[place],
                batch["masks"][place].to(rows.device),
                int((batch["targets"][place][:, 0] >= 0).sum()),
            )
            record = self._boxes.images[image_id]
            self._masks.add(image_id, replace(record, overlaps=iou.double().cpu().numpy()))

    def compute(self) -> dict[str, float]:
        """Return precision, recall, mAP50 and mAP50-95 of boxes, (B), and masks, (M); and fitness.

        Each 0 to 1; `fitness` is the sum of both kinds', as in the official recipe.
        """
        metrics, fitness = {}, 0.0
        for mark, evaluator in (("(B)", self._boxes), ("(M)", self._masks)):
            for name, value in evaluator.compute().items():
                if name == "fitness":
                    fitness += value
                else:
                    metrics[name + mark] = value
        return metrics | {"fitness": fitness}

    def per_class(self) -> list[ClassMetrics]:
        """Return one row for each class, of boxes."""
        return self._boxes.per_class()

    def write_details(self, folder: Path, *, draws: bool) -> str:
        """Write what `DetectionEvaluator` does, and the tables and curves of masks as `mask_...`.

        Returns:
            The tables of boxes and of masks by class, to print.
        """
        tables = [one.write_details(folder, draws=draws) for one in (self._boxes, self._masks)]
        return "\n\n".join(tables)
