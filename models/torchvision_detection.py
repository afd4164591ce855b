"""Every detection model of torchvision as a workload, its data-dependent sizes stated.

The models choose anchors and proposals by their overlap with the objects, and keep what
non-maximum suppression leaves. The numbers are the models' own limits (proposals after
suppression, anchors and boxes sampled an image) and, for positives, what the workload states.

Source: torchvision/models/detection, torchvision 0.26.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from memplan.errors import UsageError
from memplan.workload import Batch, Choice, Question, Workload

if TYPE_CHECKING:
    import torch

# The side that each family resizes images to; the region-based ones take 800 of 1333 at most.
_SIDES = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 320,
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 320,
}
_SIDE = 800
_CLASSES = 91  # COCO's category numbers, with the background
_KEYPOINTS = 17  # of a person
_KEYPOINT_CLASSES = 2
# Limits of the region-based models: their constructors' defaults.
_PROPOSALS = 2000  # rpn_pre_nms_top_n_train and rpn_post_nms_top_n_train
_LEVELS = 5  # of the pyramid
_ANCHORS_SAMPLED, _ANCHORS_POSITIVE = 256, 128  # rpn_batch_size_per_image, half of it
_BOXES_SAMPLED, _BOXES_POSITIVE = 512, 128  # box_batch_size_per_image, a quarter of it
_NEGATIVES_PER_POSITIVE = 3  # SSD's neg_to_pos_ratio: a quarter of what is sampled is positive


class Detection(Workload):
    """A torchvision detector trained with the sum of its losses.

    All layers are trained, as those of a model with fresh weights are.

    Args:
        model_name: as `torchvision.models.list_models` spells it.
        image_size: side of the square images given to the model, pixels, which resizes them as it
            is used to; None takes the side that it resizes to, 800 for most.
        num_classes: classes with the background; None takes COCO's 91, and 2 for keypoints.
        objects_per_image: boxes in each image, >= 1.
        positives_per_object: anchors or proposals matched with a box.
    """

    states_sizes = True
    loss_names = ("loss",)

    def __init__(
        self,
        model_name: str,
        *,
        image_size: int | None = None,
        num_classes: int | None = None,
        objects_per_image: int = 8,
        positives_per_object: int = 10,
    ) -> None:
        if objects_per_image < 1:
            raise UsageError(f"--objects-per-image {objects_per_image} is below 1.")
        has_keypoints = "keypoint" in model_name
        self.name = f"torchvision:{model_name}"
        self.image_size = image_size or _SIDES.get(model_name, _SIDE)
        self.num_classes = num_classes or (_KEYPOINT_CLASSES if has_keypoints else _CLASSES)
        self.objects_per_image = objects_per_image
        self.positives_per_object = positives_per_object
        self._model_name = model_name
        self._has_keypoints = has_keypoints
        self._has_masks = "mask" in model_name
        self._levels = 1

    def build_model(self) -> torch.nn.Module:
        """Return the detector with random weights."""
        import torchvision

        model: torch.nn.Module = torchvision.models.get_model(
            self._model_name, weights=None, weights_backbone=None, num_classes=self.num_classes
        )
        heads = getattr(model, "roi_heads", None)
        self._levels = len(heads.box_roi_pool.featmap_names) if heads is not None else 1
        return model.train()

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, S, S]` and objects: boxes `[B, M, 4]` in pixels, labels `[B, M]`.

        Mask models get masks `[B, M, S, S]` as well, keypoint models keypoints `[B, M, 17, 3]`.
        """
        import torch

        side, objects = self.image_size, self.objects_per_image
        corner = torch.arange(objects, dtype=torch.float32) * (side / 2 / objects)
        boxes = torch.stack((corner, corner, corner + side / 3, corner + side / 3), 1)
        batch = {
            "images": torch.zeros(micro_batch_size, 3, side, side),
            "boxes": boxes.repeat(micro_batch_size, 1, 1),
            "labels": torch.ones(micro_batch_size, objects, dtype=torch.int64),
        }
        if self._has_masks:
            batch["masks"] = torch.zeros(micro_batch_size, objects, side, side, dtype=torch.uint8)
        if self._has_keypoints:
            batch["keypoints"] = torch.ones(micro_batch_size, objects, _KEYPOINTS, 3)
        return batch

    def compute_loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the model's losses."""
        names = [name for name in batch if name != "images"]
        images = list(batch["images"])
        targets = [{name: batch[name][i] for name in names} for i in range(len(images))]
        losses: dict[str, torch.Tensor] = model(images, targets)
        loss = sum(losses.values(), start=batch["images"].new_zeros(()))
        return loss, loss.detach()[None]

    def num_chosen(self, choice: Choice) -> int:
        """Return the models' own limits, and positives by objects."""
        first = choice.shape[0]
        if choice.operator == "torchvision.nms":
            return min(first, _PROPOSALS)
        if choice.module.endswith("roi_pool"):
            return max(1, first // self._levels)
        if choice.module.startswith("rpn"):
            return self._of_proposals(choice)
        if choice.module.startswith("roi_heads"):
            return self._of_boxes(choice)
        return self._of_anchors(choice)

    def _positives(self, number: int) -> int:
        """Return how many of one image's anchors or proposals are matched with an object."""
        return min(number, self.objects_per_image * self.positives_per_object)

    def _of_proposals(self, choice: Choice) -> int:
        """Return what the region proposal network takes."""
        first = choice.shape[0]
        if len(choice.shape) > 1:
            return first  # objects by anchors: the best anchor of each object
        match choice.made_by:
            case "aten.eq":
                return first - self._positives(first)
            case "aten.ge" if first > _LEVELS * _PROPOSALS:
                return self._positives(first)
            case "aten.cat":  # first the positive anchors of all images, then the negative ones
                return choice.micro_batch_size * _ANCHORS_POSITIVE
        return first  # no proposal is too small or too unlikely to be kept

    def _of_boxes(self, choice: Choice) -> int:
        """Return what the heads take: proposals of one image, or those sampled from all images."""
        first = choice.shape[0]
        positive = min(self._positives(first), _BOXES_POSITIVE)
        match choice.made_by:
            case "aten.ge":
                return self._positives(first)
            case "aten.eq":
                return first - self._positives(first)
            case "aten.bitwise_or" | "aten.logical_or" | "aten.__or__":
                return min(first, _BOXES_SAMPLED)
            case "aten.gt":
                return max(1, first // _BOXES_SAMPLED) * positive
        return first  # every keypoint is in its box

    def _of_anchors(self, choice: Choice) -> int:
        """Return what models without proposals match: anchors of one image, or of all."""
        images = choice.micro_batch_size
        several = len(choice.shape) > 1 and choice.shape[0] == images
        number = choice.shape[1] if several else choice.shape[0]
        positive = self._positives(number) * (images if several else 1)
        match choice.made_by:
            case "aten.ne" | "aten.bitwise_and":  # all but few: anchors, boxes that overlap
                return math.prod(choice.shape)
            case "aten.lt":
                return min(positive * _NEGATIVES_PER_POSITIVE, number * images)
            case "aten.eq" if len(choice.shape) > 1:
                return choice.shape[0]  # objects by anchors: the best anchor of each object
        return positive

    def answer(self, question: Question) -> float:
        """Return yes or one; the size drawn at random is the first of the list."""
        return 0 if question.made_by == "aten.uniform_" else 1
