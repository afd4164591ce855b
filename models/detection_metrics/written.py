"""Detections as files: rows of a label file, and entries of COCO's result file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from .coco import Floats

    Points = npt.NDArray[np.int32]

# COCO numbers its 80 classes up to 90, with gaps. Source: its annotation files, instances_*2017.
_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
_COCO_NUMBERS = [number for number in range(1, 91) if number not in _GAPS]


def write_rows(path: Path, detections: Floats, shape: tuple[int, int], *, confidence: bool) -> None:
    """Write detections as a label file: class, centre, width and height, normalised.

    Args:
        path: replaced if it exists.
        detections: left, top, right, bottom, score, class, in pixels, `[k, 6]`.
        shape: height and width of the image, pixels.
        confidence: whether each row ends in its score.
    """
    height, width = shape
    lines = []
    for left, top, right, bottom, score, label in detections.tolist():
        box = (
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        )
        numbers = [*box, score] if confidence else box
        lines.append(" ".join([str(int(label)), *(f"{number:.6g}" for number in numbers)]) + "\n")
    path.write_text("".join(lines), encoding="ascii")


def write_polygons(
    path: Path,
    detections: Floats,
    polygons: Sequence[Points],
    shape: tuple[int, int],
    *,
    confidence: bool,
) -> None:
    """Write detections as a label file of polygons: class and points, normalised.

    Those whose polygon has fewer than three points are left out.

    Args:
        path: replaced if it exists.
        detections: left, top, right, bottom, score, class, `[k, 6]`.
        polygons: of each, pixels `[n, 2]`.
        shape: height and width of the image, pixels.
        confidence: whether each row ends in its score.
    """
    lines = []
    for row, points in zip(detections.tolist(), polygons, strict=True):
        if len(points) >= 3:
            numbers = (points / [shape[1], shape[0]]).ravel().tolist()
            numbers += [row[4]] if confidence else []
            texts = [str(int(row[5])), *(f"{number:.6g}" for number in numbers)]
            lines.append(" ".join(texts) + "\n")
    path.write_text("".join(lines), encoding="ascii")


def coco_results(name: str, detections: Floats, *, is_coco: bool) -> list[dict[str, Any]]:
    """Return an image's detections as COCO's result file has them.

    Args:
        name: of the image, without ending; a number is its number.
        detections: left, top, right, bottom, score, class, in pixels, `[k, 6]`.
        is_coco: number classes as COCO's own annotations do.
    """
    image: int | str = int(name) if name.isdecimal() else name
    return [
        {
            "image_id": image,
            "category_id": _number(int(label), is_coco=is_coco),
            "bbox": [round(v, 3) for v in (left, top, right - left, bottom - top)],
            "score": round(score, 5),
        }
        for left, top, right, bottom, score, label in detections.tolist()
    ]


def _number(label: int, *, is_coco: bool) -> int:
    return _COCO_NUMBERS[label] if is_coco and label < len(_COCO_NUMBERS) else label
