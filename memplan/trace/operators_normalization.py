"""Normalisation layers: statistics, staging buffers and partial sums.

Source: aten/src/ATen/native/cudnn/BatchNorm.cpp, cuda/Normalization.cu and Normalization.cuh,
cuda/layer_norm_kernel.cu, cuda/group_norm_kernel.cu, PyTorch 2.11.

Limits: cuDNN tells its workspace for channels-last batch norm only to a handle made on a device;
`BatchNormSums` estimates it. Its reserve is taken as 0 bytes, as PyTorch's fake kernel says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.launches.batch_norm import BatchNormSums
from memplan.launches.launch import ceil_div
from memplan.trace.operators_base import (
    MAX_INT32,
    MULTIPROCESSORS,
    Output,
    Release,
    Request,
    Scratch,
    Temporary,
    all_outputs,
    copy_bytes,
    grown,
    held,
    last_power_of_two,
    rule,
    suggested_layout,
)
from memplan.trace.operators_reduction import reduction_scratch

_LOW = (torch.float16, torch.bfloat16)


def _accumulator(tensor: torch.Tensor) -> int:
    return 4 if tensor.dtype in _LOW else tensor.element_size()


def _is_channels_last(tensor: torch.Tensor) -> bool:
    """Return whether the channels-last kernels take the tensor.

    Source: `batch_norm_use_channels_last_kernels` in Normalization.cu.
    """
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    if tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d):
        return True
    return bool(tensor.is_contiguous() and tensor.stride(1) == 1)


@rule("aten::cudnn_batch_norm_backward")
def _cudnn_batch_norm_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copy of an incoming gradient that is laid out unlike the input, then three gradients.

    Source: aten/src/ATen/native/cudnn/BatchNorm.cpp, PyTorch 2.11.
    """
    tensor, gradient = args[0], args[1]
    yield from held(copy_bytes(gradient, suggested_layout(tensor)))
    yield from all_outputs(outputs)
    yield from _library_workspace(tensor, _BACKWARD_PIXELS, across=0, tail=36)


@rule("aten::cudnn_batch_norm")
def _cudnn_batch_norm(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output and statistics, then in training cuDNN's workspace.

    Source: aten/src/ATen/native/cudnn/BatchNorm.cpp, PyTorch 2.11.
    """
    tensor, trains = args[0], args[5]
    yield from all_outputs(outputs)
    if trains:
        pixels = _FORWARD_PIXELS_HALF if tensor.element_size() == 2 else _FORWARD_PIXELS
        yield from _library_workspace(tensor, pixels, across=_FORWARD_ACROSS, tail=52)


# Pixels of which a thread block sums each channel, and sums that are added up once more.
_FORWARD_PIXELS_HALF, _FORWARD_PIXELS, _BACKWARD_PIXELS = 160, 64, 96
_FORWARD_ACROSS = 128


def _library_workspace(
    tensor: torch.Tensor, pixels: int, *, across: int, tail: int
) -> Iterator[Request]:
    """Yield cuDNN's workspace of a channels-last batch norm; none for other layouts."""
    if suggested_layout(tensor) not in (torch.channels_last, torch.channels_last_3d):
        return
    channels = tensor.shape[1]
    launch = BatchNormSums(
        pixels=tensor.numel() // max(channels, 1),
        channels=channels,
        pixels_per_block=pixels,
        sums_per_block=across,
        tail_bytes=tail,
    )
    yield Scratch(launch, "batch_norm_sums")


def _staging(tensor: torch.Tensor, numbers: int) -> Iterator[Request]:
    """Yield the buffers of a channels-last reduction that several blocks share, if it is large.

    Args:
        tensor: what is reduced over all but its channels.
        numbers: kept for each channel and block.

    Source: `flexible_launch_configs` in Normalization.cuh: tiles of 32 channels, 16 elements a
    thread, up to 512 threads a block, 8 to 128 blocks a channel.
    """
    channels = tensor.shape[1]
    count = tensor.numel() // channels
    width = min(last_power_of_two(channels), 32)
    height = min(last_power_of_two(ceil_div(count, 16)), 512 // width)
    if width * height != 512:
        width = min(last_power_of_two(channels), 512 // height)
    blocks = min(ceil_div(count, height * 16), 128)
    if blocks >= 8:
        yield Temporary(numbers * channels * blocks * _accumulator(tensor))
        yield Temporary(4 * ceil_div(channels, width))


@rule(
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit.no_stats",
)
def _batch_norm(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output and statistics; in training, channels-last statistics are staged.

    Source: `batch_norm_cuda_out` in aten/src/ATen/native/cuda/Normalization.cu, PyTorch 2.11.
    """
    tensor = args[0]
    trains = next(a for a in args[3:] if isinstance(a, bool))
    yield from all_outputs(outputs)
    if trains and tensor.numel() and _is_channels_last(tensor):
        yield from _staging(tensor, 4)


@rule("aten::native_batch_norm_backward")
def _batch_norm_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """One kernel over contiguous tensors; sums, then the gradient, over channels-last ones.

    Source: `batch_norm_backward_cuda` in aten/src/ATen/native/cuda/Normalization.cu, PyTorch 2.11.
    """
    gradient, tensor = args[0], args[1]
    small = max(gradient.numel(), tensor.numel()) <= MAX_INT32
    fused = outputs[0] is not None and small and not _is_channels_last(tensor)
    present = [index for index, output in enumerate(outputs) if output is not None]
    if fused:
        # Both are viewed as [batch, channels, rest], which copies a gradient laid out otherwise.
        yield from held(copy_bytes(tensor))
        yield from held(copy_bytes(gradient) if tensor.dim() > 3 and not _views(gradient) else 0)
        yield from (Output(index) for index in present)
        return
    sums = _accumulator(tensor) * tensor.shape[1]
    yield Temporary(sums)
    yield Temporary(sums)
    yield from (Output(index) for index in present if index)
    if small and _is_channels_last(gradient) and _is_channels_last(tensor):
        staged = list(_staging(tensor, 2))
        yield from staged
        if staged:
            yield Release(len(staged))
    if outputs[0] is not None:
        yield Output(0)


def _views(tensor: torch.Tensor) -> bool:
    """Return whether the trailing dimensions can be seen as one."""
    expected = tensor.stride(-1)
    for size, stride in zip(tensor.shape[:1:-1], tensor.stride()[:1:-1], strict=True):
        if size != 1 and stride != expected:
            return False
        expected = stride * size if size != 1 else expected
    return True


@rule("aten::native_layer_norm")
def _layer_norm(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A contiguous copy of the input, then output, mean and reciprocal deviation.

    Source: `layer_norm_cuda` in aten/src/ATen/native/cuda/layer_norm_kernel.cu, PyTorch 2.11.
    """
    yield from held(copy_bytes(args[0]))
    yield from all_outputs(outputs)


@rule("aten::native_layer_norm_backward")
def _layer_norm_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A contiguous copy of the input, three gradients, a contiguous copy of the incoming one.

    Many short rows are summed by parts. The parts are added up into new tensors, and those
    allocated before go.

    Source: `layer_norm_backward_cuda` and `LaunchGammaBetaBackwardCUDAKernel` in
    aten/src/ATen/native/cuda/layer_norm_kernel.cu, PyTorch 2.11.
    """
    tensor, shape = args[1], args[2]
    width = math.prod(shape)
    rows = tensor.numel() // max(width, 1)
    yield from held(copy_bytes(tensor))
    present = [index for index, output in enumerate(outputs) if output is not None]
    gradient = [*held(copy_bytes(args[0]))]
    if not (rows > 64 * 1024 and width // 32 < MULTIPROCESSORS // 2):
        yield from (Output(index) for index in present)
        yield from gradient
        return
    yield from (Output(index) for index in present if index == 0)
    weights = [index for index in present if index]
    across = ceil_div(width, 32)
    parts = min(64 * 1024 // 2 // across, ceil_div(rows, 32))
    for index in weights:
        yield Temporary(outputs[index].nbytes)
    for index in weights:
        yield Temporary(parts * outputs[index].nbytes)
    summed = torch.empty(parts, width, dtype=tensor.dtype, device="meta")
    for number, index in enumerate(weights, start=1):
        yield Output(index)
        scratch = list(reduction_scratch(summed, [0], element_bytes=4))
        yield from scratch
        yield Release(len(scratch))
        yield Release(1, keep=2 * len(weights) - number)


@rule("aten::native_group_norm")
def _group_norm(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Output, mean, reciprocal deviation, then a scale and a shift for each image and channel.

    Source: `native_group_norm` in aten/src/ATen/native/group_norm.cpp,
    `GroupNormKernelImplInternal` in cuda/group_norm_kernel.cu, PyTorch 2.11.
    """
    tensor, weight, bias, batch, channels, area = args[:6]
    yield from all_outputs(outputs)
    if area > 1 and (weight is not None or bias is not None):
        yield from held(batch * channels * _accumulator(tensor))
        yield from held(batch * channels * _accumulator(tensor))


@rule("aten::native_group_norm_backward")
def _group_norm_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Gradients, sums for each image and channel, and the factors of the input's gradient.

    Source: `GroupNormBackwardKernelImplInternal` in aten/src/ATen/native/cuda/group_norm_kernel.cu,
    PyTorch 2.11.
    """
    tensor, weight = args[1], args[4]
    batch, channels, area, groups = args[5:9]
    each = _accumulator(tensor)
    yield from (Output(index) for index, output in enumerate(outputs) if output is not None)
    yield from held(batch * channels * each)
    yield from held(batch * channels * each)
    if area == 1:
        return
    if _is_channels_last(tensor) and not tensor.is_contiguous():
        # Sums over rows of the image come first: as many rows as the divisor nearest the root.
        high = next(h for h in range(math.isqrt(area), 0, -1) if area % h == 0)
        yield Temporary(batch * channels * high * 2 * each)
        yield Release()
    if outputs[0] is not None:
        yield Temporary(batch * groups * each)
        yield Temporary(batch * groups * each)
        if weight is not None:
            yield Temporary(batch * channels * each)
            yield from grown(each)
