"""Batches of a YOLO data set, in an order that the seed and the epoch fix."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from memplan.errors import BadInputError, UsageError
from memplan.workload import dealt

from ..detection_metrics.evaluation import DetectionEvaluator
from ..detection_metrics.segmentation import SegmentationEvaluator
from .batches import Batches, read_batches
from .collate import QuadCollate, collate
from .data_options import check_options, strengths_of
from .dataset import read_description
from .fingerprint import fingerprint
from .host import host_bytes
from .labels import label_path
from .masks import outlined
from .order import by_aspect, common_shape, image_weights, shuffled, weighted
from .pipeline import LoadedSample, Missing, Request, TrainingSamples, ValidationSamples
from .scan import LabelledImage, scan_split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch.utils.data import Dataset

    from memplan.workload import Batch, DataOptions

    from .augment import Shape

_PICTURED_BATCHES = 3  # of the first epoch
_VALIDATION_PADDING = 0.5  # strides, of the official recipe


def validation_size(image_size: int, stride: int = 32) -> int:
    """Return the side that the official recipe validates square images at, such as 672 for 640.

    Source: half a stride of padding, then rounded up to the stride (official YOLOv9, pad 0.5).
    """
    return math.ceil(image_size / stride + _VALIDATION_PADDING) * stride


class YoloData:
    """A YOLO data set, checked and indexed; memplan's `TrainingData`.

    Args:
        options: `path` is a `data.yaml`; `extra` may hold

            - `cache`: "ram" or "disk" keeps the resized images of both splits, "val" those of the
              validation split in host memory, "" none.
            - `rect`: training batches of images of like aspect ratio, letterboxed to a common
              rectangle; no mosaics, and every epoch in the same order.
            - `rect_validation`: the same of validation, whatever `rect` says; default True.
            - `shrinking`: how training images become smaller, see `decode.Shrinking`; default
              "linear".
            - `image_weights`: an epoch draws images by their classes, see `order.image_weights`.
            - `mask_ratio`: samples have masks with a pixel for so many of theirs; 0, the default,
              makes none. Validation is judged by masks too.
            - `quad`: four samples become one image of twice the side.
            - `validation_size`: pixels of the square validation samples; default image_size.
            - `stride`: what the sides of rectangles are multiples of, pixels; default 32.

    Raises:
        BadInputError: the data cannot be used, or an option is not known.
        UsageError: options exclude each other.
    """

    def __init__(self, options: DataOptions) -> None:
        check_options(options)
        self.options = options
        self.description = read_description(options.path)
        self.warnings: list[str] = list(self.description.warnings)
        """What the user should know, a line each; the caller prints them."""
        self.class_names: tuple[str, ...] = (
            ("object",) if options.single_class else self.description.class_names
        )
        self.num_classes = len(self.class_names)
        self.hyperparameters = strengths_of(options)
        self._extra = dict(options.extra or {})
        self._mask_ratio = int(self._extra.get("mask_ratio") or 0)
        training = self._drop_sparse(self._scan("train"))
        validation = self._scan("val")
        self._warn_of_shared(training, validation)
        size = options.image_size
        self.training = TrainingSamples(
            training,
            size=size,
            strengths=self.hyperparameters,
            seed=options.seed,
            shrinking=self._extra.get("shrinking") or "linear",
            mask_ratio=self._mask_ratio,
        )
        self._stride = int(self._extra.get("stride") or 32)
        self._validation_size = int(self._extra.get("validation_size") or size)
        self.validation = ValidationSamples(
            validation,
            image_size=min(size, self._validation_size),
            mask_ratio=self._mask_ratio,
        )
        share = self.hyperparameters["copy_paste"]
        self.objects_per_image = np.array(
            [math.ceil(len(i.labels) + share * _num_polygons(i)) for i in training], np.int64
        )
        """Objects that each image brings into a sample at most: copies of polygons count."""
        self._class_scores = np.zeros(self.num_classes)
        self._evaluator: DetectionEvaluator | SegmentationEvaluator | None = None
        self.unreadable: Counter[str] = Counter()
        """How often an image that has vanished or broken was left out, by a sentence on it."""
        self._keep_images()

    @property
    def num_training_images(self) -> int:
        """Training images in an epoch."""
        return len(self.training)

    @property
    def num_validation_images(self) -> int:
        """Validation images."""
        return len(self.validation)

    def training_batches(
        self,
        *,
        micro_batch_size: int,
        epoch: int,
        augment_fully: bool,
        first_image: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> Iterable[Batch]:
        """Return one epoch's batches: uint8 images and padded float32 targets.

        A sample's content depends on seed, epoch and its image alone: not on the batch size, the
        number of workers or what was read before; but `rect` gives each batch its own shape, and
        `image_weights` draws images by the last evaluation.

        Args:
            micro_batch_size: images a batch, >= 1; the last batch may be smaller.
            epoch: 0-based.
            augment_fully: False closes the mosaics, and with them mixup.
            first_image: images of this epoch to leave out because they were seen before, >= 0.
            rank: which of the processes that train together asks, 0-based.
            num_ranks: how many they are; `memplan.workload.dealt` says which images each gets.
        """
        _check_size(micro_batch_size)
        groups = self._training_groups(
            micro_batch_size, epoch, first_image, rank, num_ranks, augment_fully=augment_fully
        )
        return self._batches(self.training, groups, self._merge())

    def _training_groups(
        self,
        micro_batch_size: int,
        epoch: int,
        first_image: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        augment_fully: bool,
    ) -> list[list[Request]]:
        """Return the samples of each batch that `training_batches` gives."""
        rect = bool(self._extra.get("rect"))
        order = self._order(epoch)
        turns = _turns(order)
        square = (self.options.image_size,) * 2
        groups = []
        rest = max(len(order) - first_image, 0)
        for part in dealt(rest, micro_batch_size, rank, num_ranks):
            places = range(first_image + part.start, first_image + part.stop)
            members = [self.training.images[order[place]] for place in places]
            shape = common_shape(members, square[0], self._stride) if rect else square
            groups.append(
                [
                    Request(epoch, int(order[p]), augment_fully and not rect, shape, turns[p])
                    for p in places
                ]
            )
        return groups

    def _merge(self) -> Callable[[Sequence[LoadedSample]], Any]:
        return QuadCollate(self.options.seed) if self._extra.get("quad") else collate

    def write_pictures(self, folder: Path, *, micro_batch_size: int, augment_fully: bool) -> None:
        """Write `labels.png` and the run's first three batches as `train_batch_1.png` and so on.

        Samples are read in this process; no random state but their own is touched.

        Args:
            folder: exists.
            micro_batch_size: images a batch, >= 1; up to 16 are shown.
            augment_fully: whether the first epoch's images are mosaics.
        """
        from ..detection_metrics import charts, pictures

        labels = [image.labels for image in self.training.images]
        figure = charts.labels_figure(np.concatenate(labels), self.class_names)
        charts.save(figure, folder / "labels.png")
        groups = self._training_groups(micro_batch_size, 0, augment_fully=augment_fully)
        shown = pictures.MOST_IMAGES * (4 if self._extra.get("quad") else 1)
        for number, requests in enumerate(groups[:_PICTURED_BATCHES], start=1):
            batch = self._merge()([self.training[request] for request in requests[:shown]])
            figure = pictures.batch_figure(batch, self.class_names)
            charts.save(figure, folder / f"train_batch_{number}.png")

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        images = self.training.images
        if self._extra.get("rect"):
            return by_aspect(images)
        if self._extra.get("image_weights"):
            weights = image_weights(images, self._scores())
            return weighted(weights, self.options.seed, epoch)
        return shuffled(len(images), self.options.seed, epoch)

    def fingerprint(self) -> dict[str, str]:
        """Return what the data set is, in texts that differ when it has changed."""
        return fingerprint(self.class_names, self.training.images, self.validation.images)

    def state(self) -> dict[str, Any]:
        """Return what the order of coming epochs depends on besides seed and epoch.

        With `image_weights` that is `class_scores`, the classes' mAP at the last evaluation.
        """
        if not self._extra.get("image_weights"):
            return {}
        return {"class_scores": self._scores().tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken.

        Raises:
            BadInputError: the state is of a data set with other classes.
        """
        scores = np.asarray(state.get("class_scores", self._class_scores), np.float64)
        if scores.shape != self._class_scores.shape:
            raise BadInputError(
                f"{self.options.path} has {self.num_classes} classes, but the checkpoint's image "
                f"weights are of {len(scores)}. Start a new run with --weights."
            )
        self._class_scores = scores

    def _scores(self) -> npt.NDArray[np.float64]:
        """Return each class's mAP at the last evaluation, zeros before the first."""
        if self._evaluator is not None:
            rows = self._evaluator.per_class()
            self._class_scores = np.array([row.map50_95 for row in rows])
            self._evaluator = None
        return self._class_scores

    def host_bytes(self, micro_batch_size: int) -> dict[str, int]:
        """Return the host memory that reading takes, bytes by what takes them; see `host`."""
        stores = (self.training.store, self.validation.store)
        return host_bytes(
            self.training.images,
            [store for store in stores if store.is_in_memory],
            size=self.options.image_size,
            micro_batch_size=micro_batch_size,
            num_workers=self.options.num_workers,
        )

    def num_batches(self, micro_batch_size: int) -> int:
        """Return how many batches `training_batches` yields in an epoch."""
        return math.ceil(len(self.training) / micro_batch_size)

    def validation_batches(self, *, micro_batch_size: int) -> Iterable[Batch]:
        """Return the validation set once, letterboxed, in the order of aspect ratios.

        Each batch has its own rectangle; without `rect_validation` all are square and in the order
        of file names.

        Besides `images` and `targets`: `image_ids` int64 `[B]`, `original_shapes` int64 `[B, 2]`
        (height, width), `letterbox` float64 `[B, 4]` (scale x, scale y, left, top; from original
        pixels to the batch's).
        """
        groups = validation_groups(
            self.validation.images,
            micro_batch_size,
            image_size=self.options.image_size,
            padded_size=self._validation_size,
            stride=self._stride,
            rect=bool(self._extra.get("rect_validation", True)),
        )
        return self._batches(self.validation, groups, collate)

    def evaluator(self) -> DetectionEvaluator | SegmentationEvaluator:
        """Return a fresh evaluator for the validation set, of masks too where samples have them."""
        kind = SegmentationEvaluator if self._mask_ratio else DetectionEvaluator
        evaluator = kind(self.class_names)
        if self._extra.get("image_weights"):
            self._evaluator = evaluator
        return evaluator

    def _batches(
        self,
        samples: Dataset[LoadedSample | Missing],
        groups: Sequence[list[Any]],
        merge: Callable[[Sequence[LoadedSample]], Any],
    ) -> Batches:
        options = self.options
        return read_batches(
            samples, groups, merge, options.num_workers, options.seed, self._leave_out
        )

    def _leave_out(self, text: str) -> None:
        self.unreadable[text] += 1

    def _keep_images(self) -> None:
        cache = self._extra.get("cache")
        stores = [self.validation.store]
        if cache in {"ram", "disk"}:
            stores.insert(0, self.training.store)
        for store in stores if cache else []:
            if cache == "disk":
                store.keep_on_disk(self.description.root)
            else:
                store.keep_in_memory()

    def _warn_of_shared(
        self, training: Sequence[LabelledImage], validation: Sequence[LabelledImage]
    ) -> None:
        trained = {os.path.realpath(image.path) for image in training}
        shared = sum(os.path.realpath(image.path) in trained for image in validation)
        if shared:
            self.warnings.append(
                f"{shared} of the {len(validation)} validation images of {self.options.path} are "
                "training images too, so metrics say little about new images."
            )

    def _scan(self, split: str) -> list[LabelledImage]:
        scanned = scan_split(self.description, split)
        self.warnings += scanned.warnings
        images = list(scanned.images)
        if self._mask_ratio:
            images, warnings = outlined(images, self.options.path, split)
            self.warnings += warnings
        return [as_single_class(i) for i in images] if self.options.single_class else images

    def _drop_sparse(self, images: list[LabelledImage]) -> list[LabelledImage]:
        kept = [image for image in images if len(image.labels) >= self.options.min_items]
        if not kept:
            fullest = max(images, key=lambda image: len(image.labels))
            raise BadInputError(
                f"No training image has {self.options.min_items} objects; the most is "
                f"{len(fullest.labels)}, in {label_path(fullest.path)}. Lower --min-items."
            )
        return kept


def validation_groups(
    images: Sequence[LabelledImage],
    micro_batch_size: int,
    *,
    image_size: int,
    padded_size: int,
    stride: int,
    rect: bool,
) -> list[list[tuple[int, Shape]]]:
    """Return the samples of each validation batch: places, and the batch's height and width.

    Args:
        images: of the split.
        micro_batch_size: images a batch, >= 1.
        image_size: the longer side of the images, pixels.
        padded_size: side of square samples, pixels; larger than `image_size` asks for the official
            padding of rectangles too.
        stride: what the sides of rectangles are multiples of, pixels.
        rect: by aspect ratio, each batch in its own rectangle; else square, by file name.
    """
    _check_size(micro_batch_size)
    order = by_aspect(images) if rect else np.arange(len(images))
    padding = _VALIDATION_PADDING if padded_size > image_size else 0.0
    groups = []
    for start in range(0, len(order), micro_batch_size):
        places = order[start : start + micro_batch_size].tolist()
        shape = (padded_size, padded_size)
        if rect:
            members = [images[place] for place in places]
            shape = common_shape(members, min(padded_size, image_size), stride, padding)
        groups.append([(place, shape) for place in places])
    return groups


def open_yolo_data(options: DataOptions) -> YoloData:
    """Return the checked data set that `options.path` describes.

    Raises:
        BadInputError: the data cannot be used, or an option is not known.
    """
    return YoloData(options)


def _check_size(micro_batch_size: int) -> None:
    if micro_batch_size < 1:
        raise UsageError(f"micro_batch_size {micro_batch_size} is below 1.")


def _turns(order: npt.NDArray[np.int64]) -> list[int]:
    """Return how often each place's image was there before, so that repeats are not alike."""
    seen: dict[int, int] = {}
    turns = []
    for image in order.tolist():
        turns.append(seen.get(image, 0))
        seen[image] = turns[-1] + 1
    return turns


def _num_polygons(image: LabelledImage) -> int:
    return sum(len(points) > 0 for points in image.polygons)


def as_single_class(image: LabelledImage) -> LabelledImage:
    """Return the image with every object of class 0."""
    labels = image.labels.copy()
    labels[:, 0] = 0
    return replace(image, labels=labels)
