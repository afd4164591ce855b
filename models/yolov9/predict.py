"""Detections in images and videos, drawn and written: `memplan predict`."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from memplan.errors import BadInputError, UsageError
from memplan.inference import Detections

from ..detection_metrics.drawing import draw_boxes, draw_masks
from ..detection_metrics.masks import full_size, outlines
from ..detection_metrics.nms import non_max_suppression
from ..detection_metrics.written import write_polygons, write_rows
from ..yolo_data.augment import letterbox
from ..yolo_data.pipeline import to_tensor
from ..yolo_data.sources import Picture, find_files, read_pictures
from .detector import Detector, load_detector

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import numpy.typing as npt

    from memplan.inference import DetectOptions

    from ..detection_metrics.coco import Floats

    Masks = npt.NDArray[np.bool_]


def detect(options: DetectOptions) -> Generator[str, None, list[Detections]]:
    """Detect, yield a line for each image and frame, and return what was found.

    Raises:
        BadInputError: weights or source cannot be used, or nothing can be written.
        UsageError: a class is not one of the network's.
    """
    files = find_files(options.source)
    detector = load_detector(options, options.data)
    yield from detector.notes
    num_classes = len(detector.class_names)
    wrong = [label for label in options.classes if not 0 <= label < num_classes]
    if wrong:
        raise UsageError(f"--classes {wrong[0]} is not one of 0 to {num_classes - 1}.")
    labels = options.folder / "labels"
    if options.saves_txt:
        labels.mkdir(exist_ok=True)
    all_found = []
    for number, path in enumerate(files, start=1):
        writer = _Writer(options, _free(options.folder / path.name))
        try:
            for picture in read_pictures(path, options.video_stride):
                start = time.perf_counter()
                found, masks = _find(detector, picture, options)
                seconds = time.perf_counter() - start
                if options.saves_txt and len(found):
                    frame = "" if picture.frame is None else f"_{picture.frame}"
                    _write_rows(labels / f"{path.stem}{frame}.txt", found, masks, picture, options)
                if options.saves_images:
                    writer.write(picture, found, masks, detector.class_names)
                if options.saves_crops:
                    _write_crops(found, picture, detector.class_names, options.folder)
                yield _line(number, len(files), picture, found, detector.class_names, seconds)
                all_found.append(
                    Detections(
                        path=path,
                        frame=picture.frame,
                        boxes=found.astype(np.float32),
                        class_names=detector.class_names,
                        masks=masks,
                    )
                )
        finally:
            writer.close()
    if options.saves_images or options.saves_txt or options.saves_crops:
        yield f"Wrote {options.folder}"
    return all_found


def _find(
    detector: Detector, picture: Picture, options: DetectOptions
) -> tuple[Floats, Masks | None]:
    """Return the detections in the picture's own pixels, best first, `[k, 6]`, and their masks."""
    height, width = picture.pixels.shape[:2]
    side, stride = detector.fixed_size or options.image_size, detector.stride
    if detector.fixed_size is None:
        # The smallest rectangle of whole strides that holds the image at this size.
        ratio = side / max(height, width)
        shape = (_whole(height * ratio, stride), _whole(width * ratio, stride))
    else:
        shape = (side, side)
    image, (scale_x, scale_y, left, top) = letterbox(picture.pixels, shape, scale_up=True)
    raw, prototypes = detector.with_masks(to_tensor(image)[None])
    [found] = non_max_suppression(
        raw,
        confidence=options.confidence,
        iou=options.iou,
        max_detections=options.max_detections,
        classes=options.classes,
        agnostic=options.agnostic,
        multi_label=False,
        num_extra=0 if prototypes is None else prototypes.shape[1],
    )
    rows = found[:, :6].double().cpu().numpy()
    rows[:, :4] = (rows[:, :4] - np.tile([left, top], 2)) / np.tile([scale_x, scale_y], 2)
    rows[:, :4] = rows[:, :4].clip(0, np.tile([width, height], 2))
    if prototypes is None:
        return rows, None
    visible = (
        *(left / shape[1], top / shape[0]),
        *((left + width * scale_x) / shape[1], (top + height * scale_y) / shape[0]),
    )
    boxes = torch.from_numpy(rows[:, :4]).to(prototypes.device)
    return rows, full_size(found[:, 6:], prototypes[0], boxes, visible, (height, width))


def _whole(side: float, stride: int) -> int:
    return max(-(-round(side) // stride), 1) * stride


def _write_rows(
    path: Path, found: Floats, masks: Masks | None, picture: Picture, options: DetectOptions
) -> None:
    height, width = picture.pixels.shape[:2]
    scores = options.saves_confidence
    if masks is None:
        write_rows(path, found, (height, width), confidence=scores)
    else:
        write_polygons(path, found, outlines(masks), (height, width), confidence=scores)


_CROP_GAIN, _CROP_BORDER = 1.02, 10
"""By how much more than its box a crop shows: a factor, then pixels. Source: the official script,
utils/plots.py, save_one_box."""


def _write_crops(found: Floats, picture: Picture, names: tuple[str, ...], folder: Path) -> None:
    """Write each object as `crops/CLASS/IMAGE.jpg`, a little wider than its box."""
    height, width = picture.pixels.shape[:2]
    for left, top, right, bottom, _, label in found.tolist():
        grow_x = ((right - left) * (_CROP_GAIN - 1) + _CROP_BORDER) / 2
        grow_y = ((bottom - top) * (_CROP_GAIN - 1) + _CROP_BORDER) / 2
        columns = slice(max(int(left - grow_x), 0), min(int(right + grow_x), width))
        rows = slice(max(int(top - grow_y), 0), min(int(bottom + grow_y), height))
        name = names[int(label)].replace("/", "_").strip(".") or str(int(label))
        parent = folder / "crops" / name
        parent.mkdir(parents=True, exist_ok=True)
        path = _free(parent / f"{picture.path.stem}.jpg")
        if not cv2.imwrite(str(path), picture.pixels[rows, columns]):
            raise BadInputError(f"{path} cannot be written.")


def _line(
    number: int,
    count: int,
    picture: Picture,
    found: Floats,
    names: tuple[str, ...],
    seconds: float,
) -> str:
    counts = Counter(int(label) for label in found[:, 5])
    seen = ", ".join(f"{n}x {names[label]}" for label, n in sorted(counts.items())) or "nothing"
    frame = ""
    if picture.frame is not None:
        frame = f" frame {picture.frame + 1}" + (
            f"/{picture.num_frames}" * bool(picture.num_frames)
        )
    return f"{number}/{count} {picture.path}{frame}: {seen} ({seconds * 1000:.0f} ms, measured)"


def _free(path: Path) -> Path:
    """Return a path that nothing was written to; two folders may have images of one name."""
    number = 2
    free = path
    while free.exists():
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return free


class _Writer:
    """An image, or a video frame after frame, with its boxes."""

    def __init__(self, options: DetectOptions, path: Path) -> None:
        self._options = options
        self._path = path
        self._video: Any = None

    def write(
        self, picture: Picture, found: Floats, masks: Masks | None, names: tuple[str, ...]
    ) -> None:
        """Draw masks and boxes and write the picture.

        Raises:
            BadInputError: the file cannot be written.
        """
        options = self._options
        pixels = picture.pixels.copy()
        if masks is not None:
            draw_masks(pixels, masks, found)
        draw_boxes(
            pixels,
            found,
            names,
            thickness=options.line_thickness,
            labels=options.shows_labels,
            confidence=options.shows_confidence,
        )
        if picture.frame is None:
            if not cv2.imwrite(str(self._path), pixels):
                raise BadInputError(f"{self._path} cannot be written.")
            return
        if self._video is None:
            self._path = self._path.with_suffix(".mp4")
            rate = picture.frames_per_second / options.video_stride
            code = cv2.VideoWriter.fourcc(*"mp4v")
            size = (pixels.shape[1], pixels.shape[0])
            self._video = cv2.VideoWriter(str(self._path), code, rate, size)
            if not self._video.isOpened():
                raise BadInputError(f"{self._path} cannot be written as a video.")
        self._video.write(pixels)

    def close(self) -> None:
        """Finish the video, where there is one."""
        if self._video is not None:
            self._video.release()
