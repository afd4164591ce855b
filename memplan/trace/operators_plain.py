"""Operators that allocate their outputs alone, and copies whose inputs must be cast or moved.

Source: the kernels in aten/src/ATen/native/cuda and the composites in aten/src/ATen/native, PyTorch
2.11. CUDA's element-wise kernels cast as they read (cuda/CUDALoops.cuh), so mixed types cost
nothing, `where` excepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.trace.operators_base import (
    Output,
    Request,
    all_outputs,
    copy_bytes,
    held,
    is_dense,
    is_here,
    only_outputs,
    rule,
)

# Filling and shaping: one `empty`, then kernels that write into it.
only_outputs(
    "aten::arange",
    "aten::arange.start",
    "aten::arange.start_step",
    "aten::eye",
    "aten::eye.m",
    "aten::cat",
    "aten::clone",
    "aten::constant_pad_nd",
    "aten::empty.memory_format",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::fill_.Scalar",
    "aten::fill_.Tensor",
    "aten::full",
    "aten::full_like",
    "aten::linspace",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::new_full",
    "aten::new_ones",
    "aten::new_zeros",
    "aten::ones",
    "aten::ones_like",
    "aten::repeat",
    "aten::scalar_tensor",
    "aten::stack",
    "aten::zero_",
    "aten::zeros",
    "aten::zeros_like",
    "aten::lift_fresh",
    "aten::lift_fresh_copy",
)
# Views that the schema does not call views: they return the memory of their input.
only_outputs(
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::as_strided_",
    "aten::resize_",
    "aten::set_.source_Storage_storage_offset",
)
# Random numbers come from a counter on the device, not from memory.
only_outputs(
    "aten::bernoulli",
    "aten::bernoulli_.float",
    "aten::bernoulli.p",
    "aten::native_dropout_backward",
    "aten::normal_",
    "aten::rand",
    "aten::rand_like",
    "aten::randint",
    "aten::randint.low",
    "aten::randn",
    "aten::randn_like",
    "aten::random_",
    "aten::uniform_",
)
# Element-wise in all but the tag.
only_outputs(
    "aten::elu_backward",
    "aten::glu",
    "aten::glu_backward",
    "aten::hardsigmoid_backward",
    "aten::hardswish_",
    "aten::hardswish_backward",
    "aten::hardtanh_",
    "aten::hardtanh",
    "aten::hardtanh_backward",
    "aten::leaky_relu_backward",
    "aten::softplus_backward",
    "aten::complex",
    "aten::copysign.Scalar",
    "aten::im2col",
    "aten::col2im",
    "aten::_local_scalar_dense",
    "aten::_assert_async",
    "aten::_assert_async.msg",
    "aten::channel_shuffle",
    "aten::pixel_shuffle",
    "aten::pixel_unshuffle",
    "aten::flip",
)


@rule("aten::native_dropout")
def _dropout(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The mask, then the output.

    Source: `dropout_cuda` in aten/src/ATen/native/cuda/Dropout.cu, PyTorch 2.11.
    """
    del args
    yield Output(1)
    if outputs:
        yield Output(0)


@rule("aten::where.self")
def _where(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copies of what has another type than the result, or is a number on the host; the output.

    Source: `where_self_out` in aten/src/ATen/native/TensorCompare.cpp, PyTorch 2.11.
    """
    kind = outputs[0].dtype
    for choice in args[1:3]:
        if choice.dtype is not kind or not is_here(choice):
            yield from held(choice.numel() * kind.itemsize)
    yield Output(0)


def _moves_through_a_copy(source: torch.Tensor, target: torch.Tensor) -> bool:
    """Return whether a host tensor lands on the device contiguously before it is laid out.

    Source: `copy_requires_temporaries` and `copy_kernel_cuda` in
    aten/src/ATen/native/cuda/Copy.cu, PyTorch 2.11.
    """
    if is_here(source) or not is_here(target) or target.is_contiguous():
        return False
    pairs = zip(source.shape, source.stride(), target.stride(), strict=True)
    alike = all(size == 1 or mine == theirs for size, mine, theirs in pairs)
    return not (alike and is_dense(source) and source.dtype is target.dtype)


@rule("aten::_to_copy")
def _to_copy(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output; from the host into another layout, a contiguous copy on the device first.

    Source: aten/src/ATen/native/TensorConversions.cpp and cuda/Copy.cu, PyTorch 2.11.
    """
    yield Output(0)
    if _moves_through_a_copy(args[0], outputs[0]):
        yield from held(outputs[0].nbytes)


@rule("aten::copy_")
def _copy_in_place(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Nothing; from the host into another layout, a contiguous copy on the device first.

    Source: aten/src/ATen/native/cuda/Copy.cu, PyTorch 2.11.
    """
    yield from all_outputs(outputs)
    target, source = args[:2]
    if source.shape == target.shape and _moves_through_a_copy(source, target):
        yield from held(target.nbytes)


@rule("aten::roll")
def _roll(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A contiguous copy; the result of each dimension but the last to be rolled; the output.

    Source: `roll_cuda` in aten/src/ATen/native/cuda/TensorTransformations.cu and `roll_common` in
    native/TensorTransformations.h, PyTorch 2.11.
    """
    del outputs
    tensor, _, dims = args[:3]
    for _ in dims[:-1]:
        yield from held(tensor.nbytes)
    if len(dims) <= 1:
        yield from held(copy_bytes(tensor))
    yield Output(0)
