"""Batches with the shapes of real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from memplan.workload import Batch


def example_batch(num_images: int, side: int, objects: int, mask_ratio: int = 0) -> Batch:
    """Return a batch as the loader makes it, of square images that each hold so many objects.

    Args:
        num_images: >= 1.
        side: of the images, pixels.
        objects: in each image, >= 0.
        mask_ratio: pixels of an image a pixel of its masks; 0 without masks.
    """
    targets = torch.full((num_images, max(1, objects), 5), 0.5)
    targets[..., 0] = 0 if objects else -1
    batch = {
        "images": torch.zeros(num_images, 3, side, side, dtype=torch.uint8),
        "targets": targets,
        "image_ids": torch.arange(num_images),
        "original_shapes": torch.full((num_images, 2), side),
        "letterbox": torch.ones(num_images, 4, dtype=torch.float64),
    }
    if mask_ratio:
        height = side // mask_ratio
        batch["masks"] = torch.zeros(num_images, height, height, dtype=torch.int16)
    return batch
