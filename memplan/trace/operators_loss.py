"""Losses and softmax: intermediates of composite kernels, and contiguous copies.

Source: aten/src/ATen/native/Loss.cpp, cuda/Loss.cu, cuda/NLLLoss2d.cu, cuda/SoftMax.cu and
transformers/attention.cpp, PyTorch 2.11.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.trace.operators_base import (
    Output,
    Release,
    Request,
    Temporary,
    all_outputs,
    broadcast,
    copy_bytes,
    held,
    only_outputs,
    rule,
)
from memplan.trace.operators_reduction import reduction_scratch

only_outputs(
    "aten::nll_loss_forward",
    "aten::log_sigmoid_forward",
    "aten::log_sigmoid_backward",
    "aten::mse_loss_backward",
    "aten::smooth_l1_loss_backward",
    "aten::huber_loss_backward",
    "aten::binary_cross_entropy_backward",
)
_NOT_REDUCED = 0


def _reduced(loss_bytes: int, loss: torch.Tensor) -> Iterator[Request]:
    """Yield the loss of every element, the output, and the partial results of reducing it."""
    yield Temporary(loss_bytes)
    yield Output(0)
    yield from reduction_scratch(loss, [], element_bytes=4)


@rule("aten::binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits(
    args: Sequence[Any], outputs: Sequence[Any]
) -> Iterator[Request]:
    """The log-sigmoid of the input, weights of the positive term, then the loss of every element.

    Source: aten/src/ATen/native/Loss.cpp, PyTorch 2.11.
    """
    logits, target, _, positive_weight, reduction = args[:5]
    yield Temporary(logits.nbytes)
    if positive_weight is not None:
        yield Temporary(positive_weight.nbytes)
        shape = broadcast(positive_weight.shape, target.shape)
        yield Temporary(math.prod(shape) * outputs[0].element_size())
        yield Release(2, keep=1)  # the product has taken the logarithm in
    if reduction == _NOT_REDUCED:
        yield Output(0)
        return
    # The loss is made in place of 1 - target, and has its type.
    yield from _reduced(target.nbytes, target)


def _elementwise(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return a tensor, on no device, as the loss of every element is."""
    shape = broadcast(tensor.shape, target.shape)
    return torch.empty(shape, dtype=torch.promote_types(tensor.dtype, target.dtype), device="meta")


@rule("aten::mse_loss", "aten::smooth_l1_loss")
def _structured_loss(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output; when reduced, the loss of every element and partial results.

    The output is made for every element before it is known to be reduced, and keeps that memory.

    Source: `TORCH_META_FUNC(mse_loss)` and its kin in aten/src/ATen/native/Loss.cpp, PyTorch 2.11.
    """
    del outputs
    if args[2] == _NOT_REDUCED:
        yield Output(0)
        return
    loss = _elementwise(args[0], args[1])
    yield Output(0, loss.nbytes)
    yield Temporary(loss.nbytes)
    yield from reduction_scratch(loss, [], element_bytes=4)


@rule("aten::multi_margin_loss")
def _multi_margin_loss(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output; when reduced, the loss of every row.

    Source: `multi_margin_loss_cuda` in aten/src/ATen/native/cuda/MultiMarginLoss.cu, PyTorch 2.11.
    """
    rows = args[0].shape[0] if args[0].dim() > 1 else 1
    yield Output(0)
    if outputs[0].dim() == 0 and args[0].dim() > 1:
        yield Temporary(rows * outputs[0].element_size())


@rule("aten::huber_loss")
def _huber_loss(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The loss of every element; when reduced, the output and partial results after it.

    Source: `huber_loss` in aten/src/ATen/native/Loss.cpp, PyTorch 2.11.
    """
    del outputs
    if args[2] == _NOT_REDUCED:
        yield Output(0)
        return
    loss = _elementwise(args[0], args[1])
    yield from _reduced(loss.nbytes, loss)


@rule("aten::binary_cross_entropy", "aten::soft_margin_loss")
def _binary_cross_entropy(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The loss of every element; when reduced, its sum and partial results.

    The sum is copied into the loss of every element, whose memory the output keeps.

    Source: `binary_cross_entropy_cuda` in aten/src/ATen/native/cuda/Loss.cu, `soft_margin_loss` in
    aten/src/ATen/native/Loss.cpp, PyTorch 2.11.
    """
    loss = args[0]
    yield Output(0, loss.nbytes)
    if outputs[0].shape == loss.shape and loss.dim():
        return
    yield Temporary(outputs[0].element_size())
    yield from reduction_scratch(loss, [], element_bytes=4)


@rule("aten::nll_loss2d_forward")
def _spatial_loss(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Outputs, then contiguous copies of input and target.

    Source: aten/src/ATen/native/cuda/NLLLoss2d.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[0]))
    yield from held(copy_bytes(args[1]))


@rule("aten::nll_loss_backward")
def _loss_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then a contiguous copy of the target.

    Source: aten/src/ATen/native/cuda/Loss.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[2]))


@rule("aten::nll_loss2d_backward")
def _spatial_loss_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then a contiguous copy of the target.

    Source: aten/src/ATen/native/cuda/NLLLoss2d.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[2]))


@rule("aten::_softmax", "aten::_log_softmax")
def _softmax(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then a contiguous copy of the input.

    Source: `host_softmax` in aten/src/ATen/native/cuda/SoftMax.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[0]))


@rule("aten::_log_softmax_backward_data")
def _log_softmax_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then contiguous copies of the gradient and of the result.

    Source: `host_softmax_backward` in aten/src/ATen/native/cuda/SoftMax.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    yield from held(copy_bytes(args[0]))
    yield from held(copy_bytes(args[1]))


@rule("aten::_softmax_backward_data")
def _softmax_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, gradient times result, then contiguous copies of the product and of the result.

    Source: `softmax_backward_cuda_out` in aten/src/ATen/native/cuda/SoftMax.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    gradient, result = (
        torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="meta")
        for one in args[:2]
    )
    product = gradient * result
    yield from held(product.nbytes)
    yield from held(copy_bytes(product))
    yield from held(copy_bytes(result))


@rule("aten::_safe_softmax")
def _safe_softmax(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A softmax, a mask of its rows that are empty, then the output with zeros there.

    Source: `_safe_softmax` in aten/src/ATen/native/transformers/attention.cpp, PyTorch 2.11.
    """
    result, dim = outputs[0], args[1]
    if args[0].dtype is not result.dtype:
        yield Temporary(result.nbytes)
    yield Temporary(result.nbytes)
    yield from held(copy_bytes(args[0]))
    yield Temporary(result.element_size())
    yield Temporary(result.numel())
    yield Temporary(result.numel() // max(result.shape[dim], 1))
    yield Temporary(result.element_size())
    yield Output(0)
