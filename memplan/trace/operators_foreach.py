"""Operators over lists of tensors: optimizers, gradient clipping, averages.

Source: aten/src/ATen/native/cuda/Foreach*.cu, ForeachReduceOp.cu, MultiTensorApply.cuh and
aten/src/ATen/native/ForeachOpsKernels.cpp, PyTorch 2.11. Tensors that differ in type or layout go
one by one, which allocates the same outputs in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from memplan.launches.launch import ceil_div
from memplan.trace.operators_base import (
    Output,
    Request,
    Temporary,
    all_outputs,
    held,
    is_dense,
    only_outputs,
    rule,
)
from memplan.trace.operators_reduction import reduction_with_cast

_CHUNK = 65536  # elements a thread block takes; Source: MultiTensorApply.cuh `kChunkSize`

only_outputs(
    "aten::_amp_foreach_non_finite_check_and_unscale_",
    "aten::_amp_update_scale_",
)


def allocates_outputs_only(name: str) -> bool:
    """Return whether an operator over lists makes its outputs and nothing else.

    Args:
        name: such as `aten::_foreach_mul_.Scalar`.
    """
    return name.startswith(("aten::_foreach_", "aten::_fused_ada", "aten::_fused_sgd"))


def _goes_fast(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether one kernel takes the whole list.

    Source: `can_use_fast_route` in aten/src/ATen/native/ForeachUtils.h.
    """
    kinds = {tensor.dtype for tensor in tensors}
    return len(kinds) == 1 and all(is_dense(tensor) for tensor in tensors)


@rule("aten::_foreach_norm.Scalar", "aten::_foreach_max", "aten::_foreach_powsum.Scalar")
def _norms(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """A partial result for every tensor and chunk of the longest, then a number for each tensor.

    Source: `foreach_tensor_norm_cuda` in aten/src/ATen/native/cuda/ForeachReduceOp.cu, PyTorch
    2.11; of other orders than 1, 2 and infinity, one by one.
    """
    tensors = args[0]
    order = args[1] if len(args) > 1 else 2
    if not _goes_fast(tensors) or order not in {1, 2, float("inf")}:
        for index, tensor in enumerate(tensors):
            yield Output(index)
            yield from reduction_with_cast(tensor, [], outputs[index].dtype)
        return
    chunks = max(ceil_div(tensor.numel(), _CHUNK) for tensor in tensors)
    kind = outputs[0].dtype
    each = 4 if kind in {torch.float16, torch.bfloat16} else kind.itemsize
    yield from held(len(tensors) * chunks * each)
    yield from all_outputs(outputs)
    for tensor in tensors:
        if tensor.numel() == 0:  # counted once more, and left alone
            yield Temporary(kind.itemsize)
