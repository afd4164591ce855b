"""Layouts of results on a device, where a fake kernel lays them out otherwise.

Many fake kernels are PyTorch's decompositions, whose last operator decides the layout. Strides were
compared with those of the device's own kernels for 80 operators over five layouts of each input.

Source: `computeStride` in aten/src/ATen/TensorUtils.cpp, aten/src/ATen/native/Activation.cpp,
cuda/layer_norm_kernel.cu, cuda/Normalization.cu, cudnn/BatchNorm.cpp, cuda/SoftMax.cu against
torch/_decomp/decompositions.py, PyTorch 2.11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memplan.trace.values import real_tensors

# The iterator's first operand is the incoming gradient; a decomposition's is a condition on the
# other tensor, at this position.
_AS_GRADIENT = {
    "aten::hardtanh_backward": 1,
    "aten::hardswish_backward": 1,
    "aten::hardsigmoid_backward": 1,
    "aten::softplus_backward": 1,
    "aten::elu_backward": 5,
}
# The first result is made like the input at this position, whatever the gradient's layout.
_LIKE_INPUT = {"aten::cudnn_batch_norm_backward": 0, "aten::native_batch_norm_backward": 1}
_CONTIGUOUS = {"aten::native_layer_norm_backward", "aten::_log_softmax_backward_data"}
# Dimensions of one element get other strides, by which layouts are told apart.
_VIEWS = {"aten::view", "aten::_unsafe_view"}


def laid_out_on_device(overload: Any, args: Sequence[Any], result: Any) -> Any:
    """Return results in the layout that they have on a device.

    Args:
        overload: the operator.
        args: its positional arguments.
        result: what the fake kernel returned.
    """
    name = overload.name()
    if name in _VIEWS:
        return _viewed(args, result) if 1 in result.shape else result
    if name not in _AS_GRADIENT and name not in _LIKE_INPUT and name not in _CONTIGUOUS:
        return result
    first = result if isinstance(result, torch.Tensor) else result[0]
    if first is None:
        return result
    strides = _strides(name, args, first)
    if strides == first.stride():
        return result
    made = first.new_empty_strided(first.shape, strides)
    return made if first is result else (made, *result[1:])


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), device="meta")


def _viewed(args: Sequence[Any], result: torch.Tensor) -> torch.Tensor:
    with real_tensors():
        strides = _bare(args[0]).view(result.shape).stride()
    if strides == result.stride():
        return result
    return result.as_strided(result.shape, strides, result.storage_offset())


def _strides(name: str, args: Sequence[Any], first: torch.Tensor) -> tuple[int, ...]:
    if name in _AS_GRADIENT:
        return (_bare(args[0]) * _bare(args[_AS_GRADIENT[name]])).stride()
    if name in _LIKE_INPUT:
        return torch.empty_like(_bare(args[_LIKE_INPUT[name]])).stride()
    return torch.empty(first.shape, device="meta").stride()
