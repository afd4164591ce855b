"""TensorRT engines, built from the ONNX file by the package tensorrt and run through its own API.

An engine is of one card and one TensorRT version. Written to the documentation of TensorRT 10;
no engine was ever built by memplan's tests, which have no card.

Source: https://docs.nvidia.com/deeplearning/tensorrt, "Python API documentation".
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from memplan.errors import BadInputError

from .export_files import INPUT, write_onnx
from .export_nms import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from memplan.workload import ExportOptions

    from .network import DetectionModel


def write(
    path: Path, net: DetectionModel, class_names: tuple[str, ...], options: ExportOptions
) -> None:
    """Build an engine for this machine's card; half precision lets TensorRT take half kernels.

    Raises:
        BadInputError: TensorRT cannot read the network, or builds no engine of it.
    """
    import tensorrt

    onnx_path = path.with_suffix(".onnx")
    write_onnx(onnx_path, net, class_names, dataclasses.replace(options, half=False))
    log = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(log)
    network = builder.create_network()
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse(onnx_path.read_bytes()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BadInputError(f"TensorRT cannot read the network: {reasons[:300]}.")
    onnx_path.unlink()
    config = builder.create_builder_config()
    limit = int(options.workspace_gib * 2**30)
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, limit)
    if options.half:
        config.set_flag(tensorrt.BuilderFlag.FP16)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise BadInputError("TensorRT builds no engine of the network; its messages are above.")
    path.write_bytes(bytes(content))


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an engine on the current card; images are float32.

    Raises:
        BadInputError: the engine is of another card or version.
    """
    import tensorrt

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BadInputError(f"{path} is no engine of this card and of this TensorRT.")
    context = engine.create_execution_context()
    shape = tuple(engine.get_tensor_shape(OUTPUT))

    def run(images: Tensor) -> Tensor:
        given = images.cuda().contiguous()
        found = torch.empty(shape, device=given.device)
        context.set_tensor_address(INPUT, given.data_ptr())
        context.set_tensor_address(OUTPUT, found.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise BadInputError(f"{path} does not run; TensorRT's messages are above.")
        stream.synchronize()
        return found.cpu()

    return run
