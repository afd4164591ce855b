"""Convolutions: which library a card uses, the copies it wants, and its workspace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.convolution import ConvolutionProblem, DType, Kind
from memplan.trace.operators_base import (
    MAX_INT32,
    Output,
    Release,
    Request,
    Workspace,
    copy_bytes,
    held,
    rule,
    suggested_layout,
)
from memplan.trace.operators_reduction import reduction_scratch

_DTYPES: dict[torch.dtype, DType] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}
_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)
_CUDNN = ("Cudnn", "CudnnTranspose")
_ask_pytorch = torch._C._select_conv_backend


def select_convolution_backend(*arguments: Any, **named: Any) -> Any:
    """Return the convolution backend that PyTorch chooses on a card of compute capability 8 or up.

    PyTorch asks the present card whether cuDNN may do bfloat16, dilated and half-precision
    depthwise convolutions; with no card present it hears no and falls back to its own kernels. This
    answers yes for it. Takes the arguments of `torch._C._select_conv_backend`.

    Source: `ConvParams::use_cudnn`, `use_cudnn_depthwise` and `_select_conv_backend` in
    aten/src/ATen/native/Convolution.cpp; `CUDAHooks::supports*ConvolutionWithCuDNN*` in
    aten/src/ATen/cuda/detail/CUDAHooks.cpp, PyTorch 2.11.

    Limits: a card below compute capability 8 has no bfloat16 in cuDNN.
    """
    chosen = _ask_pytorch(*arguments, **named)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed")
    given = dict(zip((*names, "output_padding", "groups"), arguments, strict=False)) | named
    backends = torch._C._ConvBackend  # type: ignore[attr-defined]
    if _wants_cudnn(chosen.name, given):
        return backends.CudnnTranspose if given["transposed"] else backends.Cudnn
    return chosen


def _wants_cudnn(chosen: str, given: dict[str, Any]) -> bool:
    """Return whether cuDNN takes, on a card, what PyTorch's own kernels took without one."""
    tensor, weight = given["input"], given["weight"]
    place = getattr(tensor, "fake_device", None) or tensor.device
    if place.type != "cuda" or not torch.backends.cudnn.enabled:
        return False
    if chosen == "CudaDepthwise2d":
        return _depthwise_wants_cudnn(tensor, weight, given["stride"], given["dilation"])
    if not chosen.startswith("Slow") or tensor.dtype not in _DTYPES:
        return False
    strides = [*given["stride"]] * (1 if len(given["stride"]) > 1 else len(given["output_padding"]))
    return all(pad < step for pad, step in zip(given["output_padding"], strides, strict=False))


def _depthwise_wants_cudnn(
    tensor: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], dilation: Sequence[int]
) -> bool:
    """Return whether a contiguous depthwise convolution goes to cuDNN: half precision mostly does.

    Source: `use_cudnn_depthwise` and `check_cudnn_depthwise_workload_with_filter`,
    aten/src/ATen/native/Convolution.cpp, PyTorch 2.11.
    """
    batch, channels, *sides = tensor.shape
    height, width = sides if len(sides) == 2 else (1, sides[-1])  # 1-d is seen as 2-d
    is_half = tensor.dtype is torch.float16 and weight.dtype is torch.float16
    down, right = (stride[0], stride[-1]) if len(sides) == 2 else (1, stride[-1])
    if not is_half or max(dilation) > 1 or channels < 32 or tensor.numel() > MAX_INT32:
        return False
    if height == 1 and right == 1:
        return True
    windows = {*weight.shape[2:]} if len(sides) == 2 else {1, weight.shape[-1]}
    (window, *others) = windows
    if (down != right and height != 1) or others or window not in {1, 3, 5} or width < 7:
        return False
    return right == 1 or (right == 2 and _strided_wants_cudnn(batch, channels, width, window))


def _strided_wants_cudnn(batch: int, channels: int, width: int, window: int) -> bool:
    """Return whether a depthwise convolution of stride 2 is large enough for cuDNN."""
    if batch == 1:
        return window > 1 or width <= 28
    if window == 1:
        return batch <= 16 and channels >= 128 and width <= 7
    return channels >= 512 or (channels >= 256 and width >= 28)


def _backend(args: Sequence[Any]) -> tuple[str, torch.memory_format]:
    """Return the name of the backend on a card and the layout it wants.

    Args:
        args: input, weight, stride, padding, dilation, transposed, output_padding, groups.
    """
    tensor, weight, stride, padding, dilation, transposed, output_padding, groups = args
    backend = select_convolution_backend(
        tensor,
        weight,
        bias=None,
        stride=stride,
        padding=padding,
        dilation=dilation,
        transposed=transposed,
        output_padding=output_padding,
        groups=groups,
        bias_sizes=None,
    )
    if backend.name not in _CUDNN:
        return backend.name, torch.contiguous_format
    layout = torch._C._conv_determine_backend_memory_format(tensor, weight, backend)
    return backend.name, layout


_MIRRORED: dict[Kind, Kind] = {"forward": "input_gradient", "input_gradient": "forward"}


def _problem(
    kind: Kind, args: Sequence[Any], output_shape: Sequence[int], layout: torch.memory_format
) -> ConvolutionProblem:
    tensor, weight, stride, padding, dilation, transposed, _, groups = args
    rank = tensor.dim() - 2
    return ConvolutionProblem(
        # A transposed convolution is the input gradient of a plain one.
        kind=_MIRRORED.get(kind, kind) if transposed else kind,
        dtype=_DTYPES[tensor.dtype],
        input=tuple(output_shape if transposed else tensor.shape),
        weight=tuple(weight.shape),
        stride=_per_side(stride, rank),
        padding=_per_side(padding, rank),
        dilation=_per_side(dilation, rank),
        groups=groups,
        channels_last=layout in _CHANNELS_LAST,
        allow_tf32=torch.backends.cudnn.allow_tf32,
        deterministic=torch.backends.cudnn.deterministic,
    )


def _per_side(numbers: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(numbers) * (rank if len(numbers) == 1 else 1)


@rule("aten::convolution")
def _convolution(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copy of a badly laid out input, output, workspace; the bias is added in place.

    Source: aten/src/ATen/native/Convolution.cpp and cudnn/ConvShared.cpp; depthwise kernels are
    PyTorch's own (cuda/DepthwiseConv2d.cu), copy input and weight and want no workspace,
    PyTorch 2.11.
    """
    tensor, weight = args[0], args[1]
    problem_args = [tensor, weight, *args[3:9]]
    backend, layout = _backend(problem_args)
    yield from held(copy_bytes(tensor, layout))
    if backend not in _CUDNN:
        yield from held(copy_bytes(weight, layout))
        yield Output(0)
        return
    yield Output(0)
    yield from held(copy_bytes(weight, layout))
    yield Workspace(_problem("forward", problem_args, outputs[0].shape, layout))


@rule("aten::convolution_backward")
def _convolution_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The gradients of input and weight, then the bias's sum.

    Source: `convolution_backward` in aten/src/ATen/native/Convolution.cpp, PyTorch 2.11.
    """
    gradient, tensor, weight = args[0], args[1], args[2]
    problem_args = [tensor, weight, *args[4:10]]
    backend, layout = _backend(problem_args)
    if backend in _CUDNN:
        yield from _library_gradients(args, outputs, layout)
    else:
        copies = [*held(copy_bytes(tensor, layout)), *held(copy_bytes(gradient, layout))]
        yield from copies
        # The depthwise kernel makes the weight's gradient first, whole; the input's it resizes.
        order = (1, 0) if backend == "CudaDepthwise2d" else (0, 1)
        yield from (Output(index) for index in order if outputs[index] is not None)
        yield from [Release(len(copies))] * bool(copies)
    if outputs[2] is not None:
        yield Output(2)
        yield from reduction_scratch(gradient, [0, *range(2, gradient.dim())], element_bytes=4)


def _library_gradients(
    args: Sequence[Any], outputs: Sequence[Any], layout: torch.memory_format
) -> Iterator[Request]:
    """Yield what cuDNN's two gradients ask for, each with copies of its own.

    The gradient is copied once for both where its strides are of another layout than the input's,
    else, where it has holes, by each of the two.

    Source: `cudnn_convolution_backward`, `cudnn_convolution_backward_input` and
    `cudnn_convolution_backward_weight` in aten/src/ATen/native/cudnn/ConvShared.cpp, PyTorch 2.11.
    """
    gradient, tensor, weight = args[0], args[1], args[2]
    problem_args = [tensor, weight, *args[4:10]]
    shared = [*held(copy_bytes(tensor, layout))] if outputs[1] is not None else []
    copied = copy_bytes(gradient, layout)
    if suggested_layout(gradient) is not suggested_layout(tensor):
        shared += held(copied)
        copied = 0
    yield from shared
    if outputs[0] is not None:
        copies = [*held(copy_bytes(weight, layout)), *held(copied)]
        yield Output(0)
        yield from copies
        yield Workspace(_problem("input_gradient", problem_args, gradient.shape, layout))
        yield from [Release(len(copies))] * bool(copies)
    if outputs[1] is not None:
        copies = [*held(copied)]
        yield from copies
        yield Output(1)
        yield Workspace(_problem("weight_gradient", problem_args, gradient.shape, layout))
        yield from [Release(len(copies))] * bool(copies)
    yield from [Release(len(shared))] * bool(shared)
