"""Scaled dot-product attention: the kernel a card uses, and what that kernel asks for.

Source: aten/src/ATen/native/transformers/attention.cpp, cuda/attention.cu,
cuda/attention_backward.cu, cuda/sdp_utils.cpp, cuda/flash_attn/flash_api.cpp, PyTorch 2.11.

Limits: cuDNN's workspace, which half precision meets on compute capability 9.0 and 10.0, follows a
law read off cuDNN 9.19's own answers on a phantom card. Shared heads (`enable_gqa`) are recorded as
the composite path.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from memplan.launches.efficient_attention import EfficientAttention
from memplan.launches.launch import ceil_div
from memplan.tape import AMPERE, CUDNN_ATTENTION
from memplan.trace.operators_base import (
    MULTIPROCESSORS,
    Output,
    Release,
    Request,
    Scratch,
    Temporary,
    aten,
    held,
    is_here,
    rule,
)

_LOW = (torch.float16, torch.bfloat16)
_VOLTA = (7, 0)
_capability: ContextVar[tuple[int, int]] = ContextVar("compute capability", default=AMPERE)
_ask_pytorch = torch.nn.functional.scaled_dot_product_attention


def _round_up(number: int, multiple: int) -> int:
    return ceil_div(number, multiple) * multiple


def recorded_for() -> tuple[int, int]:
    """Return the compute capability of the cards that attention is recorded for now."""
    return _capability.get()


@contextlib.contextmanager
def attention_of(capability: tuple[int, int]) -> Iterator[None]:
    """Record attention inside the context as cards of a compute capability run it."""
    token = _capability.set(capability)
    try:
        yield
    finally:
        _capability.reset(token)


def select_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> str:
    """Return `cudnn`, `flash`, `efficient` or `math`: PyTorch's kernel on the card recorded for.

    Args:
        query: `[batch, heads, length, width]`.
        key: the same with a length of its own.
        value: the same as the key.
        mask: added to the scores, or None.

    Source: `select_sdp_backend` and the conditions it lists in cuda/sdp_utils.cpp.
    """
    tensors = (query, key, value)
    if {tensor.dim() for tensor in tensors} != {4} or min(query.shape[2], key.shape[2]) == 0:
        return "math"
    rows = {tensor.shape[:2] for tensor in tensors}
    steps = all(tensor.stride(3) == 1 for tensor in tensors)
    kinds = {tensor.dtype for tensor in tensors}
    if len(rows) > 1 or not steps or len(kinds) > 1:
        return "math"
    width, value_width = query.shape[3], value.shape[3]
    if _wants_cudnn(query, key, value, mask):
        return "cudnn"
    has_flash = recorded_for() >= AMPERE and query.dtype in _LOW
    if has_flash and mask is None and width == value_width <= 256:
        return "flash"
    alignment = _alignment(query.dtype)
    return (
        "efficient" if alignment and not (width % alignment or value_width % alignment) else "math"
    )


# The widest heads that cuDNN takes, by compute capability.
_CUDNN_WIDTHS = {(9, 0): 256, (10, 0): 128}


def _wants_cudnn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> bool:
    """Return whether cuDNN's attention comes first on the card and takes these.

    Source: `can_use_cudnn_attention` in cuda/sdp_utils.cpp.
    """
    capability = recorded_for()
    if capability not in CUDNN_ATTENTION or query.dtype not in _LOW or key.shape[2] < 2:
        return False
    widths = query.shape[3], value.shape[3]
    learns = mask is not None and mask.requires_grad
    fits = max(widths) <= _CUDNN_WIDTHS[capability] and not any(width % 8 for width in widths)
    return fits and not learns


def _alignment(dtype: torch.dtype) -> int:
    """Return of how many numbers widths must be multiples for the efficient kernel; 0 without one.

    Source: `minimum_gemm_alignment` and `check_tensor_dtype` in cuda/sdp_utils.cpp.
    """
    capability = recorded_for()
    if dtype not in {*_LOW, torch.float32} or (dtype is torch.bfloat16 and capability < AMPERE):
        return 0
    half = dtype in _LOW
    if capability < (_VOLTA if half else AMPERE):
        return 1
    return 8 if half else 4


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return what `torch.nn.functional.scaled_dot_product_attention` returns, as on a card.

    With no card present PyTorch takes the composite path, which saves the scores. This calls the
    operator that a card's kernel is behind. Stands in for PyTorch's function while recording.
    """
    low = _autocast_dtype(query)
    if low is not None:
        query, key, value = (tensor.to(low) for tensor in (query, key, value))
        attn_mask = _cast_mask(attn_mask, low)
    choice = select_attention(query, key, value, attn_mask) if is_here(query) else "math"
    if choice == "math" or enable_gqa:
        return _ask_pytorch(
            query,
            key,
            value,
            attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )
    if choice == "flash":
        return _flash(query, key, value, dropout_p, is_causal=is_causal, scale=scale)
    saves = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if choice == "cudnn":
        result = aten._scaled_dot_product_cudnn_attention.default(
            *(query, key, value, _additive(attn_mask, query), saves, dropout_p, is_causal),
            scale=scale,
        )
    else:
        result = aten._scaled_dot_product_efficient_attention.default(
            *(query, key, value, _bias(attn_mask, query, key), saves, dropout_p, is_causal),
            scale=scale,
        )
    attended: torch.Tensor = result[0]
    return attended


def _autocast_dtype(query: torch.Tensor) -> torch.dtype | None:
    """Return the type autocast gives to attention, or None when it leaves it alone."""
    if not (is_here(query) and torch.is_autocast_enabled("cuda")):
        return None
    return torch.get_autocast_dtype("cuda")


def _cast_mask(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return mask.to(dtype) if mask is not None and mask.dtype.is_floating_point else mask


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    *,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Return flash attention; widths that are no multiple of 8 are padded with zeros.

    Source: `pad_last_dim` in attention.cpp.
    """
    width = query.shape[3]
    scale = scale if scale is not None else 1 / math.sqrt(width)
    missing = -width % 8
    if missing:
        query, key, value = (
            torch.nn.functional.pad(tensor, (0, missing)) for tensor in (query, key, value)
        )
    result = aten._scaled_dot_product_flash_attention.default(
        query, key, value, dropout, is_causal, scale=scale
    )
    attended: torch.Tensor = result[0]
    return attended[..., :width] if missing else attended


def _additive(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """Return a mask as something to add.

    Source: `convert_boolean_attn_mask` in attention.cpp.
    """
    if mask is not None and mask.dtype is torch.bool:
        return torch.where(mask, 0.0, -math.inf).to(query.dtype)
    return mask


def _bias(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
    """Return a mask as something to add, with rows padded to 16 elements where they are not.

    Source: `preprocess_mask` in attention.cpp.
    """
    mask = _additive(mask, query)
    if mask is None:
        return None
    length = key.shape[2]
    if length % 16:
        mask = torch.nn.functional.pad(mask, (0, -length % 16))[..., :length]
    return mask.expand(*query.shape[:3], length)


@rule("aten::_scaled_dot_product_flash_attention")
def _flash_forward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output, the log-sum of each row, the generator's state; splits of a long key.

    The seed is copied to the device; offset and debugging mask are empty.

    Source: `mha_fwd` in cuda/flash_attn/flash_api.cpp; splitting starts when few blocks are busy.
    """
    del args
    yield Output(0)
    yield Output(1)
    for index in (6, 7, 8):
        if len(outputs) > index and outputs[index] is not None:
            yield Output(index)


def _head_major_copy_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of the copy of `[batch, heads, length, width]` as length before heads."""
    _, heads, length, width = tensor.shape
    wanted = (length * heads * width, width, heads * width, 1)
    pairs = zip(tensor.shape, tensor.stride(), wanted, strict=True)
    return 0 if all(size == 1 or mine == other for size, mine, other in pairs) else tensor.nbytes


@rule("aten::_scaled_dot_product_flash_attention_backward")
def _flash_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Contiguous copies, three gradients, the sum of each row, the query's gradient in float32.

    Source: `_flash_attention_backward` in cuda/attention_backward.cu, which makes gradient and
    output contiguous as `[batch, length, heads, width]`; `mha_bwd` in
    cuda/flash_attn/flash_api.cpp: lengths are rounded up to 128, widths to 32 (256 above 192).
    """
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    for read in (args[0], args[4]):
        yield from held(_head_major_copy_bytes(read))
    for index in range(3):
        if outputs[index] is not None:
            yield Output(index)
    rounded = _round_up(length, 128)
    wide = _round_up(width, 32) if width <= 192 else 256
    yield Temporary(4 * batch * heads * rounded)
    splits = 1
    if torch.are_deterministic_algorithms_enabled():
        splits = max(1, ceil_div(MULTIPROCESSORS, batch * heads))
    yield Temporary(4 * splits * batch * rounded * heads * wide)
    if key.shape[1] != heads:
        for _ in ("key", "value"):
            yield Temporary(batch * key.shape[2] * heads * width * query.element_size())


@rule("aten::_scaled_dot_product_efficient_attention")
def _efficient_forward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The output and the log-sum of each row; wide half outputs add in float32.

    The generator's state stays on the host outside CUDA graphs.

    Source: `_efficient_attention_forward` in cuda/attention.cu: values wider than 128 are not kept
    in registers.
    """
    del args
    yield Output(0)
    yield Output(1)
    result = outputs[0]
    if result.shape[3] > 128 and result.dtype in _LOW:
        yield Temporary(4 * result.numel())


@rule("aten::_scaled_dot_product_efficient_attention_backward")
def _efficient_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Gradients, then the product of gradient and output, summed in each row, then the workspace.

    The gradient is read as length before heads. Half precision sums the product in the kernel.

    Source: `_efficient_attention_backward` in cuda/attention_backward.cu; `kKernelComputesDelta`
    in cuda/mem_eff_attention/kernel_backward.h.
    """
    query, key = args[1], args[2]
    batch, heads, length, width = query.shape
    rows = 4 * batch * heads * length
    yield from held(_head_major_copy_bytes(args[0]))
    for index, output in enumerate(outputs):
        if isinstance(output, torch.Tensor):
            yield Output(index)
    half = query.dtype in _LOW
    if half:
        yield Temporary(rows)
    else:
        yield Temporary(rows * args[0].shape[3])
        yield Temporary(rows)
        yield Temporary(rows)
        yield Release(2, keep=1)
    launch = EfficientAttention(
        heads=batch * heads,
        queries=length,
        keys=key.shape[2],
        width=max(width, args[0].shape[3]),
        half=half,
    )
    yield Scratch(launch, "efficient_attention_workspace")


@rule("aten::_scaled_dot_product_cudnn_attention")
def _cudnn_forward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """The generator's seed and offset, the output, the log-sum of each row, the workspace.

    Source: `_cudnn_attention_forward` in cuda/attention.cu.
    """
    query, key, saves, dropout = args[0], args[1], args[4], args[5]
    for index in (6, 7, 0, 1):
        if outputs[index] is not None and (saves or index != 1):
            yield Output(index)
    hopper = 256 if query.shape[2] > 1 else 0
    yield from _at_once(hopper if recorded_for() == (9, 0) else _kept_mask(query, key, dropout))


@rule("aten::_scaled_dot_product_cudnn_attention_backward")
def _cudnn_backward(args: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Request]:
    """Three gradients, then the workspace: the query's in float32, and a sum of each row.

    On 10.0, the query's once more for short keys, in rows of whole eights.

    Source: `_scaled_dot_product_cudnn_attention_backward_cuda` in cuda/attention_backward.cu.
    """
    query, key, dropout = args[1], args[2], args[13]
    batch, heads, length, width = query.shape
    yield from (Output(index) for index in range(3) if outputs[index] is not None)
    sums = 4 * batch * heads * length * (width + 1)
    if recorded_for() == (9, 0):
        yield from _at_once(sums + 256)
        return
    more = _kept_mask(query, key, dropout)
    if not dropout and key.shape[2] <= _SHORT_KEY:
        more = 4 * batch * heads * _round_up(length, 8) * width + _TAIL_BYTES
    yield from _at_once(sums + more)


_SHORT_KEY = 128
_TAIL_BYTES = 128


def _kept_mask(query: torch.Tensor, key: torch.Tensor, dropout: float) -> int:
    """Return the bytes in which 10.0 holds what dropout keeps: a bit an element, in tiles."""
    if not dropout:
        return 0
    tiles = _round_up(query.shape[2], 128) * _round_up(key.shape[2], 128)
    return query.shape[0] * query.shape[1] * tiles // 8 + _TAIL_BYTES


def _at_once(num_bytes: int) -> Iterator[Request]:
    """Yield a workspace that is given back at once."""
    yield from held(num_bytes)
    yield from [Release()] * bool(num_bytes)
