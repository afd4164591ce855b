"""OpenVINO files: `NAME.xml` with its weights in `NAME.bin`, by the package openvino.

Source: https://docs.openvino.ai, "Convert from PyTorch" and "OpenVINO Runtime Python API".
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
import yaml

from memplan.errors import BadInputError

from .export_files import INPUT, Deployed, file_facts
from .export_nms import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from memplan.workload import ExportOptions

    from .network import DetectionModel

FOLDER_ENDING = "_openvino_model"
"""Of the folder that readers of YOLO files know OpenVINO by."""
_INFORMATION = "model_info"  # where OpenVINO's own tools keep such facts


def write(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    """Write `NAME.xml`, `NAME.bin`, and `NAME.yaml` with stride and names.

    Half precision is of the stored weights; images and predictions stay float32.
    """
    import openvino

    side = options.image_size
    count = max(2, options.batch_size) if options.dynamic_batch else options.batch_size
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing, where shapes become constants
        model = openvino.convert_model(
            Deployed(net).eval(),
            example_input=torch.zeros(count, 3, side, side),
            input=[-1 if options.dynamic_batch else count, 3, side, side],
        )
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    facts = file_facts(net, class_names, options)
    for key, value in facts.items():
        model.set_rt_info(value, [_INFORMATION, key])
    openvino.save_model(model, str(path), compress_to_fp16=options.half)
    beside = {"stride": int(facts["stride"]), "names": dict(enumerate(class_names))}
    path.with_suffix(".yaml").write_text(yaml.safe_dump(beside), encoding="utf-8")


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the file on the CPU; images are float32."""
    return runner(load(path)[0])


def load(path: Path) -> tuple[Any, dict[str, str]]:
    """Return a model that is ready to run on the CPU, in float32, and what the file says of itself.

    Raises:
        BadInputError: the package is missing, or the file cannot be read.
    """
    try:
        import openvino
    except ImportError:
        raise BadInputError(
            f"{path} needs the package openvino, which is not installed. "
            "Install it with: pip install 'memplan[openvino]'"
        ) from None
    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        # On processors that have it, bfloat16 would be taken by itself.
        return core.compile_model(model, "CPU", {_PRECISION: "f32"}), _facts(model)
    except Exception as error:  # noqa: BLE001 - openvino raises RuntimeError and its own
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"{path} cannot be read as an OpenVINO file: {reason}.") from None


_PRECISION = "INFERENCE_PRECISION_HINT"


def runner(model: Any) -> Callable[[Tensor], Tensor]:
    """Return a function from images `[B, 3, H, W]` float32 to predictions `[B, 4 + nc, A]`."""

    def run(images: Tensor) -> Tensor:
        found = model(images.cpu().contiguous().numpy())[0]
        return torch.from_numpy(found.copy())

    return run


def _facts(model: Any) -> dict[str, str]:
    return {
        key: str(model.get_rt_info([_INFORMATION, key]).value)
        for key in ("names", "stride", "imgsz")
        if model.has_rt_info([_INFORMATION, key])
    }
