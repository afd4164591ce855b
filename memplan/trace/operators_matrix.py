"""Matrix products: the copies that cuBLAS wants, and its workspaces.

Source: aten/src/ATen/native/cuda/Blas.cpp, cuBlasCommonArgs.h, aten/src/ATen/cuda/CUDABlas.cpp and
CublasHandlePool.cpp, PyTorch 2.11.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.trace.operators_base import (
    LightMatrixWorkspace,
    MatrixWorkspace,
    Output,
    Request,
    all_outputs,
    held,
    is_dense,
    rule,
)

_ask_pytorch = torch.nn.functional.linear
_in_linear = contextvars.ContextVar("_in_linear", default=False)


def linear(
    input: torch.Tensor,  # noqa: A002 - PyTorch's name
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what `torch.nn.functional.linear` returns, known to the recorder while it runs.

    Stands in for PyTorch's function while recording: see `adds_bias_in_place`.
    """
    token = _in_linear.set(True)
    try:
        return _ask_pytorch(input, weight, bias)
    finally:
        _in_linear.reset(token)


def adds_bias_in_place(overload: Any) -> bool:
    """Return whether a sum is that of a linear layer's bias, which a device adds in place.

    A layer whose input is no matrix nor contiguous multiplies first, then adds; for subclasses of
    tensors, such as fake ones, out of place.

    Source: `linear` in aten/src/ATen/native/Linear.cpp (`isTensorSubclassLike`), PyTorch 2.11.
    """
    return overload is torch.ops.aten.add.Tensor and _in_linear.get()


_LIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _matrix_copy_bytes(matrix: torch.Tensor) -> int:
    """Return the bytes of the copy of a matrix that is neither row- nor column-major.

    Source: `prepare_matrix_for_cublas` in cuBlasCommonArgs.h.
    """
    if is_dense(matrix):
        return 0
    (rows, columns), (down, right) = matrix.shape, matrix.stride()
    by_columns = down == 1 and right >= max(1, rows)
    by_rows = right == 1 and down >= max(1, columns)
    return 0 if by_columns or by_rows else matrix.nbytes


def _batch_copy_bytes(batch: torch.Tensor, *, rows: int, columns: int, flipped: bool) -> int:
    """Return the bytes of the copy of a batch of matrices that cuBLAS cannot read.

    Source: `prepare_batch_matrix_for_cublas` in Blas.cpp.
    """
    fast, leading = (2, 1) if flipped else (1, 2)
    strides = batch.stride()
    if strides[fast] == 1 and strides[leading] >= max(1, rows):
        return 0
    if strides[leading] == 1 and strides[fast] >= max(1, columns):
        return 0
    kept = batch.is_contiguous() and strides[1] != 0 and strides[2] != 0
    return 0 if kept else batch.nbytes


def _uses_light_interface(args: Sequence[Any], result: torch.Tensor) -> bool:
    """Return whether a product with a bias goes to cuBLASLt, which adds the bias by itself.

    Source: `isInputCompliesAddmmCudaLt` in Blas.cpp.
    """
    bias, first, second, beta = args[:4]
    if os.environ.get("DISABLE_ADDMM_CUDA_LT") == "1":
        return False
    is_row = bias.is_contiguous() and sum(size != 1 for size in bias.shape) <= 1 and bias.dim() > 0
    return (
        beta == 1
        and result.is_contiguous()
        and is_row
        and bias.shape[-1] == second.shape[1]
        and first.dtype in _LIGHT_DTYPES
        and min(*first.shape, *second.shape) > 1
    )


@rule("aten::mm")
def _product(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, copies of factors, the library's workspace on a thread's first product."""
    del outputs
    yield Output(0)
    if not all(factor.numel() for factor in args[:2]):
        return
    for factor in args[1::-1]:
        yield from held(_matrix_copy_bytes(factor))
    yield MatrixWorkspace()


@rule("aten::addmm")
def _product_with_bias(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, copies of factors, then the workspace of cuBLAS, or of cuBLASLt as well.

    cuBLASLt works through the same handle, so cuBLAS's workspace appears with it.
    """
    yield Output(0)
    if not all(factor.numel() for factor in args[1:3]):
        return
    for factor in args[2:0:-1]:
        yield from held(_matrix_copy_bytes(factor))
    yield MatrixWorkspace()
    if _uses_light_interface(args, outputs[0]):
        yield LightMatrixWorkspace()


@rule("aten::bmm")
def _batched_product(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, copies of factors, workspace."""
    yield Output(0)
    yield from _batch(args[0], args[1], outputs[0])


@rule("aten::baddbmm")
def _batched_product_with_bias(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, copies of factors, workspace."""
    yield Output(0)
    yield from _batch(args[1], args[2], outputs[0])


@rule("aten::baddbmm_")
def _added_batched_product(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Copies of factors, workspace; the result goes where the sum was."""
    del outputs
    yield from _batch(args[1], args[2], args[0])


def _batch(first: torch.Tensor, second: torch.Tensor, result: torch.Tensor) -> Iterator[Request]:
    """Yield copies of factors and the workspace.

    Source: `bmm_out_cuda_impl` in Blas.cpp. A product of row-major matrices is computed as the
    column-major product of the factors in the other order.
    """
    _, rows, columns = result.shape
    inner = first.shape[2]
    if not result.numel() or not inner:
        return
    _, down, right = result.stride()
    by_columns = down == 1 and (columns == 1 or right >= max(1, rows))
    if by_columns:
        sides = ((first, rows, inner), (second, inner, columns))
    else:
        sides = ((second, columns, inner), (first, inner, rows))
    for factor, high, wide in sides:
        yield from held(_batch_copy_bytes(factor, rows=high, columns=wide, flipped=not by_columns))
    yield MatrixWorkspace()


@rule("aten::mv", "aten::addmv", "aten::dot", "aten::vdot")
def _vector_product(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, a contiguous copy of a matrix of neither order, workspace."""
    yield from all_outputs(outputs)
    for factor in args:
        if isinstance(factor, torch.Tensor) and factor.dim() == 2:
            yield from held(_matrix_copy_bytes(factor))
    yield MatrixWorkspace()
