"""Single samples of a data set: an image file decoded, augmented or letterboxed, with its boxes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from memplan.errors import BadInputError

from .augment import (
    Image,
    Rows,
    Sample,
    letterbox,
    mix,
    mosaic,
    normalise_boxes,
    place_boxes,
    random_affine,
    random_flip,
    resize,
    shift_colours,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .scan import LabelledImage

# Streams of random numbers that share a seed; a last entry of 0 would equal a missing one.
ORDER_STREAM, SAMPLE_STREAM = 1, 2


class Request(NamedTuple):
    """Which training sample is wanted; it alone fixes the sample's content."""

    epoch: int
    image_id: int
    augment_fully: bool


class LoadedSample(NamedTuple):
    """One sample as it leaves a loader process."""

    image: torch.Tensor
    """uint8 `[3, size, size]`, RGB."""
    labels: torch.Tensor
    """float32 rows class, centre x, centre y, width, height; normalised, `[n, 5]`."""
    image_id: int
    """Place in the split."""
    original_shape: tuple[int, int]
    """Height and width of the image file, pixels."""
    letterbox: tuple[float, float, float, float]
    """Scale x, scale y, left, top: from the image file's pixels to the sample's."""


def random_stream(seed: int, *numbers: int) -> np.random.Generator:
    """Return the generator that a seed and a few numbers fix, alike in every process."""
    return np.random.default_rng([seed & 0xFFFF_FFFF_FFFF_FFFF, *numbers])


def decode(image: LabelledImage) -> Image:
    """Return the file's pixels, `[height, width, 3]`, BGR.

    Raises:
        BadInputError: the file cannot be read any more.
    """
    try:
        encoded = np.fromfile(image.path, np.uint8)
    except OSError as error:
        raise BadInputError(f"{image.path} cannot be read any more: {error.strerror}.") from None
    pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        raise BadInputError(
            f"{image.path} is not the image it was when the data set was checked. Start again."
        )
    return np.asarray(pixels, np.uint8)


class TrainingSamples(Dataset[LoadedSample]):
    """The training split, augmented; indexed by `Request`.

    Args:
        images: the split's images.
        size: side of the samples, pixels.
        strengths: hyperparameters by their official names.
        seed: of everything random.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        *,
        size: int,
        strengths: Mapping[str, float],
        seed: int,
    ) -> None:
        self._images = images
        self._size = size
        self._strengths = dict(strengths)
        self._seed = seed
        self._resized: list[Image] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def cache_in_memory(self) -> None:
        """Keep every image in host memory, at the size that augmentation starts from."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            self._resized = list(pool.map(self._load, range(len(self._images))))

    def cache_bytes(self) -> int:
        """Return the host memory that `cache_in_memory` takes, bytes."""
        ratios = [self._size / max(image.height, image.width) for image in self._images]
        return sum(
            3 * round(image.height * ratio) * round(image.width * ratio)
            for image, ratio in zip(self._images, ratios, strict=True)
        )

    def __getitem__(self, request: Request) -> LoadedSample:
        """Return the augmented sample that the request names."""
        rng = random_stream(self._seed, request.epoch, request.image_id, SAMPLE_STREAM)
        if request.augment_fully and rng.random() < self._strengths["mosaic"]:
            image, rows = self._mosaic(request.image_id, rng)
            if rng.random() < self._strengths["mixup"]:
                other = self._mosaic(int(rng.integers(len(self))), rng)
                image, rows = mix((image, rows), other, rng)
        else:
            image, rows = self._single(request.image_id, rng)
        image = shift_colours(image, self._strengths, rng)
        image, rows = random_flip(image, rows, self._strengths, rng)
        shape = (self._images[request.image_id].height, self._images[request.image_id].width)
        return LoadedSample(
            _to_tensor(image),
            torch.from_numpy(normalise_boxes(rows, self._size)),
            request.image_id,
            shape,
            (1.0, 1.0, 0.0, 0.0),
        )

    def _mosaic(self, image_id: int, rng: np.random.Generator) -> Sample:
        others = rng.integers(len(self), size=3)
        chosen = [image_id, *map(int, others)]
        rng.shuffle(chosen)
        parts = [(self._resized_image(i), self._images[i].labels) for i in chosen]
        image, rows = mosaic(parts, self._size, rng)
        return random_affine(image, rows, self._size, self._strengths, rng)

    def _single(self, image_id: int, rng: np.random.Generator) -> Sample:
        resized = self._resized_image(image_id)
        image, (scale_x, scale_y, left, top) = letterbox(resized, self._size, scale_up=True)
        height, width = resized.shape[:2]
        rows = place_boxes(
            self._images[image_id].labels, height * scale_y, width * scale_x, left, top
        )
        return random_affine(image, rows, self._size, self._strengths, rng)

    def _resized_image(self, image_id: int) -> Image:
        return self._load(image_id) if self._resized is None else self._resized[image_id]

    def _load(self, image_id: int) -> Image:
        image = decode(self._images[image_id])
        ratio = self._size / max(image.shape[:2])
        height, width = (max(round(side * ratio), 1) for side in image.shape[:2])
        return resize(image, height, width)


class ValidationSamples(Dataset[LoadedSample]):
    """The validation split, letterboxed without enlarging; indexed by place.

    Args:
        images: the split's images.
        size: side of the samples, pixels.
    """

    def __init__(self, images: Sequence[LabelledImage], *, size: int) -> None:
        self._images = images
        self._size = size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> LoadedSample:
        """Return the letterboxed sample with the map that made it."""
        labelled = self._images[index]
        shape = (labelled.height, labelled.width)
        image, transform = letterbox(decode(labelled), self._size, scale_up=False)
        scale_x, scale_y, left, top = transform
        rows: Rows = place_boxes(labelled.labels, shape[0] * scale_y, shape[1] * scale_x, left, top)
        labels = torch.from_numpy(normalise_boxes(rows, self._size))
        return LoadedSample(_to_tensor(image), labels, index, shape, transform)


def _to_tensor(image: Image) -> torch.Tensor:
    """Return BGR pixels as an RGB tensor `[3, h, w]`; one copy does flips, order and layout."""
    planes: npt.NDArray[np.uint8] = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(planes)
