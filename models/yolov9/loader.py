"""Batches of a YOLO data set, in an order that the seed and the epoch fix."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from memplan.errors import BadInputError, UnknownNameError, UsageError
from memplan.units import KIB, format_bytes

from .dataset import read_description
from .evaluation import DetectionEvaluator
from .hyperparameters import check_hyperparameters, load_hyperparameters
from .labels import label_path
from .pipeline import (
    ORDER_STREAM,
    LoadedSample,
    Request,
    TrainingSamples,
    ValidationSamples,
    random_stream,
)
from .scan import LabelledImage, scan_split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from memplan.workload import Batch, DataOptions

_EXTRAS = frozenset({"cache", "validation_size"})
_CACHE_SHARE = 0.5  # of the free host memory that a cache may take


def validation_size(image_size: int, stride: int = 32) -> int:
    """Return the side that the official recipe validates square images at, such as 672 for 640.

    Source: half a stride of padding, then rounded up to the stride (official YOLOv9, pad 0.5).
    """
    return math.ceil(image_size / stride + 0.5) * stride


class YoloData:
    """A YOLO data set, checked and indexed; memplan's `TrainingData`.

    Args:
        options: `path` is a `data.yaml`; `extra` may hold `cache` ("ram" keeps resized training
            images in host memory, "" does not) and `validation_size` (pixels; default image_size).

    Raises:
        BadInputError: the data cannot be used, or an option is not known.
    """

    def __init__(self, options: DataOptions) -> None:
        _check_options(options)
        self.options = options
        self.warnings: list[str] = []
        """What the user should know, a line each; the caller prints them."""
        self.description = read_description(options.path)
        self.class_names: tuple[str, ...] = (
            ("object",) if options.single_class else self.description.class_names
        )
        self.num_classes = len(self.class_names)
        self.hyperparameters = _strengths(options)
        training = self._drop_sparse(self._scan("train"))
        self._training = TrainingSamples(
            training, size=options.image_size, strengths=self.hyperparameters, seed=options.seed
        )
        extra = options.extra or {}
        self._validation_size = int(extra.get("validation_size") or options.image_size)
        self._validation = ValidationSamples(self._scan("val"), size=self._validation_size)
        self.objects_per_image = np.array([len(image.labels) for image in training], np.int64)
        if extra.get("cache"):
            _check_cache_fits(self._training.cache_bytes())
            self._training.cache_in_memory()

    @property
    def num_training_images(self) -> int:
        """Training images in an epoch."""
        return len(self._training)

    @property
    def num_validation_images(self) -> int:
        """Validation images."""
        return len(self._validation)

    def training_batches(
        self, *, micro_batch_size: int, epoch: int, augment_fully: bool, first_image: int = 0
    ) -> Iterable[Batch]:
        """Return one epoch's batches: uint8 images and padded float32 targets.

        A sample's content depends on seed, epoch and its image alone: not on the batch size, the
        number of workers or what was read before.

        Args:
            micro_batch_size: images a batch, >= 1; the last batch may be smaller.
            epoch: 0-based.
            augment_fully: False closes the mosaics, and with them mixup.
            first_image: images of this epoch to leave out because they were seen before, >= 0.
        """
        order = random_stream(self.options.seed, epoch, ORDER_STREAM).permutation(
            len(self._training)
        )
        requests = [Request(epoch, int(index), augment_fully) for index in order[first_image:]]
        return self._batches(self._training, requests, micro_batch_size)

    def num_batches(self, micro_batch_size: int) -> int:
        """Return how many batches `training_batches` yields in an epoch."""
        return math.ceil(len(self._training) / micro_batch_size)

    def validation_batches(self, *, micro_batch_size: int) -> Iterable[Batch]:
        """Return the validation set once, letterboxed, in the order of its file names.

        Besides `images` and `targets`: `image_ids` int64 `[B]`, `original_shapes` int64 `[B, 2]`
        (height, width), `letterbox` float64 `[B, 4]` (scale x, scale y, left, top; from original
        pixels to the batch's).
        """
        return self._batches(self._validation, range(len(self._validation)), micro_batch_size)

    def evaluator(self) -> DetectionEvaluator:
        """Return a fresh evaluator for the validation set."""
        return DetectionEvaluator(self.class_names)

    def _batches(
        self, samples: Dataset[LoadedSample], requests: Sequence[Any], micro_batch_size: int
    ) -> _Batches:
        if micro_batch_size < 1:
            raise UsageError(f"micro_batch_size {micro_batch_size} is below 1.")
        # More processes than cores, or than batches, only wait.
        num_batches = math.ceil(len(requests) / micro_batch_size)
        num_workers = min(self.options.num_workers, num_batches, len(os.sched_getaffinity(0)))
        if num_workers:
            # Each worker is a process of its own; OpenCV's threads must also be gone before a fork.
            _use_one_thread()
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=_InOrder(requests, micro_batch_size),
            collate_fn=collate,
            num_workers=num_workers,
            worker_init_fn=_use_one_thread if num_workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.options.seed & 0x7FFF_FFFF_FFFF_FFFF),
        )
        return _Batches(loader)

    def _scan(self, split: str) -> list[LabelledImage]:
        scanned = scan_split(self.description, split)
        self.warnings += scanned.warnings
        if split == "train" and scanned.num_polygons and self.hyperparameters["copy_paste"]:
            self.warnings.append(
                f"{scanned.num_polygons} polygons became boxes, so copy_paste "
                f"{self.hyperparameters['copy_paste']:g} has no effect."
            )
        if not self.options.single_class:
            return list(scanned.images)
        return [_as_single_class(image) for image in scanned.images]

    def _drop_sparse(self, images: list[LabelledImage]) -> list[LabelledImage]:
        kept = [image for image in images if len(image.labels) >= self.options.min_items]
        if not kept:
            fullest = max(images, key=lambda image: len(image.labels))
            raise BadInputError(
                f"No training image has {self.options.min_items} objects; the most is "
                f"{len(fullest.labels)}, in {label_path(fullest.path)}. Lower --min-items."
            )
        return kept


def open_yolo_data(options: DataOptions) -> YoloData:
    """Return the checked data set that `options.path` describes.

    Raises:
        BadInputError: the data cannot be used, or an option is not known.
    """
    return YoloData(options)


def collate(samples: Sequence[LoadedSample]) -> dict[str, torch.Tensor]:
    """Return samples as one batch, with targets padded to the fullest sample.

    `targets` is float32 `[B, M, 5]`: class, centre x, centre y, width, height, normalised; M is the
    most objects in a sample and at least 1; rows of padding have class -1 and zeros.
    """
    most = max(1, *(len(sample.labels) for sample in samples))
    targets = torch.zeros(len(samples), most, 5)
    targets[..., 0] = -1
    for padded, sample in zip(targets, samples, strict=True):
        padded[: len(sample.labels)] = sample.labels
    return {
        "images": torch.stack([sample.image for sample in samples]),
        "targets": targets,
        "image_ids": torch.tensor([sample.image_id for sample in samples]),
        "original_shapes": torch.tensor([sample.original_shape for sample in samples]),
        "letterbox": torch.tensor([sample.letterbox for sample in samples], dtype=torch.float64),
    }


class _Batches:
    """The loader's batches, with a worker's error told in one line."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        message = ""
        try:
            yield from self._loader
        except BadInputError as error:
            # From a worker, torch sends the traceback as the message; ours is its last line.
            message = str(error).strip().splitlines()[-1].split("BadInputError: ")[-1]
            # Its frames hold the loader in a cycle; freed by the collector instead of here, the
            # loader would wait 5 s for its processes.
            error.__traceback__ = None
        if message:
            raise BadInputError(message)


class _InOrder(Sampler[list[Any]]):
    """Consecutive groups of the requests, the last one perhaps smaller."""

    def __init__(self, requests: Sequence[Any], size: int) -> None:
        self._requests = requests
        self._size = size

    def __len__(self) -> int:
        return math.ceil(len(self._requests) / self._size)

    def __iter__(self) -> Iterator[list[Any]]:
        for start in range(0, len(self._requests), self._size):
            yield list(self._requests[start : start + self._size])


def _use_one_thread(_worker: int = 0) -> None:
    cv2.setNumThreads(0)


def _check_options(options: DataOptions) -> None:
    for name in options.extra or {}:
        if name not in _EXTRAS:
            raise UnknownNameError("data option", name, _EXTRAS)
    if options.image_size < 32 or options.num_workers < 0 or options.min_items < 0:
        raise UsageError(
            f"image_size {options.image_size}, num_workers {options.num_workers}, min_items "
            f"{options.min_items}: the least are 32, 0 and 0."
        )
    cache = (options.extra or {}).get("cache")
    if cache not in (None, "", "ram"):
        raise BadInputError(f"cache {cache!r} is not offered. Use --cache ram, or leave it out.")


def _available_bytes() -> int:
    """Return host memory that can be had without swapping, as Linux reckons it."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, value, *_ = line.split()
        if name == "MemAvailable:":
            return int(value) * KIB
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _strengths(options: DataOptions) -> dict[str, float]:
    defaults = load_hyperparameters()
    given = dict(options.hyperparameters or {})
    for name in given:
        if name not in defaults:
            raise UnknownNameError("hyperparameter", name, defaults)
    check_hyperparameters(given, source="hyperparameters")
    return defaults | given


def _as_single_class(image: LabelledImage) -> LabelledImage:
    labels = image.labels.copy()
    labels[:, 0] = 0
    return LabelledImage(image.path, image.height, image.width, labels)


def _check_cache_fits(cache_bytes: int) -> None:
    free_bytes = _available_bytes()
    if cache_bytes > free_bytes * _CACHE_SHARE:
        raise BadInputError(
            f"Caching the training images takes {format_bytes(cache_bytes)}, more than "
            f"{_CACHE_SHARE:.0%} of the {format_bytes(free_bytes)} of free host memory. "
            "Leave out --cache."
        )
