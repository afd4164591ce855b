"""Boxes drawn into an image's own pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from .coco import Floats

# BGR of Okabe and Ito's colours, which people who see few colours can tell apart.
_COLOURS = (
    *((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240)),
    *((178, 114, 0), (0, 94, 213), (167, 121, 204), (40, 40, 40)),
)
_TINT = 0.5  # of a mask's colour in what it covers
_DARK = frozenset({2, 4, 5, 7})  # by place above; white reads better on these


def draw_boxes(
    pixels: npt.NDArray[np.uint8],
    detections: Floats,
    class_names: Sequence[str],
    *,
    thickness: int = 3,
    labels: bool = True,
    confidence: bool = True,
) -> None:
    """Draw detections into an image, the surest on top.

    Args:
        pixels: `[height, width, 3]`, BGR; changed.
        detections: left, top, right, bottom, score, class, in pixels, `[k, 6]`, best first.
        class_names: by class number.
        thickness: of lines, pixels, >= 1.
        labels: whether a box has its class's name.
        confidence: whether the name is followed by the score.
    """
    for left, top, right, bottom, score, label in detections[::-1].tolist():
        place = int(label) % len(_COLOURS)
        corner = round(left), round(top)
        cv2.rectangle(pixels, corner, (round(right), round(bottom)), _COLOURS[place], thickness)
        if labels:
            text = class_names[int(label)] + (f" {score:.2f}" if confidence else "")
            _write(pixels, text, corner, place, thickness)


def draw_masks(
    pixels: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], detections: Floats
) -> None:
    """Tint what masks cover, in the colours of `draw_boxes`, the surest on top.

    Args:
        pixels: `[height, width, 3]`, BGR; changed.
        masks: bool `[k, height, width]`.
        detections: their classes are in the last column, `[k, 6]`, best first.
    """
    for mask, label in zip(masks[::-1], detections[::-1, 5].tolist(), strict=True):
        colour = np.array(_COLOURS[int(label) % len(_COLOURS)])
        blended = (1 - _TINT) * pixels[mask] + _TINT * colour
        pixels[mask] = np.rint(blended).astype(np.uint8)


def _write(
    pixels: npt.NDArray[np.uint8], text: str, corner: tuple[int, int], place: int, thickness: int
) -> None:
    font, scale, weight = cv2.FONT_HERSHEY_SIMPLEX, thickness / 4, max(thickness - 2, 1)
    (width, height), below = cv2.getTextSize(text, font, scale, weight)
    left, top = max(corner[0], 0), corner[1] - height - below
    if top < 0:  # no room above the box
        top = max(corner[1], 0)
    end = (left + width, top + height + below)
    cv2.rectangle(pixels, (left, top), end, _COLOURS[place], cv2.FILLED)
    colour = (255, 255, 255) if place in _DARK else (0, 0, 0)
    where = (left, top + height + below // 2)
    cv2.putText(pixels, text, where, font, scale, colour, weight, cv2.LINE_AA)
