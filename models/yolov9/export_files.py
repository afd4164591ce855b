"""The files of an export, written and read back to run: PyTorch weights, TorchScript, ONNX."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from memplan.errors import BadInputError

from .convert import fuse
from .export_nms import OUTPUT, add_suppression
from .network import DetectionModel, main_maps
from .weights import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from memplan.workload import ExportOptions

SCHEMA = "memplan.export/1"
INPUT = "images"


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


def write_pt(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    """Write the weights with what they are of; no code of memplan is needed to read them."""
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


def read_pt(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an exported `.pt` file, float32 images to predictions."""
    net = load_exported(path).float()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        decoded: Tensor = Deployed(net)(images)
        return decoded

    return run


def file_facts(
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


def write_torchscript(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    """Write a trace for the batch and size that the options say."""
    dtype = torch.float16 if options.half else torch.float32
    side = options.image_size
    images = torch.zeros(options.batch_size, 3, side, side, dtype=dtype)
    with warnings.catch_warnings(), torch.no_grad():
        # Shapes are constants of the file, and TorchScript is deprecated, which stays its use.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Deployed(net).eval(), images)  # type: ignore[no-untyped-call]
        facts = json.dumps(file_facts(net, class_names, options))
        traced.save(str(path), _extra_files={"config.txt": facts.encode()})


def read_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the file, on the CPU; images are float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    dtype = next(module.parameters()).dtype

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        found: Tensor = module(images.to(dtype))
        return found

    return run


def write_onnx(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    """Write an ONNX file, checked by ONNX's own checker; with `nms` it suppresses."""
    import onnx

    # Two images where any number will do: one might be taken for a constant.
    count = max(2, options.batch_size) if options.dynamic_batch else options.batch_size
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
            opset_version=options.opset,
            dynamo=False,
        )
    model = onnx.load(str(path))
    if options.nms:
        add_suppression(model, options)
    for key, value in file_facts(net, class_names, options).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the file by ONNX Runtime, on the CPU; images are float32."""
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
