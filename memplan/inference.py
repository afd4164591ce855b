"""What is asked of a trained network, to be evaluated or to detect, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """Which network, where it runs, and which of its detections count."""

    weights: Path
    """A checkpoint, an export of one, or an ONNX or OpenVINO file."""
    folder: Path
    """Where results go; exists."""
    cfg: str | None = None
    """The configuration of a checkpoint; None asks the checkpoint."""
    blocks: str | None = None
    """A module of the user's whose classes that configuration names."""
    data: Path | None = None
    """A `data.yaml`: what is evaluated, or the names of the classes."""
    image_size: int = 640
    """The longer side of images, pixels; a file of a fixed size has its own."""
    device: str = "cpu"
    """As torch names it."""
    half: bool = False
    """Compute in half precision."""
    confidence: float = 0.001
    """The least score of a detection, 0 to 1."""
    iou: float = 0.7
    """Boxes of a class that overlap more are one detection, 0 to 1."""
    max_detections: int = 300
    """Kept in an image."""
    saves_txt: bool = False
    """Write `labels/IMAGE.txt`: class and box, normalised."""
    saves_confidence: bool = False
    """Add the score to each row of those."""


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(InferenceOptions):
    """What the user asked of `memplan val`."""

    split: str = "val"
    """`train`, `val` or `test`, of `data`."""
    batch_size: int = 32
    """Images at once, >= 1."""
    num_workers: int = 0
    """Processes that load images."""
    square: bool = False
    """Square images without padding, as the official speed task; else rectangles."""
    single_class: bool = False
    """Take all classes for one."""
    min_items: int = 0
    """Leave out images with fewer objects, >= 0."""
    saves_json: bool = False
    """Write the detections as COCO's result file."""
    draws: bool = True
    """Draw curves and images."""


@dataclass(frozen=True, kw_only=True)
class DetectOptions(InferenceOptions):
    """What the user asked of `memplan predict`."""

    source: str
    """An image, a video, a folder, a glob pattern, or a text file that lists images."""
    classes: tuple[int, ...] = ()
    """Class numbers that count; empty means all."""
    agnostic: bool = False
    """Boxes of different classes that overlap are one detection too."""
    saves_images: bool = True
    """Write images and videos with the boxes drawn."""
    saves_crops: bool = False
    """Write each found object as `crops/CLASS/IMAGE.jpg`."""
    line_thickness: int = 3
    """Of the boxes, pixels, >= 1."""
    shows_labels: bool = True
    shows_confidence: bool = True
    video_stride: int = 1
    """Every how many-th frame of a video is looked at, >= 1."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How well a network detected, measured on a split."""

    scores: Mapping[str, float]
    """`precision`, `recall`, `mAP50`, `mAP50-95` and `fitness`, each 0 to 1."""
    classes: Mapping[str, Mapping[str, float]]
    """Of each class that has objects: images, objects, precision, recall and average precision."""
    milliseconds: Mapping[str, float]
    """An image took, by stage."""
    num_images: int
    folder: Path
    """Where the details were written."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in an image or a frame of a video."""

    path: Path
    frame: int | None
    """Of a video, from 0; None for an image."""
    boxes: np.ndarray[Any, Any]
    """Float32 `[n, 6]`, best first: left, top, right, bottom in pixels, score, class."""
    class_names: tuple[str, ...]
    masks: np.ndarray[Any, Any] | None = None
    """Bool `[n, height, width]` in the image's pixels; None from a network of boxes alone."""
