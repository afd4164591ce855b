"""Size and pixels of an image file as its EXIF orientation turns it: one reader for both.

Orientation that stands in XMP alone, which photo viewers write, is not applied: OpenCV and the
official tool do not know it, and labels were drawn on what such tools showed.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 0x0100, 0x0101
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Source: EXIF 2.3, tag Orientation."""


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened image, 1 where it has none."""
    # Pillow falls back to XMP.
    for key in ("xmp", "XML:com.adobe.xmp"):
        image.info.pop(key, None)
    found = image.getexif().get(_ORIENTATION, 1)
    return found if found in _TURNS else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height after the EXIF orientation is applied, from the header alone."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow has turned the size of these, in its later versions
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        width, height = tags.get(_TIFF_WIDTH, width), tags.get(_TIFF_HEIGHT, height)
    return (height, width) if orientation(image) >= 5 else (width, height)


def upright_pixels(path: Path) -> npt.NDArray[np.uint8] | None:
    """Return `[height, width, 3]`, BGR, of the size that `upright_size` says; None if unreadable.

    For what OpenCV does not read as this module does; several times slower.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                size, turn = upright_size(image), _TURNS.get(orientation(image))
                pixels = image.convert("RGB")
                # TIFF is turned by Pillow itself when it loads.
                if turn is not None and pixels.size != size:
                    pixels = pixels.transpose(turn)
    except Exception:  # noqa: BLE001 - damaged images raise nearly anything
        return None
    return np.ascontiguousarray(np.asarray(pixels, np.uint8)[..., ::-1])
