"""What each operator asks of the allocator on CUDA, beyond what a fake kernel shows.

A fake kernel tells an operator's outputs. On a device the same operator may also copy an input
into the layout its library wants, and ask for workspace. Each rule below yields an operator's
requests in the order the device makes them; an operator with neither a rule nor a reason to need
none is counted by the recorder and named to the user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memplan.convolution import ConvolutionProblem, DType, Kind

aten = torch.ops.aten


@dataclass(frozen=True)
class Output:
    """The operator's output at this position is allocated, if it has memory of its own."""

    index: int


@dataclass(frozen=True)
class Temporary:
    """Bytes held until the operator returns."""

    num_bytes: int


@dataclass(frozen=True)
class Workspace:
    """The convolution library's scratch, allocated and freed at once."""

    convolution: ConvolutionProblem


@dataclass(frozen=True)
class MatrixWorkspace:
    """The matrix library's workspace, allocated once a thread and kept."""


Request = Output | Temporary | Workspace | MatrixWorkspace
Rule = Callable[[Sequence[Any], Sequence[Any]], Iterator[Request]]

_RULES: dict[Any, Rule] = {}


def rule(*overloads: Any) -> Callable[[Rule], Rule]:
    """Register a rule for the given operator overloads."""

    def register(function: Rule) -> Rule:
        for overload in overloads:
            _RULES[overload] = function
        return function

    return register


def requests(overload: Any, args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Yield what the operator asks of the allocator, in order.

    Args:
        overload: the operator, such as `torch.ops.aten.convolution.default`.
        args: its positional arguments.
        outputs: its flat list of results.
    """
    known = _RULES.get(overload)
    if known is not None:
        yield from known(args, outputs)
    else:
        yield from (Output(index) for index in range(len(outputs)))


def is_understood(overload: Any) -> bool:
    """Return whether the operator's requests on CUDA are known to be those `requests` yields."""
    if overload in _RULES or overload in _OUTPUTS_ONLY:
        return True
    return overload.is_view or torch.Tag.pointwise in overload.tags


_DTYPES: dict[torch.dtype, DType] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
}
_CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


def _copy_bytes(tensor: torch.Tensor, layout: torch.memory_format) -> int:
    """Return the bytes of `tensor.contiguous(layout)`, 0 when it is so already."""
    if layout in _CHANNELS_LAST and tensor.dim() != (4 if layout is torch.channels_last else 5):
        layout = torch.contiguous_format
    return 0 if tensor.is_contiguous(memory_format=layout) else tensor.nbytes


def _backend(args: Sequence[Any]) -> tuple[Any, torch.memory_format]:
    """Return the convolution backend and layout PyTorch chooses on CUDA.

    Args:
        args: input, weight, stride, padding, dilation, transposed, output_padding, groups.
    """
    tensor, weight, stride, padding, dilation, transposed, output_padding, groups = args
    backend = torch._C._select_conv_backend(
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
    layout = torch._C._conv_determine_backend_memory_format(tensor, weight, backend)
    return backend, layout


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


_CUDNN = ("Cudnn", "CudnnTranspose")


@rule(aten.convolution.default)
def _convolution(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copy of a badly laid out input, output, workspace; the bias is added in place.

    Source: aten/src/ATen/native/Convolution.cpp and cudnn/ConvShared.cpp, PyTorch 2.11. Depthwise
    kernels are PyTorch's own and want no workspace.
    """
    tensor, weight = args[0], args[1]
    problem_args = [tensor, weight, *args[3:9]]
    backend, layout = _backend(problem_args)
    if backend.name not in _CUDNN:
        layout = torch.contiguous_format
    if copied := _copy_bytes(tensor, layout):
        yield Temporary(copied)
    yield Output(0)
    if backend.name in _CUDNN:
        if copied := _copy_bytes(weight, layout):
            yield Temporary(copied)
        yield Workspace(_problem("forward", problem_args, outputs[0].shape, layout))


@rule(aten.convolution_backward.default)
def _convolution_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copies of badly laid out inputs, then each gradient followed by its workspace.

    Source: aten/src/ATen/native/Convolution.cpp and cudnn/ConvShared.cpp, PyTorch 2.11.
    """
    gradient, tensor, weight = args[0], args[1], args[2]
    problem_args = [tensor, weight, *args[4:10]]
    backend, layout = _backend(problem_args)
    if backend.name not in _CUDNN:
        layout = torch.contiguous_format
    for copied in (_copy_bytes(tensor, layout), _copy_bytes(gradient, layout)):
        if copied:
            yield Temporary(copied)
    kinds: tuple[Kind, ...] = ("input_gradient", "weight_gradient")
    for index, kind in enumerate(kinds):
        if outputs[index] is None:
            continue
        yield Output(index)
        if backend.name in _CUDNN:
            if index == 0 and (copied := _copy_bytes(weight, layout)):
                yield Temporary(copied)
            yield Workspace(_problem(kind, problem_args, gradient.shape, layout))
    if outputs[2] is not None:
        yield Output(2)


@rule(aten.cudnn_batch_norm_backward.default)
def _batch_norm_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copy of an incoming gradient that is laid out unlike the input, then three gradients.

    Source: aten/src/ATen/native/cudnn/BatchNorm.cpp, PyTorch 2.11.
    """
    tensor, gradient = args[0], args[1]
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format
    if copied := _copy_bytes(gradient, layout):
        yield Temporary(copied)
    yield from (Output(index) for index in range(len(outputs)))


@rule(aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.mv.default)
def _matrix_product(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, then the library's workspace on a thread's first product.

    Source: aten/src/ATen/cuda/CublasHandlePool.cpp, PyTorch 2.11.
    """
    del args
    yield from (Output(index) for index in range(len(outputs)))
    yield MatrixWorkspace()


# Operators whose device kernels allocate their outputs and nothing else, though nothing in their
# schema says so. Source: the kernels in aten/src/ATen/native/cuda, PyTorch 2.11.
_OUTPUTS_ONLY = {
    aten._foreach_add_.List,
    aten._foreach_add_.Scalar,
    aten._foreach_add_.Tensor,
    aten._foreach_add.List,
    aten._foreach_mul_.Scalar,
    aten._foreach_mul_.Tensor,
    aten._foreach_mul_.List,
    aten._foreach_mul.Scalar,
    aten._foreach_lerp_.Scalar,
    aten._foreach_addcmul_.Scalar,
    aten._foreach_addcdiv_.Scalar,
    aten._foreach_addcdiv_.ScalarList,
    aten._foreach_div_.ScalarList,
    aten._foreach_sqrt.default,
    aten._foreach_sqrt_.default,
    aten._foreach_neg.default,
    aten._foreach_maximum_.List,
    aten._amp_foreach_non_finite_check_and_unscale_.default,
    aten._amp_update_scale_.default,
    aten._local_scalar_dense.default,
    aten._to_copy.default,
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.cat.default,
    aten.clone.default,
    aten.copy_.default,
    aten.cudnn_batch_norm.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.fill_.Scalar,
    aten.full.default,
    aten.full_like.default,
    aten.gather.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool2d_with_indices_backward.default,
    aten.avg_pool2d.default,
    aten.avg_pool2d_backward.default,
    aten.native_batch_norm.default,
    aten.native_dropout.default,
    aten.native_dropout_backward.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.nll_loss_forward.default,
    aten.nll_loss_backward.default,
    aten.ones_like.default,
    aten._log_softmax.default,
    aten._log_softmax_backward_data.default,
    aten._softmax.default,
    aten._softmax_backward_data.default,
    aten.scalar_tensor.default,
    aten.scatter_.src,
    aten.scatter_.value,
    aten.select_backward.default,
    aten.slice_backward.default,
    aten.stack.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d_backward.default,
    aten.zero_.default,
    aten.zeros.default,
    aten.zeros_like.default,
}
