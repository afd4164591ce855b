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

from .torchvision_stages import train_last_stages

if TYPE_CHECKING:
    import torch

# What a model's transform makes of any image: of the shorter side the first number of pixels,
# unless the longer one had more than the second then. SSD's make a square of its one number.
# Keypoint models draw the first anew for each image, of 640 to 800; the largest counts.
_RESIZES: dict[str, tuple[int, ...]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 640),
    "ssd300_vgg16": (300,),
    "ssdlite320_mobilenet_v3_large": (320,),
}
_RESIZE = (800, 1333)
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

    Without `trainable_backbone_layers` all layers are trained, as those of a model with fresh
    weights are.

    Args:
        model_name: as `torchvision.models.list_models` spells it.
        image_size: side of the square images given to the model, pixels, which resizes them as it
            is used to; None takes the side that it resizes to, 800 for most.
        height: of the images, pixels, with `width` in place of `image_size`.
        width: of the images, pixels.
        trainable_backbone_layers: last stages of the backbone that are trained, >= 0, as
            torchvision counts them; the norms of the backbone are frozen then, as those of a
            pretrained one are. For models with a feature pyramid.
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
        height: int | None = None,
        width: int | None = None,
        num_classes: int | None = None,
        objects_per_image: int = 8,
        positives_per_object: int = 10,
        trainable_backbone_layers: int | None = None,
    ) -> None:
        if objects_per_image < 1:
            raise UsageError(f"--objects-per-image {objects_per_image} is below 1.")
        has_keypoints = "keypoint" in model_name
        self.name = f"torchvision:{model_name}"
        self._size = _image_size(model_name, image_size, height, width)
        self.image_size = max(self._size)
        self._trainable = trainable_backbone_layers
        self.num_classes = num_classes or (_KEYPOINT_CLASSES if has_keypoints else _CLASSES)
        self.objects_per_image = objects_per_image
        self.positives_per_object = positives_per_object
        self._model_name = model_name
        self._has_keypoints = has_keypoints
        self._has_masks = "mask" in model_name
        self._levels = 1
        self._num_sizes = 1

    def notes(self) -> tuple[str, ...]:
        """Return what the model makes of its images, and which layers are taken to be trained."""
        given = "x".join(map(str, self._size))
        made = "x".join(map(str, resized(self._model_name, *self._size)))
        trained = (
            "All layers are taken to be trained; of a pretrained model torchvision trains 3 stages "
            "by default: --set trainable_backbone_layers=3."
            if self._trainable is None
            else f"{self._trainable} stages of the backbone are trained, its norms are frozen."
        )
        square = " Give the size of yours: --set height=480 --set width=640."
        resizing = (
            f"{self.name} resizes each image itself: {given} (height x width) becomes {made}."
            f"{square if len(set(self._size)) == 1 else ''}"
        )
        return resizing, trained

    def build_model(self) -> torch.nn.Module:
        """Return the detector with random weights."""
        import torchvision

        model: torch.nn.Module = torchvision.models.get_model(
            self._model_name, weights=None, weights_backbone=None, num_classes=self.num_classes
        )
        if self._trainable is not None:
            train_last_stages(model, self._model_name, self._trainable)
        self._num_sizes = len(model.transform.min_size)  # type: ignore[arg-type, union-attr]
        heads = getattr(model, "roi_heads", None)
        self._levels = len(heads.box_roi_pool.featmap_names) if heads is not None else 1
        return model.train()

    def make_batch(self, micro_batch_size: int) -> Batch:
        """Return images `[B, 3, H, W]` and objects: boxes `[B, M, 4]` in pixels, labels `[B, M]`.

        Mask models get masks `[B, M, H, W]` as well, keypoint models keypoints `[B, M, 17, 3]`.
        """
        import torch

        (height, width), objects = self._size, self.objects_per_image
        side = min(height, width)
        corner = torch.arange(objects, dtype=torch.float32) * (side / 2 / objects)
        boxes = torch.stack((corner, corner, corner + side / 3, corner + side / 3), 1)
        batch = {
            "images": torch.zeros(micro_batch_size, 3, height, width),
            "boxes": boxes.repeat(micro_batch_size, 1, 1),
            "labels": torch.ones(micro_batch_size, objects, dtype=torch.int64),
        }
        if self._has_masks:
            shape = (micro_batch_size, objects, height, width)
            batch["masks"] = torch.zeros(shape, dtype=torch.uint8)
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
        """Return yes or one; the size drawn at random is the last of the list, the largest."""
        return self._num_sizes - 1 if question.made_by == "aten.uniform_" else 1


def _image_size(
    model_name: str, side: int | None, height: int | None, width: int | None
) -> tuple[int, int]:
    """Return the height and width of images.

    Raises:
        UsageError: they are given in part, twice, or below 1.
    """
    if height is None and width is None:
        shortest = side or _RESIZES.get(model_name, _RESIZE)[0]
        return shortest, shortest
    if height is None or width is None:
        raise UsageError("--set height and --set width go together. Give both.")
    if side is not None:
        raise UsageError(f"--img {side} and --set height={height} both size images. Give one.")
    for name, value in (("height", height), ("width", width)):
        if type(value) is not int or value < 1:
            raise UsageError(f"--set {name}={value} is no number of pixels. Give 1 or more.")
    return height, width


def resized(model_name: str, height: int, width: int) -> tuple[int, int]:
    """Return what a model's transform makes of an image's height and width.

    Source: torchvision/models/detection/transform.py, GeneralizedRCNNTransform.
    """
    shortest, *longest = _RESIZES.get(model_name, _RESIZE)
    if not longest:
        return shortest, shortest
    factor = min(shortest / min(height, width), longest[0] / max(height, width))
    return int(height * factor), int(width * factor)
