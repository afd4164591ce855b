"""Images with their boxes: training samples as they are learnt, validation beside its labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .charts import themed
from .confusion import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from matplotlib.axes import Axes

    from .coco import Floats, PicturedImage

MOST_IMAGES = 16  # of a batch
_TILE_INCHES = 3.2
_GAP = 0.03  # between tiles, of a tile's width
_HEADING = 0.09  # room for a line of text, of a tile's width
_COLOURS = [to_hex(colormaps["tab10"](number)) for number in range(10)]
_LIGHT = {_COLOURS[number] for number in (6, 7, 8, 9)}  # black reads better on these


@dataclass(frozen=True)
class _Tile:
    """An image with its boxes."""

    image: torch.Tensor
    """uint8 `[3, h, w]`, RGB."""
    corners: Floats
    """Rows left, top, right, bottom, pixels."""
    labels: Floats
    texts: Sequence[str]
    heading: str = ""


@themed
def batch_figure(batch: Mapping[str, torch.Tensor], class_names: Sequence[str]) -> Figure:
    """Return up to 16 images of a training batch with their boxes.

    Args:
        batch: `images` uint8 `[B, 3, h, w]` and `targets` `[B, M, 5]`, as the loader makes them.
        class_names: names by class number.
    """
    images = batch["images"][:MOST_IMAGES]
    height, width = images.shape[-2:]
    tiles = []
    for image, targets in zip(images, batch["targets"], strict=False):
        rows = targets[targets[:, 0] >= 0].double().numpy()
        half = rows[:, 3:5] / 2
        corners = np.concatenate([rows[:, 1:3] - half, rows[:, 1:3] + half], axis=1)
        corners *= (width, height, width, height)
        names = [class_names[int(label)] for label in rows[:, 0]]
        tiles.append(_Tile(image, corners, rows[:, 0], names))
    return _tiled(tiles, math.ceil(math.sqrt(len(tiles))))


@themed
def predictions_figure(images: Sequence[PicturedImage], class_names: Sequence[str]) -> Figure:
    """Return validation images in pairs: labels on the left, predictions on the right.

    Predictions are those of a confidence from 0.25.
    """
    tiles = []
    for image in images:
        names = [class_names[int(label)] for label in image.objects[:, 4]]
        tiles.append(_Tile(image.image, image.objects[:, :4], image.objects[:, 4], names, "labels"))
        sure = image.detections[image.detections[:, 4] >= CONFIDENCE]
        texts = [f"{class_names[int(row[5])]} {row[4]:.2f}" for row in sure]
        heading = f"predictions, confidence {CONFIDENCE:g} or more"
        tiles.append(_Tile(image.image, sure[:, :4], sure[:, 5], texts, heading))
    return _tiled(tiles, 2 if len(tiles) == 2 else 4)


def _tiled(tiles: Sequence[_Tile], columns: int) -> Figure:
    """Return the tiles in rows; one axes holds all, since a layout of many takes seconds."""
    sizes = np.array([tile.image.shape[-2:] for tile in tiles])
    height, width = sizes.max(axis=0).tolist()
    rows = math.ceil(len(tiles) / columns)
    gap = max(2, round(_GAP * width))
    heading = round(_HEADING * width) if any(tile.heading for tile in tiles) else 0
    step_x, step_y = width + gap, height + gap + heading
    canvas = np.full((rows * step_y + gap, columns * step_x + gap, 3), 255, np.uint8)
    inches = _TILE_INCHES / width
    figure = Figure(figsize=(canvas.shape[1] * inches, canvas.shape[0] * inches))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, tile in enumerate(tiles):
        left = gap + number % columns * step_x
        top = gap + heading + number // columns * step_y
        pixels = tile.image.permute(1, 2, 0).numpy()
        canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        if tile.heading:
            axes.text(left, top - gap / 2, tile.heading, fontsize=8, va="bottom")
        _draw(axes, tile, left, top)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    return figure


def _draw(axes: Axes, tile: _Tile, x: int, y: int) -> None:
    """Draw a tile's boxes with their names above, or inside where there is no room above."""
    height, width = tile.image.shape[-2:]
    low, high = (0, 0, 0, 0), (width, height, width, height)
    shown = np.clip(tile.corners, low, high) + np.array((x, y, x, y))
    for (left, top, right, bottom), label, text in zip(shown, tile.labels, tile.texts, strict=True):
        colour = _COLOURS[int(label) % len(_COLOURS)]
        axes.add_patch(
            Rectangle(
                (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.2
            )
        )
        axes.text(
            left,
            top,
            text,
            fontsize=6.5,
            color="black" if colour in _LIGHT else "white",
            va="top" if top - y < 0.06 * height else "bottom",
            ha="right" if left - x > 0.9 * width else "left",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
        )
