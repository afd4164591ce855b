"""Samples put together into batches, four to an image of twice the side where asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .augment import FILL
from .order import QUAD_STREAM, random_stream
from .pipeline import LoadedSample

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHARE_ENLARGED = 0.5  # of the quads that show one image at twice its size


def collate(samples: Sequence[LoadedSample]) -> dict[str, torch.Tensor]:
    """Return samples as one batch, with targets padded to the fullest sample.

    `targets` is float32 `[B, M, 5]`: class, centre x, centre y, width, height, normalised; M is the
    most objects in a sample and at least 1; rows of padding have class -1 and zeros. Samples with
    masks give `masks`, int16 `[B, h, w]`.
    """
    most = max(1, *(len(sample.labels) for sample in samples))
    targets = torch.zeros(len(samples), most, 5)
    targets[..., 0] = -1
    for padded, sample in zip(targets, samples, strict=True):
        padded[: len(sample.labels)] = sample.labels
    masks = [sample.mask for sample in samples if sample.mask is not None]
    return {
        "images": _stack([sample.image for sample in samples]),
        "targets": targets,
        "image_ids": torch.tensor([sample.image_id for sample in samples]),
        "original_shapes": torch.tensor([sample.original_shape for sample in samples]),
        "letterbox": torch.tensor([sample.letterbox for sample in samples], dtype=torch.float64),
        **({"masks": _stack(masks)} if masks else {}),
    }


def _stack(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the images as one tensor, in a worker in memory that the main process shares."""
    batch = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype)
    if torch.utils.data.get_worker_info() is not None:
        # Else sending it would copy it once more.
        batch.share_memory_()  # type: ignore[no-untyped-call]
    return torch.stack(list(images), out=batch)


class QuadCollate:
    """Batches of images of twice the side: four samples, or one of four enlarged.

    Chance decides by seed, epoch and the first sample. A group of fewer than four, at an epoch's
    end, is put together with grey. (The official recipe leaves such samples out.)

    Args:
        seed: of everything random.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, samples: Sequence[LoadedSample]) -> dict[str, torch.Tensor]:
        """Return the batch as `collate` does, with `images_each`, int64 `[B]`: samples spent."""
        groups = [samples[start : start + 4] for start in range(0, len(samples), 4)]
        batch = collate([self._merge(group) for group in groups])
        return batch | {"images_each": torch.tensor([len(group) for group in groups])}

    def _merge(self, group: Sequence[LoadedSample]) -> LoadedSample:
        first = group[0]
        rng = random_stream(self._seed, first.epoch, first.image_id, QUAD_STREAM)
        if len(group) == 4 and rng.random() < _SHARE_ENLARGED:
            return first._replace(image=_enlarge(first.image))
        height, width = first.image.shape[1:]
        image = torch.full((3, 2 * height, 2 * width), FILL, dtype=torch.uint8)
        labels = []
        for place, sample in enumerate(group):
            row, column = divmod(place, 2)
            top, left = row * height, column * width
            image[:, top : top + height, left : left + width] = sample.image
            moved = sample.labels.clone()
            moved[:, 1:] /= 2
            moved[:, 1:3] += torch.tensor([column / 2, row / 2])
            labels.append(moved)
        return first._replace(image=image, labels=torch.cat(labels))


def _enlarge(image: torch.Tensor) -> torch.Tensor:
    """Return the image at twice its size, bilinear."""
    large = torch.nn.functional.interpolate(
        image[None].float(), scale_factor=2.0, mode="bilinear", align_corners=False
    )
    return large[0].round_().to(torch.uint8)
