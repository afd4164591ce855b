"""What is looked at of an augmented training image, by both sides of `official_parity`."""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = (
    "mean of the pixels",
    "standard deviation of the pixels",
    "mean gradient",
    "share of grey border",
    "objects",
    "mean width of the objects",
    "mean height of the objects",
    "mean distance of the objects from the centre",
)
_GREY = 114


def statistics_of(pixels: Any, rows: Any) -> list[float]:
    """Return the numbers of `NAMES`; those of the objects are NaN where there is none.

    Args:
        pixels: uint8 `[3, H, W]`.
        rows: class, centre x, centre y, width, height; normalised, `[n, 5]`.
    """
    grey = pixels.astype(np.float64).mean(0)
    gradient = (np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2
    border = (pixels == _GREY).all(0).mean()
    sizes = [float("nan")] * 3
    if len(rows):
        distances = np.hypot(rows[:, 1] - 0.5, rows[:, 2] - 0.5)
        sizes = [float(rows[:, 3].mean()), float(rows[:, 4].mean()), float(distances.mean())]
    return [float(grey.mean()), float(grey.std()), float(gradient), float(border),
            float(len(rows)), *sizes]  # fmt: skip
