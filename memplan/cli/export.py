"""`memplan export`: a trained network as a file to deploy."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from memplan.capabilities import exporter
from memplan.cli.common import check_writable, wrote
from memplan.cli.official_words import Side, joining, official_words
from memplan.errors import UsageError

_SUFFIXES = {
    "onnx": ".onnx",
    "torchscript": ".torchscript",
    "engine": ".engine",
    "pt": "-converted.pt",
    "official": "-official.pt",
}
_ACCEPTED = {
    "--device": "the network is exported on the processor, an engine on the card of this machine",
    "--simplify": "what can be computed beforehand is, in any case",
    "--inplace": "the file's outputs are the same either way",
    "--verbose": "messages of TensorRT are shown in any case",
}
_REFUSED = {
    "--int8": "it needs images to calibrate with; TensorRT's and OpenVINO's own tools do that",
    "--optimize": "it changes the file for a phone",
    "--keras": "memplan writes no TensorFlow",
    "--agnostic-nms": "--nms suppresses within a class",
    "--topk-all": "--nms keeps --max-det of each class",
    "--topk-per-class": "it is of TensorFlow.js; --nms has --max-det",
}
_LISTS = ("--include", "--img", "--imgsz", "--img-size")


def _kinds(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return the formats that `--include onnx engine` lists."""
    del ctx, parameter
    kinds = tuple(kind for kind in (value or "").split(",") if kind)
    if "onnx_end2end" in kinds:
        raise UsageError(
            "--include onnx_end2end is not offered, as its suppression is a TensorRT plugin's. "
            "Give --include onnx --nms, whose suppression is ONNX's own."
        )
    return kinds


@click.command(cls=joining(*_LISTS))
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A checkpoint: memplan's own, or an official one.",
)
@click.option("--cfg", metavar="NAME|PATH", help="Its configuration.  [as the checkpoint says]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A data.yaml, for the names of the classes.  [as the checkpoint says]",
)
@click.option(
    "--img",
    "--imgsz",
    "--img-size",
    "image_size",
    type=Side(),
    default=640,
    show_default=True,
    metavar="PIXELS",
    help="Side of the images that the file takes.",
)
@click.option(
    "--format",
    "kind",
    default="onnx",
    show_default=True,
    metavar="onnx|torchscript|openvino|engine|pt|official",
    help="Engine: TensorRT's, where it is installed. Pt: PyTorch weights. Official: a checkpoint "
    "that the official code loads.",
)
@click.option(
    "--include",
    "kinds",
    callback=_kinds,
    metavar="FORMAT...",
    help="The official spelling of --format: several, a file each.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The file to write.  [beside the weights]",
)
@click.option("--half", is_flag=True, help="Half precision; boxes are decoded in float32.")
@click.option(
    "--dynamic-batch",
    "--dynamic",
    "dynamic_batch",
    is_flag=True,
    help="ONNX and OpenVINO: take any number of images at once.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Images at once of a file that takes no other number.",
)
@click.option(
    "--opset",
    type=click.IntRange(13, 17),
    default=17,
    show_default=True,
    metavar="N",
    help="Of ONNX: 13 to 17.",
)
@click.option(
    "--workspace",
    "workspace_gib",
    type=click.FloatRange(0, min_open=True),
    default=4.0,
    show_default=True,
    metavar="GIB",
    help="Memory that TensorRT may use to build an engine.",
)
@click.option(
    "--keep-auxiliary",
    is_flag=True,
    help="Official: keep the auxiliary branch, so that training can go on.",
)
@click.option(
    "--fuse/--no-fuse",
    default=True,
    show_default=True,
    help="Merge batch norms into convolutions; without, pt weights can be trained on.",
)
@click.option("--nms", is_flag=True, help="ONNX: suppress inside the file; it gives detections.")
@click.option(
    "--conf-thres",
    "confidence",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    metavar="SCORE",
    help="With --nms: the least score of a detection.",
)
@click.option(
    "--iou-thres",
    "iou",
    type=click.FloatRange(0, 1),
    default=0.45,
    show_default=True,
    metavar="IOU",
    help="With --nms: boxes of a class that overlap more are one.",
)
@click.option(
    "--max-det",
    "max_detections",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="N",
    help="With --nms: detections kept of a class in an image.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@official_words(_ACCEPTED, _REFUSED, valued=("--device", "--topk-all", "--topk-per-class"))
def command(**values: Any) -> None:
    """Write a trained network for deployment, and compare it with the trained one.

    \b
    memplan export --weights runs/train/exp/weights/best.pt --img 640

    The auxiliary branch is dropped and batch norms are merged into the convolutions. The file is
    run on noise and on real images, and kept only if its boxes and scores agree with the trained
    network's. ONNX files take images [batch, 3, height, width], RGB from 0 to 1, and give
    [batch, 4 + classes, boxes]: centre x, centre y, width, height in pixels, then scores; with
    --nms, rows of image, left, top, right, bottom, score, class.
    """
    kinds = values["kinds"] or (values["kind"],)
    if len(kinds) > 1 and values["output"] is not None:
        raise UsageError(f"--output names one file, and {', '.join(kinds)} are asked for.")
    outputs = [_output(kind, values) for kind in kinds]
    for output in outputs:
        if os.path.realpath(output) == os.path.realpath(values["weights"]):
            raise UsageError(f"--output {output} is the weights file itself. Give another path.")
        # OpenVINO's default folder is made when there is something to write into it.
        check_writable(
            [path for path in _files(output) if path.parent.exists() or values["output"]],
            force=values["force"],
        )
    for kind, output in zip(kinds, outputs, strict=True):
        _export(kind, output, values)


def _output(kind: str, values: dict[str, Any]) -> Path:
    """Return the file to write."""
    weights: Path = values["weights"]
    if kind == "openvino":
        # The folder's name is how readers of YOLO files know OpenVINO.
        default = weights.with_name(f"{weights.stem}_openvino_model") / f"{weights.stem}.xml"
    else:
        default = weights.with_name(weights.stem + _SUFFIXES.get(kind, ""))
    output: Path = values["output"] or default
    if kind == "openvino" and output.suffix.lower() != ".xml":
        raise UsageError(f"--output {output}: OpenVINO's files end in .xml.")
    return output


def _files(output: Path) -> tuple[Path, ...]:
    """Return all files that are written for an output."""
    if output.suffix.lower() != ".xml":
        return (output,)
    return (output, output.with_suffix(".bin"), output.with_suffix(".yaml"))


def _export(kind: str, output: Path, values: dict[str, Any]) -> None:
    """Write one file and say what was done."""
    from memplan.advise import DEFAULT_WORKLOAD
    from memplan.registry import make_workload
    from memplan.workload import ExportOptions

    workload = make_workload(values["cfg"] or DEFAULT_WORKLOAD, {})
    names = ("weights", "cfg", "data", "image_size", "half", "dynamic_batch", "batch_size", "opset",
             "workspace_gib", "keep_auxiliary", "fuse", "nms", "confidence", "iou",
             "max_detections")  # fmt: skip
    options = ExportOptions(output=output, format=kind, **{name: values[name] for name in names})
    is_new = not output.parent.exists()
    output.parent.mkdir(exist_ok=True)
    try:
        for line in exporter(workload, options.weights).export(options):
            click.echo(line)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                output.parent.rmdir()
        raise
    for path in _files(output):
        wrote(path)
