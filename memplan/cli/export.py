"""`memplan export`: a trained network as a file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memplan.cli.common import wrote
from memplan.cli.official_words import Side, joining, official_words
from memplan.click_options import blocks_option
from memplan.errors import UsageError

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
@blocks_option
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
    from memplan.advise.trained import export_all

    kinds = values.pop("kinds") or (values["kind"],)
    values.pop("kind")
    for path in export_all(kinds, **values, say=click.echo):
        wrote(path)
