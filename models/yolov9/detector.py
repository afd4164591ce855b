"""A weights file of any kind as one thing that detects: images in, boxes and scores out."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from memplan.errors import BadInputError

from . import export_openvino
from .convert import drop_auxiliary, fuse
from .export_files import SCHEMA, Deployed, load_exported
from .segment_heads import Segments
from .segmentation import predict
from .trained import read_trained
from .weights import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from memplan.inference import InferenceOptions

_OTHER = (
    "has other inputs and outputs than a detector: one [batch, 3, height, width] and [batch, 4 + "
    "classes, boxes]. Export it with `memplan export`, without --nms."
)
_STRIDE = 32  # pixels; of every network that these files are of


@dataclass(frozen=True)
class Detector:
    """A network that is ready to run."""

    run: Callable[[torch.Tensor], torch.Tensor]
    """From images `[B, 3, H, W]` float32, RGB, 0 to 1, on `device`, to `[B, 4 + nc, A]` float32:
    centre x, centre y, width, height in pixels, then scores."""
    class_names: tuple[str, ...]
    device: torch.device
    fixed_size: int | None = None
    """Side of the only images that the file takes, pixels; None takes any multiple of `stride`."""
    fixed_batch: int | None = None
    """Images at once that the file takes; None takes any number."""
    stride: int = _STRIDE
    notes: tuple[str, ...] = ()
    """What a user should know of how the file was read."""
    run_masks: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    """As `run`, but to `[B, 4 + nc + K, A]`, each box with its coefficients, and to prototypes
    `[B, K, h, w]`; None where the network has no masks."""

    def with_masks(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the raw predictions of uint8 images, with coefficients, and the prototypes.

        Without masks that is what a call returns, and None.
        """
        if self.run_masks is None:
            return self(images), None
        return self.run_masks(images.to(self.device, non_blocking=True).float().div_(255))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the raw predictions of uint8 images `[B, 3, H, W]`, `[B, 4 + nc, A]`."""
        prepared = images.to(self.device, non_blocking=True).float().div_(255)
        if self.fixed_batch is None:
            return self.run(prepared)
        parts = []
        for part in torch.split(prepared, self.fixed_batch):
            missing = self.fixed_batch - len(part)
            padded = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
            parts.append(self.run(padded)[: len(part)])
        return torch.cat(parts)


def load_detector(options: InferenceOptions, data: Path | None = None) -> Detector:
    """Return the network of a weights file, by the kind of file it is.

    Args:
        options: name the file, its configuration, device and precision.
        data: a `data.yaml` that names the classes where the file does not.

    Raises:
        BadInputError: the file cannot be used, or a package for it is missing.
    """
    device = torch.device(options.device)
    for ending, load in _BY_ENDING.items():
        if options.weights.name.lower().endswith(ending):
            return load(options.weights, device)
    content = read_checkpoint(options.weights)
    if isinstance(content, dict) and content.get("schema") == SCHEMA:
        ready = load_exported(options.weights).float()
        names, notes = tuple(ready.names.values()), tuple[str, ...]()
    else:
        trained = read_trained(options.weights, options.cfg, data, options.blocks)
        ready = fuse(drop_auxiliary(trained.net).net)
        names, notes = trained.class_names, trained.notes
    dtype = torch.float16 if options.half and device.type == "cuda" else torch.float32
    deployed = Deployed(ready.to(device=device, dtype=dtype).eval())
    for name, module in ready.head.named_children():
        if name.startswith("dfl"):  # decodes in float32
            module.float()

    @torch.inference_mode()
    def run(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = deployed(images.to(dtype))
        return found

    @torch.inference_mode()
    def run_masks(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return predict(ready, images.to(dtype))

    has_masks = isinstance(ready.head, Segments)
    return Detector(run, names, device, notes=notes, run_masks=run_masks if has_masks else None)


def _from_onnx(path: Path, device: torch.device) -> Detector:
    try:
        import onnxruntime
    except ImportError:
        raise BadInputError(
            f"{path} needs the package onnxruntime, which is not installed. "
            "Install it with: pip install 'memplan[export]'"
        ) from None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors only
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    known = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=[*known, "CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime has no common class of errors
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"{path} cannot be read as an ONNX file: {reason}.") from None
    given, outputs = session.get_inputs(), session.get_outputs()
    if len(given) != 1 or len(given[0].shape) != 4 or len(outputs[0].shape) != 3:
        raise BadInputError(f"{path} {_OTHER}")
    batch, _, _, width = given[0].shape
    is_half = given[0].type == "tensor(float16)"

    def run(images: torch.Tensor) -> torch.Tensor:
        pixels = (images.half() if is_half else images).cpu().numpy()
        found = session.run([outputs[0].name], {given[0].name: pixels})[0]
        return torch.from_numpy(found).float().to(device)

    rows = outputs[0].shape[1]
    names = _names(session.get_modelmeta().custom_metadata_map, rows)
    side, count = (value if isinstance(value, int) else None for value in (width, batch))
    notes = [f"{path.name} runs on the processor: this onnxruntime has no CUDA."] * bool(
        wanted and not known
    )
    return Detector(run, names, device, side, count, notes=tuple(notes))


def _names(facts: Mapping[str, str], rows: Any) -> tuple[str, ...]:
    """Return the classes' names that YOLO exporters write, else their numbers."""
    try:
        found = ast.literal_eval(facts.get("names", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    values = list(found.values()) if isinstance(found, dict) else found
    if isinstance(values, list) and (not isinstance(rows, int) or len(values) == rows - 4):
        return tuple(map(str, values))
    return tuple(map(str, range(rows - 4 if isinstance(rows, int) else 0)))


def _from_openvino(path: Path, device: torch.device) -> Detector:
    if path.is_dir():
        found = sorted(path.glob("*.xml"))
        if len(found) != 1:
            raise BadInputError(f"{path} holds {len(found)} .xml files, not one.")
        [path] = found
    model, facts = export_openvino.load(path)
    run = export_openvino.runner(model)
    shape, output = model.inputs[0].partial_shape, model.outputs[0].partial_shape
    if len(model.inputs) != 1 or len(shape) != 4 or len(output) != 3:
        raise BadInputError(f"{path} {_OTHER}")
    count, side = (shape[i].get_length() if shape[i].is_static else None for i in (0, 3))
    rows = output[1].get_length() if output[1].is_static else None
    return Detector(
        lambda images: run(images).to(device),
        _names(facts, rows),
        device,
        side,
        count,
        notes=_on_processor(path, device),
    )


def _refuse_other(path: Path, device: torch.device) -> Detector:
    del device
    raise BadInputError(
        f"{path} is for other programs to run. Give the checkpoint, or its ONNX or OpenVINO export."
    )


def _on_processor(path: Path, device: torch.device) -> tuple[str, ...]:
    return (f"{path.name} runs on the processor.",) * (device.type == "cuda")


_BY_ENDING = {
    ".onnx": _from_onnx,
    ".xml": _from_openvino,
    export_openvino.FOLDER_ENDING: _from_openvino,
    ".torchscript": _refuse_other,
    ".engine": _refuse_other,
}
