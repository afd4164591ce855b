"""A trained network as a file to deploy: converted, fused, and compared with the trained one.

Nothing is left behind that disagrees: a file takes its place only after it was read back and gave
the trained network's outputs, within `TOLERANCES`, on noise and on images of the sample set.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from memplan.errors import BadInputError, UsageError
from memplan.units import format_bytes

from ..detection_metrics.nms import non_max_suppression
from .convert import drop_auxiliary, fuse
from .export_nms import OUTPUT, add_suppression, check_suppression
from .network import DetectionModel, main_maps
from .segment_heads import Segments
from .trained import read_trained
from .weights import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from memplan.workload import ExportOptions

SCHEMA = "memplan.export/1"
OPSET = 17  # of ONNX; TensorRT 8.6, OpenVINO 2023 and ONNX Runtime 1.13 read it
INPUT = "images"
TOLERANCES = {False: (0.05, 1e-3), True: (2.0, 2e-2)}
"""Largest difference of boxes (pixels) and of scores from the trained network, by `half`."""

_SAMPLE_IMAGES = 3


class Deployed(nn.Module):
    """One tensor in, one out, as deployed: decoding is in float32, whatever the network is in.

    Args:
        net: converted, in evaluation mode.
    """

    def __init__(self, net: DetectionModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Return `[B, 4 + nc, A]` float32: centre x, centre y, width, height in pixels, scores.

        Args:
            images: RGB, 0 to 1, `[B, 3, H, W]`, in the network's precision.
        """
        maps = main_maps(self.net, images)
        # Half precision has steps of half a pixel at 640.
        decoded: Tensor = self.net.head.decode([part.float() for part in maps], 0)
        return decoded


def export(options: ExportOptions) -> list[str]:
    """Write the file that the options ask for and return what was done, a line each.

    Raises:
        BadInputError: the weights cannot be used, a package is missing, or the file would disagree.
        UsageError: an option is out of its range.
    """
    _check(options)
    trained = read_trained(options.weights, options.cfg, options.data)
    if isinstance(trained.net.head, Segments):
        raise BadInputError(
            f"{options.weights} is of a network with masks, which are not exported yet. "
            "memplan val and memplan predict run the checkpoint itself."
        )
    conversion = drop_auxiliary(trained.net)
    small = conversion.net
    ready = fuse(small) if options.fuse else small
    if options.half:
        ready = _halved(ready)
    write, read = _FORMATS[options.format]
    parent = options.output.parent
    try:
        # A folder of our own, under a name that nobody can have laid a link at.
        with tempfile.TemporaryDirectory(dir=parent, prefix=".memplan-export-") as folder:
            partial = Path(folder) / options.output.name
            write(partial, ready, trained.class_names, options)
            differences = _compare(trained.net, read(partial), options)
            partial.replace(options.output)
    except OSError as error:
        raise BadInputError(
            f"{options.output} cannot be written: {error.strerror}. Give another --output."
        ) from None
    return [*trained.notes, *_report(trained.net, conversion.layers, ready, options), *differences]


def load_exported(path: str | Path) -> DetectionModel:
    """Return the network of an exported `.pt` file, in evaluation mode and the file's precision.

    Raises:
        BadInputError: the file cannot be read, or is no export.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise BadInputError(f"{path} is no export of memplan. Make one with `memplan export`.")
    with torch.device("meta"):  # the values come from the file
        net = DetectionModel(content["description"], len(content["class_names"]))
        if content["fused"]:
            net = fuse(net)
    net.load_state_dict(content["model"], assign=True)
    net.names = dict(enumerate(content["class_names"]))
    return net.eval()


def _check(options: ExportOptions) -> None:
    if options.format in _BY_OTHERS:
        raise UsageError(
            f"--format {options.format} is made of the ONNX file by that tool's own program: "
            f"memplan export, then {_BY_OTHERS[options.format]}."
        )
    if options.format not in _FORMATS:
        raise UsageError(f"--format {options.format!r} is not offered. Give {', '.join(_FORMATS)}.")
    if options.nms and options.format != "onnx":
        raise UsageError("--nms is for --format onnx; other files give all boxes.")
    if options.image_size < 32 or options.image_size % 32:
        nearest = max(32, round(options.image_size / 32) * 32)
        raise UsageError(
            f"--img {options.image_size} is no multiple of the stride 32. Nearest: {nearest}."
        )
    if options.format != "pt" and not options.fuse:
        raise UsageError("--no-fuse is for --format pt; other files are to be run, not trained.")
    if options.format == "onnx":
        try:
            import onnx  # noqa: F401 - asked for before any work is done
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise BadInputError(
                f"--format onnx needs the package {error.name}, which is not installed. "
                "Install it with: pip install 'memplan[export]'"
            ) from None
    elif options.dynamic_batch:
        raise UsageError(
            "--dynamic-batch is for --format onnx; a .pt file takes any batch, TorchScript one."
        )


def _halved(net: DetectionModel) -> DetectionModel:
    """Return the network in half precision, but for the integrals, which decode in float32."""
    net = net.half()
    for name, module in net.head.named_children():
        if name.startswith("dfl"):
            module.float()
    return net


def _write_pt(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    content = {
        "schema": SCHEMA,
        "model": dict(net.state_dict()),
        "description": net.yaml,
        "class_names": list(class_names),
        "stride": int(max(net.strides)),
        "image_size": options.image_size,
        "fused": options.fuse,
    }
    try:
        torch.save(content, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(0, str(error).splitlines()[0]) from None


def _read_pt(path: Path) -> Callable[[Tensor], Tensor]:
    net = load_exported(path).float()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        decoded: Tensor = Deployed(net)(images)
        return decoded

    return run


def _facts(
    net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> dict[str, str]:
    """Return what a file says of itself, as texts."""
    side = options.image_size
    return {
        # A Python literal, as readers of YOLO files expect; and the same as JSON.
        "names": str(dict(enumerate(class_names))),
        "class_names": json.dumps(list(class_names)),
        "stride": str(int(max(net.strides))),
        "imgsz": str([side, side]),
        "image_size": str(side),
        "half": str(options.half).lower(),
        "nms": str(options.nms).lower(),
    }


def _write_torchscript(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    dtype = torch.float16 if options.half else torch.float32
    images = torch.zeros(1, 3, options.image_size, options.image_size, dtype=dtype)
    with warnings.catch_warnings(), torch.no_grad():
        # Shapes are constants of the file, and TorchScript is deprecated, which stays its use.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Deployed(net).eval(), images)  # type: ignore[no-untyped-call]
        facts = json.dumps(_facts(net, class_names, options))
        traced.save(str(path), _extra_files={"config.txt": facts.encode()})


def _read_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    dtype = next(module.parameters()).dtype

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        found: Tensor = module(images.to(dtype))
        return found

    return run


def _write_onnx(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    import onnx

    # Two images where any number will do: one might be taken for a constant.
    count = 2 if options.dynamic_batch else 1
    side = options.image_size
    dtype = torch.float16 if options.half else torch.float32
    axes = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}} if options.dynamic_batch else None
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated since PyTorch 2.9 but needs no further package and
        # takes a tenth of the time of its successor, which needs onnxscript.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Deployed(net).eval(),
            (torch.zeros(count, 3, side, side, dtype=dtype),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(str(path))
    if options.nms:
        add_suppression(model, options)
    for key, value in _facts(net, class_names, options).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(
        path.read_bytes(), settings, providers=["CPUExecutionProvider"]
    )
    is_half = session.get_inputs()[0].type == "tensor(float16)"

    def run(images: Tensor) -> Tensor:
        given = (images.half() if is_half else images).numpy()
        [result] = session.run([OUTPUT], {INPUT: given})
        return torch.from_numpy(result)

    return run


_FORMATS = {
    "onnx": (_write_onnx, _read_onnx),
    "torchscript": (_write_torchscript, _read_torchscript),
    "pt": (_write_pt, _read_pt),
}
_BY_OTHERS = {
    "openvino": "ovc FILE.onnx",
    "engine": "trtexec --onnx=FILE.onnx --saveEngine=FILE.engine",
}


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
    counts = (1, _SAMPLE_IMAGES) if options.dynamic_batch else (1,)
    for count in counts:
        yield "noise", torch.rand(count, 3, side, side, generator=generator)
    images = sample_images(_SAMPLE_IMAGES, side)
    for batch in torch.split(images, _SAMPLE_IMAGES if options.dynamic_batch else 1):
        yield f"{_SAMPLE_IMAGES} sample images", batch


def _report(
    trained: DetectionModel, layers: tuple[int, ...], ready: DetectionModel, options: ExportOptions
) -> list[str]:
    dropped = len(trained.model) - len(layers) if layers else 0
    before, after = (sum(p.numel() for p in net.parameters()) for net in (trained, ready))
    auxiliary = f"without {dropped} layers of the auxiliary branch" if dropped else "one branch"
    norms = "norms merged into convolutions" if options.fuse else "norms kept"
    kind = "half precision" if options.half else "float32"
    batch = "any batch" if options.dynamic_batch or options.format == "pt" else "batch 1"
    return [
        (
            f"{trained.name}: {before:,} parameters became {after:,} ({auxiliary}, {norms}), "
            f"{kind}, {options.image_size} px, {batch}"
        ),
        f"{options.output}: {format_bytes(options.output.stat().st_size)}",
    ]
