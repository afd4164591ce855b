"""What torchvision adds: region pooling and non-maximum suppression; pooling and resizing.

Source: torchvision/csrc/ops/cuda/roi_align_kernel.cu, roi_pool_kernel.cu, nms_kernel.cu,
torchvision 0.26; aten/src/ATen/native/cuda/UpSample*.cu, AdaptiveAveragePooling.cu,
DilatedMaxPool2d.cu, AveragePool2d.cu, PyTorch 2.11.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.launches.launch import ceil_div
from memplan.trace.operators_base import (
    Output,
    Release,
    Request,
    Temporary,
    all_outputs,
    balance,
    copy_bytes,
    grown,
    held,
    rule,
    suggested_layout,
)
from memplan.trace.operators_selection import positions_of_mask
from memplan.trace.operators_sorting import sort_scratch


@rule("torchvision::roi_align", "torchvision::roi_pool", "torchvision::ps_roi_align")
def _pool_regions(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Outputs, then contiguous copies of the features and the regions."""
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[0]))
    yield from held(copy_bytes(args[1]))


@rule(
    "torchvision::_roi_align_backward",
    "torchvision::_roi_pool_backward",
    "torchvision::_ps_roi_align_backward",
)
def _pool_regions_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then a contiguous copy of the regions."""
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[1]))


@rule("torchvision::nms")
def _suppress(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Scores sorted, boxes in their order, a bit for every pair, then what a mask of them selects.

    Source: `nms_kernel` in torchvision/csrc/ops/cuda/nms_kernel.cu: 64 boxes a thread block.
    """
    boxes, scores = args[:2]
    count = boxes.shape[0]
    if not count:
        yield Output(0)
        return
    yield Temporary(scores.nbytes)
    yield Temporary(8 * count)
    scratch = list(sort_scratch(scores, 0))
    yield from scratch
    yield Release(sum(balance(request) for request in scratch))
    yield Release(1, keep=1)
    yield Temporary(boxes.nbytes)
    yield Temporary(8 * count * ceil_div(count, 64))
    kept = torch.empty(count, dtype=torch.bool, device="meta")
    yield Temporary(kept.nbytes)
    yield from positions_of_mask(kept, outputs[0].numel())
    yield Output(0)


@rule(
    "aten::upsample_nearest2d",
    "aten::upsample_nearest2d.vec",
    "aten::_upsample_nearest_exact2d",
    "aten::max_pool2d_with_indices",
    "aten::avg_pool2d",
)
def _resample(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Outputs, then a copy of an input that is neither contiguous nor channels-last."""
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[0], suggested_layout(args[0])))


@rule("aten::im2col", "aten::col2im")
def _unfold(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output as large as the input, then as large as it is to be; a contiguous copy before.

    Memory is kept where less is enough.

    Source: `im2col_cuda` and `col2im_cuda` in aten/src/ATen/native/cuda/Im2Col.cu and Col2Im.cu,
    PyTorch 2.11.
    """
    tensor, (output,) = args[0], outputs
    yield from held(copy_bytes(tensor))
    if output.nbytes <= tensor.nbytes:
        yield Output(0, tensor.nbytes)
        return
    yield Temporary(tensor.nbytes)
    yield Output(0)
    yield Release()
    yield from grown(output.element_size())


@rule("aten::upsample_bilinear2d", "aten::upsample_bicubic2d")
def _interpolate(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output alone: strides are followed."""
    del args
    yield from all_outputs(outputs)


@rule(
    "aten::upsample_nearest2d_backward",
    "aten::_upsample_nearest_exact2d_backward",
    "aten::upsample_bilinear2d_backward",
    "aten::upsample_bicubic2d_backward",
)
def _resample_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then a copy of a gradient that is neither contiguous nor channels-last."""
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[0], suggested_layout(args[0])))


@rule("aten::max_pool2d_with_indices_backward", "aten::avg_pool2d_backward")
def _pool_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then input and gradient in the layout of the input."""
    gradient, tensor = args[:2]
    layout = suggested_layout(tensor)
    yield from all_outputs(outputs)
    yield from held(copy_bytes(tensor, layout))
    yield from held(copy_bytes(gradient, layout))
    if isinstance(args[-1], torch.Tensor):  # where the greatest stood
        yield from held(copy_bytes(args[-1], layout))


@rule("aten::_adaptive_avg_pool2d", "aten::adaptive_max_pool2d")
def _adaptive_pool(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Outputs; a channels-last input with holes is copied, others are read by their strides."""
    tensor = args[0]
    yield from all_outputs(outputs)
    if suggested_layout(tensor) is not torch.contiguous_format:
        yield from held(copy_bytes(tensor, suggested_layout(tensor)))


@rule("aten::_adaptive_avg_pool2d_backward", "aten::adaptive_max_pool2d_backward")
def _adaptive_pool_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then a copy of a badly laid out gradient."""
    gradient, tensor = args[:2]
    yield from all_outputs(outputs)
    yield from held(copy_bytes(gradient, suggested_layout(tensor)))
