"""`memplan export`: a trained network as a file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memplan.cli.common import wrote


@click.command()
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
    "image_size",
    type=int,
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
    metavar="onnx|torchscript|pt",
    help="ONNX, TorchScript, or PyTorch weights.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The file to write.  [beside the weights]",
)
@click.option("--half", is_flag=True, help="Half precision; boxes are decoded in float32.")
@click.option("--dynamic-batch", is_flag=True, help="ONNX: take any number of images at once.")
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
    from memplan.advise.trained import export

    wrote(export(format=values.pop("kind"), **values, say=click.echo))
