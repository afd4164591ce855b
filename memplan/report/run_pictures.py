"""Pictures that a run left, placed on pages: predictions beside labels, training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from memplan.present.run_record import RunRecord
from memplan.report import theme
from memplan.report.frame import BOTTOM, LEFT, TOP, WIDTH, axes_at, new_page

# A picture in the PDF has at most this many pixels a side, and 256 colours, which the file keeps
# as one byte a pixel: ten pages stay below 2 MB.
_MOST_PIXELS = 1150
_CAPTIONS = {"validation_batch.png": "of each pair the labels left, the predictions right"}
_MOST_FILE_PIXELS = 40_000_000
_MOST_FILE_BYTES = 64 << 20


@theme.themed
def picture_figures(run: RunRecord, kept_free: Mapping[str, float]) -> dict[str, Figure]:
    """Return a page for each picture of the run that can be read, by the file's name.

    Args:
        run: read from its folder.
        kept_free: how much of a picture's page stays free below it, inches, by the file's name.
    """
    return dict(_pages(run, kept_free))


def _pages(run: RunRecord, kept_free: Mapping[str, float]) -> Iterator[tuple[str, Figure]]:
    for path, what in run.pictures:
        pixels = _read(path)
        if pixels is None:
            continue
        figure = new_page(f"Run {run.folder.name}: {what[0].lower()}{what[1:]}", _caption(path))
        height, width = pixels.shape[:2]
        room = BOTTOM - TOP - kept_free.get(path.name, 0.0)
        scale = min(WIDTH / width, room / height)
        left = LEFT + (WIDTH - width * scale) / 2
        axes = axes_at(figure, left, TOP, width * scale, height * scale)
        axes.imshow(pixels, aspect="auto", interpolation="none")
        axes.set_axis_off()
        yield path.name, figure


def _caption(path: Path) -> str:
    said = _CAPTIONS.get(path.name, "")
    return f"{path.name}: {said}" if said else path.name


def _read(path: Path) -> npt.NDArray[np.uint8] | None:
    """Return a picture's pixels `[h, w, 3]`, uint8; None where the file is no picture."""
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            return None
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > _MOST_FILE_PIXELS:
                return None
            small = image.convert("RGB")
            small.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
            return np.asarray(small.quantize(256).convert("RGB"))
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for a damaged file
        return None
