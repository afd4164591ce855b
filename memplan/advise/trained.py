"""What is done with trained networks: they are evaluated, they detect, and they are exported."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

from memplan.advise.question import DEFAULT_WORKLOAD, silent
from memplan.capabilities import RunsTrained, exporter
from memplan.errors import BadInputError, UsageError
from memplan.files import is_file
from memplan.files.writing import check_writable, numbered_folder
from memplan.inference import Detections, DetectOptions, ValidateOptions, Validation
from memplan.registry import make_workload
from memplan.workload import ExportOptions

Say = Callable[[str], None]
Result = TypeVar("Result")

TASKS = ("train", "val", "test", "speed")
"""Splits of a data set, and `speed`, which times those of `val`."""
_SPEED_CONFIDENCE, _SPEED_IOU = 0.25, 0.45
_SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "pt": "-converted.pt"}


def val(
    weights: Path | str,
    data: Path | str,
    *,
    cfg: str | None = None,
    task: str = "val",
    image_size: int = 640,
    batch_size: int = 32,
    device: str = "",
    half: bool = False,
    confidence: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    num_workers: int = 8,
    single_class: bool = False,
    saves_txt: bool = False,
    saves_confidence: bool = False,
    saves_json: bool = False,
    draws: bool = True,
    project: Path | str = "runs/val",
    name: str = "exp",
    exist_ok: bool = False,
    say: Say = silent,
) -> Validation:
    """Evaluate a weights file on a split of a data set, as `memplan val` does.

    Args:
        weights: a checkpoint (memplan's, official or exported) or an ONNX file.
        data: the data set's `data.yaml`.
        cfg: the configuration of a checkpoint; None asks the checkpoint.
        task: one of `TASKS`; "speed" takes val's images square, at `confidence` 0.25 and `iou`
            0.45.
        image_size: the longer side of images, pixels; rounded up to whole strides.
        batch_size: images at once, >= 1.
        device: "cpu" or the index of a GPU; empty takes a GPU if there is one.
        half: compute in half precision, on a GPU.
        confidence: the least score of a detection, 0 to 1.
        iou: boxes of a class that overlap more are one detection, 0 to 1.
        max_detections: kept in an image, >= 1.
        num_workers: the most processes that load images.
        single_class: take all classes for one.
        saves_txt: write a label file an image.
        saves_confidence: add the score to their rows.
        saves_json: write COCO's result file.
        draws: draw curves and images.
        project: the folder in which the result folder is made.
        name: of that folder; a number is added where it exists.
        exist_ok: write into a folder that exists.
        say: called with each line that the command prints.

    Raises:
        BadInputError: weights or data cannot be used, or there is no such device.
        UsageError: an option is out of its range.
    """
    if task not in TASKS:
        raise UsageError(f"--task {task} is not offered. Give {', '.join(TASKS)}.")
    if batch_size < 1:
        raise UsageError(f"--batch {batch_size} is below 1.")
    is_speed = task == "speed"
    if is_speed:
        confidence, iou = _SPEED_CONFIDENCE, _SPEED_IOU
    _check_network(weights, confidence, iou, max_detections)
    options = ValidateOptions(
        weights=Path(weights),
        data=Path(data),
        cfg=cfg,
        split="val" if is_speed else task,
        square=is_speed,
        image_size=_whole(image_size, say),
        batch_size=batch_size,
        device=_device(device),
        half=half,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
        num_workers=num_workers,
        single_class=single_class,
        saves_txt=saves_txt,
        saves_confidence=saves_confidence,
        saves_json=saves_json and not is_speed,
        draws=draws and not is_speed,
        folder=numbered_folder(Path(project), name, exist_ok=exist_ok),
    )
    return _said(_network(cfg).validate(options), say)


def predict(
    weights: Path | str,
    source: Path | str,
    *,
    cfg: str | None = None,
    data: Path | str | None = None,
    image_size: int = 640,
    device: str = "",
    half: bool = False,
    confidence: float = 0.25,
    iou: float = 0.45,
    max_detections: int = 1000,
    classes: Sequence[int] = (),
    agnostic: bool = False,
    saves_images: bool = True,
    saves_txt: bool = False,
    saves_confidence: bool = False,
    line_thickness: int = 3,
    shows_labels: bool = True,
    shows_confidence: bool = True,
    video_stride: int = 1,
    project: Path | str = "runs/detect",
    name: str = "exp",
    exist_ok: bool = False,
    say: Say = silent,
) -> list[Detections]:
    """Detect objects in images and videos, as `memplan predict` does.

    Args:
        weights: a checkpoint (memplan's, official or exported) or an ONNX file.
        source: an image, a video, a folder, a glob pattern, or a `.txt` with a path a line.
        cfg: the configuration of a checkpoint; None asks the checkpoint.
        data: a `data.yaml` that names the classes; None asks the checkpoint.
        image_size: the longer side of images, pixels; rounded up to whole strides.
        device: "cpu" or the index of a GPU; empty takes a GPU if there is one.
        half: compute in half precision, on a GPU.
        confidence: the least score of a detection, 0 to 1.
        iou: boxes of a class that overlap more are one detection, 0 to 1.
        max_detections: kept in an image, >= 1.
        classes: class numbers that count; empty means all.
        agnostic: boxes of different classes that overlap are one detection too.
        saves_images: write images and videos with the boxes drawn.
        saves_txt: write a label file an image.
        saves_confidence: add the score to their rows.
        line_thickness: of the boxes drawn, pixels, >= 1.
        shows_labels: write names beside boxes.
        shows_confidence: write scores beside names.
        video_stride: every how many-th frame of a video is looked at, >= 1.
        project: the folder in which the result folder is made.
        name: of that folder; a number is added where it exists.
        exist_ok: write into a folder that exists.
        say: called with each line that the command prints.

    Returns:
        The detections of each image and frame, in order.

    Raises:
        BadInputError: weights or source cannot be used, or there is no such device.
        UsageError: an option is out of its range.
    """
    for option, number in (("--line-thickness", line_thickness), ("--vid-stride", video_stride)):
        if number < 1:
            raise UsageError(f"{option} {number} is below 1.")
    _check_network(weights, confidence, iou, max_detections)
    options = DetectOptions(
        weights=Path(weights),
        source=str(source),
        cfg=cfg,
        data=None if data is None else Path(data),
        image_size=_whole(image_size, say),
        device=_device(device),
        half=half,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
        classes=tuple(classes),
        agnostic=agnostic,
        saves_images=saves_images,
        saves_txt=saves_txt,
        saves_confidence=saves_confidence,
        line_thickness=line_thickness,
        shows_labels=shows_labels,
        shows_confidence=shows_confidence,
        video_stride=video_stride,
        folder=numbered_folder(Path(project), name, exist_ok=exist_ok),
    )
    return _said(_network(cfg).detect(options), say)


def export(
    weights: Path | str,
    output: Path | str | None = None,
    *,
    cfg: str | None = None,
    data: Path | str | None = None,
    format: str = "onnx",  # noqa: A002 - as the option is called
    image_size: int = 640,
    half: bool = False,
    dynamic_batch: bool = False,
    fuse: bool = True,
    nms: bool = False,
    confidence: float = 0.25,
    iou: float = 0.45,
    max_detections: int = 300,
    force: bool = False,
    say: Say = silent,
) -> Path:
    """Write a trained network for deployment and compare it, as `memplan export` does.

    Args:
        weights: a checkpoint: memplan's own, or an official one.
        output: the file to write; None takes the weights' name with the format's suffix.
        cfg: the configuration; None asks the checkpoint.
        data: a `data.yaml` that names the classes; None asks the checkpoint.
        format: "onnx", "torchscript" or "pt".
        image_size: side of the images that the file takes, pixels.
        half: half precision; boxes are decoded in float32.
        dynamic_batch: ONNX: take any number of images at once.
        fuse: merge batch norms into convolutions.
        nms: ONNX: suppress inside the file.
        confidence: with `nms`, the least score of a detection, 0 to 1.
        iou: with `nms`, boxes of a class that overlap more are one, 0 to 1.
        max_detections: with `nms`, kept of a class in an image, >= 1.
        force: overwrite a file that exists.
        say: called with each line that the command prints.

    Returns:
        The file that was written.

    Raises:
        BadInputError: the weights cannot be used, the file exists, or it would disagree with the
            trained network.
        UsageError: an option is out of its range.
    """
    weights = Path(weights)
    if output is None:
        output = weights.with_name(weights.stem + _SUFFIXES.get(format, ""))
    output = Path(output)
    if os.path.realpath(output) == os.path.realpath(weights):
        raise UsageError(f"--output {output} is the weights file itself. Give another path.")
    check_writable((output,), force=force)
    options = ExportOptions(
        weights=weights,
        output=output,
        cfg=cfg,
        data=None if data is None else Path(data),
        format=format,
        image_size=image_size,
        half=half,
        dynamic_batch=dynamic_batch,
        fuse=fuse,
        nms=nms,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
    )
    workload = make_workload(cfg or DEFAULT_WORKLOAD, {})
    for line in exporter(workload, weights).export(options):
        say(line)
    return output


def _said(lines: Generator[str, None, Result], say: Say) -> Result:
    """Say each line, and return what comes at their end."""
    while True:
        try:
            say(next(lines))
        except StopIteration as end:
            result: Result = end.value
            return result


def _check_network(weights: Path | str, confidence: float, iou: float, most: int) -> None:
    for option, number in (("--conf-thres", confidence), ("--iou-thres", iou)):
        if not 0 <= number <= 1:
            raise BadInputError(f"{option} {number:g} is not between 0 and 1.")
    if not is_file(Path(weights)):
        raise BadInputError(f"--weights {weights} is no file. Check the path.")
    if most < 1:
        raise BadInputError(f"--max-det {most} is below 1.")


def _whole(size: int, say: Say, stride: int = 32) -> int:
    """Return a size rounded up to whole strides, as the official code does, and say so."""
    rounded = max(-(-size // stride), 1) * stride
    if rounded != size:
        say(f"--img {size} is no multiple of {stride}: {rounded} is taken.")
    return rounded


def _device(name: str) -> str:
    from memplan.training.setup import find_device

    return str(find_device(name))


def _network(cfg: str | None) -> RunsTrained:
    workload = make_workload(cfg or DEFAULT_WORKLOAD, {})
    if not isinstance(workload, RunsTrained):
        raise BadInputError(f"--cfg {cfg}: {workload.name} runs no weights files.")
    return workload
