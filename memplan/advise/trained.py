"""What is done with trained networks: they are evaluated, they detect, and they are exported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from memplan.acceptance import check_weights
from memplan.advise.question import DEFAULT_WORKLOAD, silent
from memplan.capabilities import RunsTrained, exporter
from memplan.errors import BadInputError, UsageError
from memplan.files.writing import check_writable, numbered_folder
from memplan.inference import Detections, DetectOptions, ValidateOptions, Validation
from memplan.registry import make_workload
from memplan.workload import ExportOptions

Say = Callable[[str], None]
Result = TypeVar("Result")

TASKS = ("train", "val", "test", "speed")
"""Splits of a data set, and `speed`, which times those of `val`."""
_SPEED_CONFIDENCE, _SPEED_IOU = 0.25, 0.45
_SUFFIXES = {
    "onnx": ".onnx",
    "torchscript": ".torchscript",
    "engine": ".engine",
    "pt": "-converted.pt",
    "official": "-official.pt",
}


def val(
    weights: Path | str,
    data: Path | str,
    *,
    cfg: str | None = None,
    blocks: str | None = None,
    task: str = "val",
    image_size: int = 640,
    batch_size: int = 32,
    device: str = "",
    half: bool = False,
    confidence: float = 0.001,
    iou: float = 0.7,
    max_detections: int = 300,
    num_workers: int = 8,
    min_items: int = 0,
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
        weights: a checkpoint (memplan's, official or exported), ONNX or OpenVINO.
        data: the data set's `data.yaml`.
        cfg: the configuration of a checkpoint; None asks the checkpoint.
        blocks: a module of yours whose classes that configuration names; importing it runs it.
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
        min_items: leave out images with fewer objects, >= 0.
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
    if min_items < 0:
        raise UsageError(f"--min-items {min_items} is below 0.")
    is_speed = task == "speed"
    if is_speed:
        confidence, iou = _SPEED_CONFIDENCE, _SPEED_IOU
    _check_network(weights, confidence, iou, max_detections)
    options = ValidateOptions(
        weights=Path(weights),
        data=Path(data),
        cfg=cfg,
        blocks=blocks,
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
        min_items=min_items,
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
    blocks: str | None = None,
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
    saves_crops: bool = False,
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
        weights: a checkpoint (memplan's, official or exported), ONNX or OpenVINO.
        source: an image, a video, a folder, a glob pattern, or a `.txt` with a path a line.
        cfg: the configuration of a checkpoint; None asks the checkpoint.
        blocks: a module of yours whose classes that configuration names; importing it runs it.
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
        saves_crops: write each found object too.
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
        blocks=blocks,
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
        saves_crops=saves_crops,
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
    blocks: str | None = None,
    data: Path | str | None = None,
    format: str = "onnx",  # noqa: A002 - as the option is called
    image_size: int = 640,
    batch_size: int = 1,
    half: bool = False,
    dynamic_batch: bool = False,
    opset: int = 17,
    workspace_gib: float = 4.0,
    keep_auxiliary: bool = False,
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
        blocks: a module of yours whose classes that configuration names; importing it runs it.
        data: a `data.yaml` that names the classes; None asks the checkpoint.
        format: "onnx", "torchscript", "openvino", "engine" (TensorRT), "pt" or "official".
        image_size: side of the images that the file takes, pixels.
        batch_size: images at once of a file that takes no other number, >= 1.
        half: half precision; boxes are decoded in float32.
        dynamic_batch: ONNX and OpenVINO: take any number of images at once.
        opset: of ONNX, 13 to 17.
        workspace_gib: memory that TensorRT may use to build an engine, GiB.
        keep_auxiliary: official: keep the auxiliary branch, so that training can go on.
        fuse: merge batch norms into convolutions.
        nms: ONNX: suppress inside the file.
        confidence: with `nms`, the least score of a detection, 0 to 1.
        iou: with `nms`, boxes of a class that overlap more are one, 0 to 1.
        max_detections: with `nms`, kept of a class in an image, >= 1.
        force: overwrite files that exist.
        say: called with each line that the command prints.

    Returns:
        The file that was written; OpenVINO has two more beside it.

    Raises:
        BadInputError: the weights cannot be used, the file exists, or it would disagree with the
            trained network.
        UsageError: an option is out of its range.
    """
    return export_all(
        (format,),
        weights,
        output,
        cfg=cfg,
        blocks=blocks,
        data=None if data is None else Path(data),
        image_size=image_size,
        batch_size=batch_size,
        half=half,
        dynamic_batch=dynamic_batch,
        opset=opset,
        workspace_gib=workspace_gib,
        keep_auxiliary=keep_auxiliary,
        fuse=fuse,
        nms=nms,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
        force=force,
        say=say,
    )[0]


def export_all(
    formats: Sequence[str],
    weights: Path | str,
    output: Path | str | None = None,
    *,
    force: bool = False,
    say: Say = silent,
    **options: Any,
) -> list[Path]:
    """Write a file of each format, once it is known that all may be written; see `export`.

    Args:
        formats: each once.
        weights: a checkpoint.
        output: the file to write, of one format; None takes the weights' name.
        force: overwrite files that exist.
        say: called with each line that the command prints.
        options: further fields of `ExportOptions`.

    Returns:
        All files that were written, the first format's own first.

    Raises:
        BadInputError: as of `export`.
        UsageError: as of `export`, or one output is given for several formats.
    """
    weights = Path(weights)
    if len(formats) > 1 and output is not None:
        raise UsageError(f"--output names one file, and {', '.join(formats)} are asked for.")
    outputs = [_output(kind, weights, output) for kind in formats]
    for path in outputs:
        if os.path.realpath(path) == os.path.realpath(weights):
            raise UsageError(f"--output {path} is the weights file itself. Give another path.")
        # OpenVINO's default folder is made when there is something to write into it.
        written = [one for one in _files(path) if one.parent.exists() or output is not None]
        check_writable(written, force=force)
    for kind, path in zip(formats, outputs, strict=True):
        _export(ExportOptions(weights=weights, output=path, format=kind, **options), say)
    return [one for path in outputs for one in _files(path)]


def _output(kind: str, weights: Path, output: Path | str | None) -> Path:
    if kind == "openvino":
        # The folder's name is how readers of YOLO files know OpenVINO.
        default = weights.with_name(f"{weights.stem}_openvino_model") / f"{weights.stem}.xml"
    else:
        default = weights.with_name(weights.stem + _SUFFIXES.get(kind, ""))
    path = default if output is None else Path(output)
    if kind == "openvino" and path.suffix.lower() != ".xml":
        raise UsageError(f"--output {path}: OpenVINO's files end in .xml.")
    return path


def _files(output: Path) -> tuple[Path, ...]:
    """Return all files that are written for an output."""
    if output.suffix.lower() != ".xml":
        return (output,)
    return (output, output.with_suffix(".bin"), output.with_suffix(".yaml"))


def _export(options: ExportOptions, say: Say) -> None:
    folder = options.output.parent
    is_new = not folder.exists()
    workload = make_workload(options.cfg or DEFAULT_WORKLOAD, {})
    folder.mkdir(exist_ok=True)
    try:
        for line in exporter(workload, options.weights).export(options):
            say(line)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


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
    if not any(Path(weights).glob("*.xml")):  # not a folder of OpenVINO's files
        check_weights(Path(weights))
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
