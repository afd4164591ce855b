"""Single samples of a data set: an image augmented or letterboxed, with its boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from .augment import (
    Image,
    Rows,
    Shape,
    draw_flips,
    flip,
    letterbox,
    mix,
    normalise_boxes,
    place_boxes,
    shift_colours,
)
from .decode import ImageStore, UnreadableError, resized_shape
from .masks import rasterise
from .mosaic import NUM_IMAGES, add_copies, compose, draw_places, gather_objects
from .order import SAMPLE_STREAM, random_stream
from .polygons import Points, choose_copies, paste_copies, place_polygons
from .shared import SharedSequence
from .view import View, draw_view, map_objects, map_shapes, render, sees

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .decode import Shrinking
    from .scan import LabelledImage


_MOST_UNREADABLE = 16  # images in a row that others stand in for: beyond, the disk is gone


class Request(NamedTuple):
    """Which training sample is wanted; it alone fixes the sample's content."""

    epoch: int
    image_id: int
    augment_fully: bool
    shape: Shape
    """Height and width of the sample, pixels; a mosaic's must be square."""
    turn: int = 0
    """How many times the epoch has drawn the image before, where it is drawn by weights."""


class LoadedSample(NamedTuple):
    """One sample as it leaves a loader process."""

    image: torch.Tensor
    """uint8 `[3, height, width]`, RGB."""
    labels: torch.Tensor
    """float32 rows class, centre x, centre y, width, height; normalised, `[n, 5]`."""
    image_id: int
    """Place in the split."""
    original_shape: tuple[int, int]
    """Height and width of the image file, pixels."""
    letterbox: tuple[float, float, float, float]
    """Scale x, scale y, left, top: from the image file's pixels to the sample's."""
    epoch: int = 0
    """Of the request; 0 in validation."""
    unreadable: tuple[str, ...] = ()
    """What could not be read and has another image's sample in its place, a sentence each."""
    mask: torch.Tensor | None = None
    """Which row of `labels` each pixel belongs to, 1 for the first and 0 for none, int16
    `[height / ratio, width / ratio]`; None where masks are not asked for."""


class _Scene(NamedTuple):
    """A sample that is being made."""

    image: Image
    rows: Rows
    """Class and corners in pixels, `[n, 5]`."""
    polygons: list[Points]
    """Of each row, in pixels; none at all where masks are not asked for."""


class Missing(NamedTuple):
    """A sample that there is none of."""

    unreadable: tuple[str, ...]
    """Why, a sentence."""


class _Samples(Dataset[LoadedSample | Missing]):
    """The samples of a split, which loader processes share.

    Args:
        images: the split's images.
        store: their pixels.
    """

    def __init__(self, images: Sequence[LabelledImage], store: ImageStore) -> None:
        self.images = images
        """The split's images, by place."""
        self.store = store
        """Their pixels."""
        self._shared: SharedSequence[LabelledImage] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Go to a loader process with the labels in memory that all of them share."""
        if self._shared is None:
            self._shared = SharedSequence(self.images)
        store = self.store.over(self._shared)
        return {**vars(self), "images": self._shared, "store": store}


class TrainingSamples(_Samples):
    """The training split, augmented; indexed by `Request`.

    Args:
        images: the split's images.
        size: side of the samples, pixels.
        strengths: hyperparameters by their official names.
        seed: of everything random.
        shrinking: of images larger than the samples.
        mask_ratio: pixels of a sample a pixel of its mask; 0 makes no masks.
    """

    def __init__(
        self,
        images: Sequence[LabelledImage],
        *,
        size: int,
        strengths: Mapping[str, float],
        seed: int,
        shrinking: Shrinking = "linear",
        mask_ratio: int = 0,
    ) -> None:
        super().__init__(images, ImageStore(images, size, shrinking))
        self._mask_ratio = mask_ratio
        self._size = size
        self._strengths = dict(strengths)
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, request: Request) -> LoadedSample:
        """Return the augmented sample that the request names.

        An image that cannot be read any more is left out: the next one's sample stands in.

        Raises:
            UnreadableError: so it is with many in a row.
        """
        failed: list[str] = []
        most = min(_MOST_UNREADABLE, len(self) - 1)
        while True:
            try:
                return self._sample(request)._replace(unreadable=tuple(failed))
            except UnreadableError as error:
                if len(failed) >= most:
                    raise
                failed.append(str(error))
            request = request._replace(image_id=(request.image_id + 1) % len(self))

    def _sample(self, request: Request) -> LoadedSample:
        numbers = (request.epoch, request.image_id, SAMPLE_STREAM)
        # A further number only where there is a turn: sequences that differ in zeros are alike.
        turn = (request.turn,) if request.turn else ()
        rng = random_stream(self._seed, *numbers, *turn)
        if request.augment_fully and rng.random() < self._strengths["mosaic"]:
            scene = self._mosaic(request.image_id, rng)
            if rng.random() < self._strengths["mixup"]:
                other = self._mosaic(int(rng.integers(len(self))), rng)
                mixed = mix(scene[:2], other[:2], rng)
                scene = _Scene(*mixed, scene.polygons + other.polygons)
        else:
            scene = self._single(request.image_id, request.shape, rng)
        image = shift_colours(scene.image, self._strengths, rng)
        flips = draw_flips(self._strengths, rng)
        image, rows = flip(image, scene.rows, *flips)
        labelled = self.images[request.image_id]
        return LoadedSample(
            to_tensor(image),
            torch.from_numpy(normalise_boxes(rows, request.shape)),
            request.image_id,
            (labelled.height, labelled.width),
            (1.0, 1.0, 0.0, 0.0),
            request.epoch,
            mask=self._mask(scene, flips),
        )

    def _mask(self, scene: _Scene, flips: tuple[bool, bool]) -> torch.Tensor | None:
        if not self._mask_ratio:
            return None
        mask = rasterise(scene.polygons, scene.image.shape[:2], self._mask_ratio)
        axes = tuple(axis for axis, turned in enumerate(flips) if turned)
        return torch.from_numpy(np.ascontiguousarray(np.flip(mask, axes)))

    def _mosaic(self, image_id: int, rng: np.random.Generator) -> _Scene:
        """Return a view of four images; those it does not show are not decoded."""
        size = self._size
        chosen = [image_id, *map(int, rng.integers(len(self), size=NUM_IMAGES - 1))]
        rng.shuffle(chosen)
        images = [self.images[place] for place in chosen]
        places = draw_places([resized_shape(image, size) for image in images], size, rng)
        rows, polygons = gather_objects(images, places, size)
        share = self._strengths["copy_paste"]
        copies = choose_copies(rows, polygons, share, 2 * size, rng) if polygons else []
        view = draw_view((2 * size, 2 * size), (size, size), self._strengths, rng)
        canvas = compose(
            [
                # A copy may show what the view itself does not.
                self.store[number] if copies or sees(view, place) else None
                for number, place in zip(chosen, places, strict=True)
            ],
            places,
            size,
        )
        paste_copies(canvas, copies)
        return self._scene(render(canvas, view), *add_copies(rows, polygons, copies), view)

    def _scene(self, image: Image, rows: Rows, polygons: list[Points], view: View) -> _Scene:
        if not self._mask_ratio:
            return _Scene(image, map_objects(rows, polygons, view), [])
        return _Scene(image, *map_shapes(rows, polygons, view))

    def _single(self, image_id: int, shape: Shape, rng: np.random.Generator) -> _Scene:
        resized = self.store[image_id]
        labelled = self.images[image_id]
        image, (scale_x, scale_y, left, top) = letterbox(resized, shape, scale_up=True)
        height, width = resized.shape[0] * scale_y, resized.shape[1] * scale_x
        rows = place_boxes(labelled.labels, height, width, left, top)
        polygons = place_polygons(labelled.polygons, height, width, left, top)
        view = draw_view(shape, shape, self._strengths, rng)
        return self._scene(render(image, view), rows, polygons, view)


class ValidationSamples(_Samples):
    """The validation split, letterboxed; indexed by place and the sample's height and width.

    Images come with their longer side at `image_size` and are not enlarged to a larger sample, so
    that objects are as large as in training, as in the official validation.

    Args:
        images: the split's images.
        image_size: the longer side of the images, pixels.
        mask_ratio: pixels of a sample a pixel of its mask; 0 makes no masks.
    """

    def __init__(
        self, images: Sequence[LabelledImage], *, image_size: int, mask_ratio: int = 0
    ) -> None:
        super().__init__(images, ImageStore(images, image_size, "area"))
        self._mask_ratio = mask_ratio

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, wanted: tuple[int, Shape]) -> LoadedSample | Missing:
        """Return the letterboxed sample with the map that made it; `Missing` if unreadable."""
        place, shape = wanted
        labelled = self.images[place]
        original = (labelled.height, labelled.width)
        try:
            resized = self.store[place]
        except UnreadableError as error:
            return Missing((str(error),))
        image, (scale_x, scale_y, left, top) = letterbox(resized, shape, scale_up=False)
        scale_x *= resized.shape[1] / original[1]
        scale_y *= resized.shape[0] / original[0]
        where = (original[0] * scale_y, original[1] * scale_x, left, top)
        rows: Rows = place_boxes(labelled.labels, *where)
        labels = torch.from_numpy(normalise_boxes(rows, shape))
        transform = (scale_x, scale_y, left, top)
        mask = None
        if self._mask_ratio:
            polygons = place_polygons(labelled.polygons, *where)
            mask = torch.from_numpy(rasterise(polygons, shape, self._mask_ratio))
        return LoadedSample(to_tensor(image), labels, place, original, transform, mask=mask)


def to_tensor(image: Image) -> torch.Tensor:
    """Return BGR pixels as an RGB tensor `[3, h, w]`."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [planes[2], planes[1], planes[0]])
    return torch.from_numpy(planes)
