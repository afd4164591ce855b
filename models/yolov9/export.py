"""A trained network as a file to deploy: converted, fused, and compared with the trained one.

Nothing is left behind that disagrees: a file takes its place only after it was read back and gave
the trained network's outputs, within `TOLERANCES`, on noise and on images of the sample set.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from memplan.errors import BadInputError, UsageError
from memplan.units import format_bytes

from ..detection_metrics.nms import non_max_suppression
from . import export_engine, export_files, export_openvino, official_file
from .convert import Conversion, drop_auxiliary, fuse
from .export_nms import check_suppression
from .network import DetectionModel
from .segment_heads import Segments
from .trained import read_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memplan.workload import ExportOptions

TOLERANCES = {False: (0.05, 1e-3), True: (2.0, 2e-2)}
"""Largest difference of boxes (pixels) and of scores from the trained network, by `half`."""

_SAMPLE_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class _Format:
    """How one kind of file is written, and read back to run."""

    write: Callable[[Path, DetectionModel, tuple[str, ...], ExportOptions], None]
    """Into a folder of its own; what it writes beside the file travels with it."""
    read: Callable[[Path], Callable[[Tensor], Tensor]]
    packages: tuple[str, ...] = ()
    """That it needs besides memplan's own."""
    install: str = ""
    """The command that installs those."""
    keeps_norms: bool = False
    """Whether norms may stay, and always do in `official`."""
    halves_itself: bool = False
    """Whether the writer, instead of the network given to it, is what knows half precision."""
    batches: bool = True
    """Whether the file has a batch size of its own."""


_PIP = "pip install"
_FORMATS = {
    "onnx": _Format(
        write=export_files.write_onnx,
        read=export_files.read_onnx,
        packages=("onnx", "onnxruntime"),
        install=f"{_PIP} 'memplan[export]'",
    ),
    "torchscript": _Format(
        write=export_files.write_torchscript, read=export_files.read_torchscript
    ),
    "openvino": _Format(
        write=export_openvino.write,
        read=export_openvino.read,
        packages=("openvino",),
        install=f"{_PIP} 'memplan[openvino]'",
        halves_itself=True,
    ),
    "engine": _Format(
        write=export_engine.write,
        read=export_engine.read,
        packages=("onnx", "tensorrt"),
        install=f"{_PIP} 'memplan[export]' tensorrt (or make the ONNX file and then: trtexec "
        "--onnx=FILE.onnx --saveEngine=FILE.engine)",
        halves_itself=True,
    ),
    "pt": _Format(
        write=export_files.write_pt, read=export_files.read_pt, keeps_norms=True, batches=False
    ),
    "official": _Format(
        write=official_file.write, read=official_file.read, keeps_norms=True, batches=False
    ),
}
FORMATS = tuple(_FORMATS)


def export(options: ExportOptions) -> list[str]:
    """Write the file that the options ask for and return what was done, a line each.

    Raises:
        BadInputError: the weights cannot be used, a package is missing, or the file would disagree.
        UsageError: an option is out of its range.
    """
    kind = _checked(options)
    trained = read_trained(options.weights, options.cfg, options.data, options.blocks)
    if isinstance(trained.net.head, Segments):
        raise BadInputError(
            f"{options.weights} is of a network with masks, which are not exported yet. "
            "memplan val and memplan predict run the checkpoint itself."
        )
    conversion = _converted(trained.net, options)
    ready = conversion.net
    if options.fuse and options.format != "official":
        ready = fuse(ready)
    if options.half and not kind.halves_itself:
        ready = _halved(ready)
    try:
        # A folder of our own, under a name that nobody can have laid a link at.
        with tempfile.TemporaryDirectory(
            dir=options.output.parent, prefix=".memplan-export-"
        ) as folder:
            partial = Path(folder) / options.output.name
            kind.write(partial, ready, trained.class_names, options)
            differences = _compare(trained.net, kind.read(partial), options)
            # What lies beside the file first: whoever finds the file finds it whole.
            for path in sorted(Path(folder).iterdir(), key=lambda path: path == partial):
                path.replace(options.output.parent / path.name)
    except OSError as error:
        raise BadInputError(
            f"{options.output} cannot be written: {error.strerror}. Give another --output."
        ) from None
    return [*trained.notes, *_report(trained.net, conversion.layers, ready, options), *differences]


def _converted(net: DetectionModel, options: ExportOptions) -> Conversion:
    """Return the network without its auxiliary branch, unless that is to stay."""
    return Conversion(copy.deepcopy(net), ()) if options.keep_auxiliary else drop_auxiliary(net)


def _checked(options: ExportOptions) -> _Format:
    """Return the format asked for, once the options go with it and its packages are here."""
    name = options.format
    if name not in _FORMATS:
        raise UsageError(f"--format {name!r} is not offered. Give {', '.join(_FORMATS)}.")
    kind = _FORMATS[name]
    if options.nms and name != "onnx":
        raise UsageError("--nms is for --format onnx; other files give all boxes.")
    if options.image_size < 32 or options.image_size % 32:
        nearest = max(32, round(options.image_size / 32) * 32)
        raise UsageError(
            f"--img {options.image_size} is no multiple of the stride 32. Nearest: {nearest}."
        )
    if not options.fuse and not kind.keeps_norms:
        raise UsageError("--no-fuse is for --format pt; other files are to be run, not trained.")
    if options.keep_auxiliary and name != "official":
        raise UsageError("--keep-auxiliary is for --format official; other files run one branch.")
    if options.dynamic_batch and name not in {"onnx", "openvino"}:
        raise UsageError(
            "--dynamic-batch is for --format onnx and openvino; a .pt file takes any batch, "
            "TorchScript and an engine one."
        )
    if options.batch_size < 1 or (options.batch_size > 1 and not kind.batches):
        raise UsageError(
            f"--batch-size {options.batch_size} is for files of one batch size, 1 or more; a .pt "
            "file takes any."
        )
    _check_packages(name, kind)
    return kind


def _check_packages(name: str, kind: _Format) -> None:
    """Refuse what cannot be written here, before any work is done."""
    for package in kind.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise BadInputError(
                f"--format {name} needs the package {error.name or package}, which is not "
                f"installed. Install it with: {kind.install}"
            ) from None
    if name == "engine" and not torch.cuda.is_available():
        raise BadInputError(
            "--format engine is built on the card that it is for, and there is none here. Make the "
            "ONNX file here, and there: trtexec --onnx=FILE.onnx --saveEngine=FILE.engine"
        )


def _halved(net: DetectionModel) -> DetectionModel:
    """Return the network in half precision, but for the integrals, which decode in float32."""
    net = net.half()
    for name, module in net.head.named_children():
        if name.startswith("dfl"):
            module.float()
    return net


@torch.no_grad()
def _compare(
    net: DetectionModel, run: Callable[[Tensor], Tensor], options: ExportOptions
) -> list[str]:
    """Return how far the file is from the trained network, a line for each kind of image.

    Raises:
        BadInputError: further than `TOLERANCES` allow.
    """
    largest: dict[str, tuple[float, float]] = {}
    for kind, images in _test_images(options):
        decoded, _ = net(images)
        expected = decoded[-1] if isinstance(decoded, list) else decoded
        gaps = _gaps(expected, run(images), options)
        # `max` of Python would let a value pass that is no number.
        before = largest.get(kind, (0.0, 0.0))
        largest[kind] = (
            float(np.maximum(before[0], gaps[0])),
            float(np.maximum(before[1], gaps[1])),
        )
    return [_judged(kind, gaps, options) for kind, gaps in largest.items()]


def _gaps(expected: Tensor, found: Tensor, options: ExportOptions) -> tuple[float, float]:
    """Return the largest differences of boxes and of scores."""
    if options.nms:
        kept = non_max_suppression(
            expected,
            confidence=options.confidence,
            iou=options.iou,
            max_detections=options.max_detections * (expected.shape[1] - 4),
        )
        return check_suppression(found, expected, kept, TOLERANCES[options.half])
    gap = (expected - found).abs()
    return float(gap[:, :4].max()), float(gap[:, 4:].max())


def _judged(kind: str, gaps: tuple[float, float], options: ExportOptions) -> str:
    """Return the differences as a line, or refuse them."""
    allowed = TOLERANCES[options.half]
    text = (
        f"Largest difference from the trained network on {kind}: boxes {gaps[0]:.2g} px "
        f"(allowed {allowed[0]:g}), scores {gaps[1]:.2g} (allowed {allowed[1]:g})"
    )
    # Written so that a value that is no number does not pass.
    if not (gaps[0] <= allowed[0] and gaps[1] <= allowed[1]):
        hint = " Leave out --half." if options.half else ""
        raise BadInputError(f"{text}. The file is not kept.{hint}")
    return text


def _test_images(options: ExportOptions) -> Iterator[tuple[str, Tensor]]:
    """Yield noise and images of the sample set, in the batches that the file takes."""
    from ..yolo_data.sample import sample_images

    side = options.image_size
    generator = torch.Generator().manual_seed(0)
    counts = (1, _SAMPLE_IMAGES) if options.dynamic_batch else (options.batch_size,)
    for count in counts:
        yield "noise", torch.rand(count, 3, side, side, generator=generator)
    images = sample_images(_SAMPLE_IMAGES, side)
    size = _SAMPLE_IMAGES if options.dynamic_batch else options.batch_size
    for first in range(0, _SAMPLE_IMAGES, size):
        places = (first + torch.arange(size)) % _SAMPLE_IMAGES
        yield f"{_SAMPLE_IMAGES} sample images", images[places]


def _report(
    trained: DetectionModel, layers: tuple[int, ...], ready: DetectionModel, options: ExportOptions
) -> list[str]:
    dropped = len(trained.model) - len(layers) if layers else 0
    before, after = (sum(p.numel() for p in net.parameters()) for net in (trained, ready))
    one = "both branches" if options.keep_auxiliary and trained.head.branches > 1 else "one branch"
    auxiliary = f"without {dropped} layers of the auxiliary branch" if dropped else one
    has_norms = any(isinstance(module, torch.nn.BatchNorm2d) for module in ready.modules())
    norms = "norms kept" if has_norms else "norms merged into convolutions"
    kind = "half precision" if options.half else "float32"
    takes_any = options.dynamic_batch or not _FORMATS[options.format].batches
    batch = "any batch" if takes_any else f"batch {options.batch_size}"
    return [
        (
            f"{trained.name}: {before:,} parameters became {after:,} ({auxiliary}, {norms}), "
            f"{kind}, {options.image_size} px, {batch}"
        ),
        f"{options.output}: {format_bytes(_size(options.output))}",
    ]


def _size(output: Path) -> int:
    """Return the bytes of a file and of the weights that OpenVINO lays beside it."""
    weights = output.with_suffix(".bin")
    beside = weights.stat().st_size if output.suffix == ".xml" and weights.is_file() else 0
    return output.stat().st_size + beside
