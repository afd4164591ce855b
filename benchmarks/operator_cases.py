"""Operators that are held against PyTorch's own host code one by one, by family.

Each family makes its inputs on the device and yields names and functions to run. They run twice:
while they are recorded, with no values, and on a phantom card.
"""

# Each function runs before the next is made.
# ruff: noqa: B023, SLF001 - some operators have private names

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as nn

Cases = Iterator[tuple[str, Callable[[], Any]]]
_DEVICE = "cuda"
aten = torch.ops.aten


def _some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=_DEVICE)


def _numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return _some(*shape, dtype=dtype)


def _mask(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bool, device=_DEVICE)  # nobody knows what is true


def reductions() -> Cases:
    """Sums and extremes: over all, along rows, down columns, of several types."""
    for dtype in (torch.float32, torch.float16, torch.int64):
        name = str(dtype).removeprefix("torch.")
        flat, tall = _some(3_000_000, dtype=dtype), _some(65536, 64, dtype=dtype)
        wide = _some(64, 65536, dtype=dtype)
        yield f"sum {name}", flat.sum
        yield f"sum of columns {name}", lambda: tall.sum(0)
        yield f"sum of rows {name}", lambda: wide.sum(1)
        yield f"max {name}", flat.max
        yield f"max of rows {name}", lambda: wide.max(1)
        yield f"argmax {name}", flat.argmax
        yield f"any {name}", flat.any
    maps = _some(8, 64, 40, 40)
    yield "mean of maps", lambda: maps.mean((2, 3))
    yield "var of maps", lambda: maps.var((0, 2, 3))
    yield "var and mean", lambda: torch.var_mean(maps, (0, 2, 3))
    yield "norm", maps.norm
    yield "norm of rows", lambda: maps.norm(dim=-1)
    yield "logsumexp", lambda: maps.logsumexp(1)
    yield "prod", lambda: maps.prod(1)
    yield "amax of a transposed matrix", lambda: maps.view(512, -1).t().amax(0)
    mask, bytes_ = _mask(3_000_000), _some(3_000_000, dtype=torch.uint8)
    yield "sum of a mask", mask.sum
    yield "sum of bytes", bytes_.sum
    yield "mean to float", lambda: maps.half().mean(dtype=torch.float32)
    yield "any of rows", lambda: maps.any(1)
    yield "all of a mask", mask.all
    yield "std", maps.std
    yield "aminmax", maps.aminmax
    yield "aminmax of columns", lambda: maps.view(512, -1).aminmax(dim=0)
    yield "cumulative max", lambda: maps.cummax(1)
    yield "count_nonzero of rows", lambda: torch.count_nonzero(maps, 1)
    yield "count_nonzero", lambda: torch.count_nonzero(maps)
    yield "isfinite and all", lambda: torch.isfinite(maps).all()


def losses() -> Cases:
    """Losses of every element and reduced."""
    one, other = _some(20000, 80), _some(20000, 80)
    half = one.half()
    labels = _numbers(20000)
    for reduction in ("none", "mean", "sum"):
        told: Any = {"reduction": reduction}
        yield f"mse {reduction}", lambda: nn.mse_loss(one, other, **told)
        yield f"mse half {reduction}", lambda: nn.mse_loss(half, half, **told)
        yield f"smooth l1 {reduction}", lambda: nn.smooth_l1_loss(one, other, **told)
        yield f"huber {reduction}", lambda: nn.huber_loss(one, other, **told)
        yield f"l1 {reduction}", lambda: nn.l1_loss(one, other, **told)
        yield f"bce {reduction}", lambda: nn.binary_cross_entropy(one, other, **told)
        yield (
            f"bce of logits {reduction}",
            lambda: nn.binary_cross_entropy_with_logits(one, other, **told),
        )
        yield f"cross entropy {reduction}", lambda: nn.cross_entropy(one, labels, **told)
        yield f"kl {reduction}", lambda: nn.kl_div(one, other, **told)
        yield f"soft margin {reduction}", lambda: nn.soft_margin_loss(one, other, **told)
        yield f"poisson {reduction}", lambda: nn.poisson_nll_loss(one, other, **told)
        yield (
            f"hinge {reduction}",
            lambda: nn.hinge_embedding_loss(one, other, **told),
        )
    yield "multi margin", lambda: nn.multi_margin_loss(one, labels)
    yield "multi margin of rows", lambda: nn.multi_margin_loss(one, labels, reduction="none")
    yield "nll", lambda: nn.nll_loss(one, labels)
    yield "weighted bce", lambda: nn.binary_cross_entropy_with_logits(one, other, pos_weight=one[0])
    yield "triplet", lambda: nn.triplet_margin_loss(one, other, one)
    yield "margin ranking", lambda: nn.margin_ranking_loss(one[0], one[1], one[2])
    yield "label smoothing", lambda: nn.cross_entropy(one, labels, label_smoothing=0.1)
    maps, classes = _some(4, 20, 64, 64), _numbers(4, 64, 64)
    yield "cross entropy of maps", lambda: nn.cross_entropy(maps, classes)
    yield "cosine similarity", lambda: nn.cosine_similarity(one, other)


def sorting() -> Cases:
    """Sorts of rows short and long, keys of all widths, what comes first, permutations."""
    for dtype in (torch.float32, torch.float16, torch.int64, torch.uint8, torch.int32):
        name = str(dtype).removeprefix("torch.")
        flat, rows = _some(100_000, dtype=dtype), _some(3, 8732, dtype=dtype)
        yield f"sort {name}", flat.sort
        yield f"sort of rows {name}", lambda: rows.sort(1)
        yield f"stable sort {name}", lambda: flat.sort(stable=True)
    long = _some(200_000)
    short, many = _some(2, 3234), _some(300, 5000)
    yield "sort of short rows", lambda: short.sort(1)
    yield "sort of short columns", lambda: short.sort(0)
    yield "sort of transposed rows", lambda: short.t().sort(0)
    yield "sort of many long rows", lambda: many.sort(1)
    yield "argsort", lambda: many.argsort(1)
    yield "topk", lambda: many.topk(10)
    yield "topk of one long row", lambda: long.topk(1000)
    yield "topk beyond what blocks sort", lambda: long.topk(5000)
    for count in (1, 80, 3000, 29999, 30001, 159_802, 3_000_000):
        yield f"randperm {count}", lambda: torch.randperm(count, device=_DEVICE)
    yield "randperm int32", lambda: torch.randperm(5000, device=_DEVICE, dtype=torch.int32)
    for dtype in (torch.float32, torch.float16, torch.int64, torch.bool):
        name, flat = str(dtype).removeprefix("torch."), _some(300_000, dtype=dtype)
        yield f"cumsum {name}", lambda: flat.cumsum(0)
    yield "cumsum of rows", lambda: many.cumsum(1)
    yield "cumsum of columns", lambda: many.cumsum(0)
    yield "kthvalue", lambda: many.kthvalue(3)
    yield "median", lambda: many.median(1)


def selecting() -> Cases:
    """Masks and indices: what is read and written where they say."""
    mask, wide = _mask(100, 10), _mask(400_000)
    table, rows = _some(100, 10, 4), _some(7, 4)
    flat, seven, big = _some(100, 10), _numbers(7), _some(400_000)
    yield "nonzero", wide.nonzero
    yield "nonzero of a matrix", mask.nonzero
    yield "nonzero of a transposed matrix", lambda: mask.t().nonzero()
    yield "where of one", lambda: torch.where(mask)
    yield "mask as an index", lambda: table[mask]
    yield "mask of a column", lambda: table[mask[:, 0]]
    yield "masked_select", lambda: table.masked_select(mask[:, :, None])
    yield "mask and index", lambda: table[mask[:, 0], _numbers(1)]
    yield "write by mask", lambda: table.index_put_((mask,), rows)
    yield "add by mask", lambda: table.index_put_((mask,), rows, accumulate=True)
    yield "write one row by mask", lambda: table.index_put_((mask,), rows[0])
    yield "write a number by mask", lambda: table.index_put_((mask,), rows[0, 0])
    yield "set a number by mask", lambda: table.__setitem__(mask, 1.0)
    yield "write by mask and index", lambda: flat.index_put_((mask[:, 0], seven), rows[:, 0])
    yield "masked_fill", lambda: table.masked_fill(mask[:, :, None], 0.0)
    yield "masked_scatter", lambda: big.masked_scatter(wide, big)
    index, short = _numbers(5000), _numbers(5000, dtype=torch.int32)
    yield "index", lambda: big[index]
    yield "index of 32 bits", lambda: big[short]
    yield "two indices", lambda: flat[index, index]
    yield "two indices that are broadcast", lambda: flat[index[:5, None], index[:7]]
    yield "set a number by index", lambda: big.__setitem__(index, 1.0)
    yield "write by index", lambda: big.index_put_((index,), _some(5000))
    yield "add by index", lambda: big.index_put_((index,), _some(5000), accumulate=True)
    yield (
        "add by two indices",
        lambda: flat.index_put_((index, index), _some(5000), accumulate=True),
    )
    yield "gather", lambda: flat.gather(1, index[:100, None])
    yield "scatter", lambda: flat.scatter(1, index[:100, None], _some(100, 1))
    yield "scatter a number", lambda: flat.scatter(1, index[:100, None], 1.0)
    yield "scatter_add", lambda: flat.scatter_add(1, index[:100, None], _some(100, 1))
    yield "index_select", lambda: flat.index_select(0, index)
    yield "index_add", lambda: flat.index_add(0, index, _some(5000, 10))
    yield "take", lambda: flat.take(index)
    yield "one_hot", lambda: nn.one_hot(index, 80)
    yield "embedding", lambda: nn.embedding(index, flat)
    yield (
        "embedding backward, few",
        lambda: aten.embedding_dense_backward(_some(3000, 10), index[:3000], 100, -1, False),
    )


def unique() -> Cases:
    """Unique elements, their inverse and counts."""
    for count in (700, 100_000):
        flat, numbers = _some(count), _numbers(count)
        yield f"unique of {count}", flat.unique
        yield f"unique with counts of {count}", lambda: numbers.unique(return_counts=True)
        yield f"unique with inverse of {count}", lambda: numbers.unique(return_inverse=True)


def layers() -> Cases:
    """Layers of networks, forward, and their backward operators."""
    maps, last = _some(8, 64, 40, 40), _some(8, 64, 40, 40).to(memory_format=torch.channels_last)
    rows, weight = _some(5000, 256), _some(256)
    yield "layer norm", lambda: nn.layer_norm(rows, (256,), weight, weight)
    for count in (5000, 70000):
        many, of = _some(count, 256), _some(count, 1)
        yield (
            f"layer norm backward of {count}",
            lambda: aten.native_layer_norm_backward(
                many, many, [256], of, of, weight, weight, [True, True, True]
            ),
        )
    yield "group norm", lambda: nn.group_norm(maps, 8, weight[:64], weight[:64])
    yield "group norm, channels-last", lambda: nn.group_norm(last, 8, weight[:64], weight[:64])
    yield "batch norm in evaluation", lambda: nn.batch_norm(maps, weight[:64], weight[:64])
    yield "instance norm", lambda: nn.instance_norm(maps)
    yield "softmax", lambda: rows.softmax(1)
    yield "softmax of columns", lambda: rows.softmax(0)
    yield "softmax to float", lambda: rows.half().softmax(1, dtype=torch.float32)
    yield "log softmax", lambda: rows.log_softmax(1)
    yield "gelu", lambda: nn.gelu(rows)
    yield "silu", lambda: nn.silu(rows)
    yield "glu", lambda: nn.glu(rows)
    yield "prelu", lambda: nn.prelu(maps, weight[:64])
    yield "dropout", lambda: nn.dropout(rows, training=True)
    yield "dropout2d", lambda: nn.dropout2d(maps, training=True)
    yield "max pool", lambda: nn.max_pool2d(maps, 2)
    yield "max pool, channels-last", lambda: nn.max_pool2d(last, 2)
    yield "average pool", lambda: nn.avg_pool2d(maps, 3, 1, 1)
    yield "adaptive average pool", lambda: nn.adaptive_avg_pool2d(maps, 7)
    yield "global average pool", lambda: nn.adaptive_avg_pool2d(maps, 1)
    yield "adaptive max pool", lambda: nn.adaptive_max_pool2d(maps, 7)
    yield "upsample nearest", lambda: nn.interpolate(maps, scale_factor=2)
    yield "upsample bilinear", lambda: nn.interpolate(maps, size=(80, 80), mode="bilinear")
    yield "upsample bicubic", lambda: nn.interpolate(maps, size=(80, 80), mode="bicubic")
    yield "pad", lambda: nn.pad(maps, (1, 1, 1, 1))
    yield "pad by reflection", lambda: nn.pad(maps, (1, 1, 1, 1), mode="reflect")
    yield "pixel shuffle", lambda: nn.pixel_shuffle(maps, 2)
    yield "unfold", lambda: nn.unfold(maps, 3)
    grid = _some(8, 20, 20, 2)
    yield "grid sample", lambda: nn.grid_sample(maps, grid, align_corners=False)
    yield "normalize", lambda: nn.normalize(rows)


def shapes() -> Cases:
    """Copies, joins and arithmetic that change layouts and types."""
    maps, last = _some(8, 64, 40, 40), _some(8, 64, 40, 40).to(memory_format=torch.channels_last)
    rows = _some(5000, 256)
    yield "cat", lambda: torch.cat((maps, maps), 1)
    yield "cat of two layouts", lambda: torch.cat((maps, last), 1)
    yield "stack", lambda: torch.stack((maps, maps))
    yield "add of two layouts", lambda: maps + last
    yield "broadcast", lambda: rows + rows[:1]
    yield "types promoted", lambda: rows.half() + rows
    yield "contiguous", lambda: rows.t().contiguous()
    yield "to channels-last", lambda: maps.to(memory_format=torch.channels_last)
    yield "reshape with a copy", lambda: rows.t().reshape(-1)
    yield "flip", lambda: maps.flip(2)
    yield "roll", lambda: maps.roll(3, 2)
    yield "repeat", lambda: rows.repeat(2, 2)
    yield "repeat_interleave", lambda: rows.repeat_interleave(2, 0)
    yield "tril", rows.tril
    yield "where", lambda: torch.where(rows > 0, rows, 0.0)
    yield "clamp", lambda: rows.clamp(0, 1)
    yield "pow", lambda: rows**2
    yield "addcmul", lambda: torch.addcmul(rows, rows, rows)
    yield "lerp", lambda: rows.lerp(rows, 0.5)
    yield "arange", lambda: torch.arange(1000, device=_DEVICE)
    yield "linspace", lambda: torch.linspace(0, 1, 1000, device=_DEVICE)
    yield (
        "meshgrid",
        lambda: torch.meshgrid(
            torch.arange(80, device=_DEVICE), torch.arange(80, device=_DEVICE), indexing="ij"
        ),
    )
    yield "eye", lambda: torch.eye(100, device=_DEVICE)
    yield "normal", lambda: torch.randn(1000, device=_DEVICE)
    yield "bernoulli", lambda: torch.bernoulli(rows)
    yield "cdist", lambda: torch.cdist(rows[:100], rows[:200])
    yield "einsum", lambda: torch.einsum("ij,kj->ik", rows, rows[:100])
    yield "matmul", lambda: rows @ rows.t()[:, :100]
    yield "batched matmul", lambda: maps.view(8, 64, -1) @ maps.view(8, 64, -1).transpose(1, 2)
    yield "linear", lambda: nn.linear(rows, rows[:10], rows[0, :10])


def backward() -> Cases:
    """Backward operators that networks' recordings meet seldom."""
    maps, rows = _some(8, 64, 40, 40), _some(5000, 256)
    last = maps.to(memory_format=torch.channels_last)
    half, wide = _some(8, 64, 20, 20), _some(8, 64, 80, 80)
    sides = [80, 80], [8, 64, 40, 40]
    yield "silu", lambda: aten.silu_backward(rows, rows)
    yield "gelu", lambda: aten.gelu_backward(rows, rows)
    yield "softmax", lambda: aten._softmax_backward_data(rows, rows, 1, torch.float32)
    yield "log softmax", lambda: aten._log_softmax_backward_data(rows, rows, 1, torch.float32)
    yield "mse", lambda: aten.mse_loss_backward(rows[0, 0], rows, rows, 1)
    yield "smooth l1", lambda: aten.smooth_l1_loss_backward(rows[0, 0], rows, rows, 1, 1.0)
    yield "bce", lambda: aten.binary_cross_entropy_backward(rows[0, 0], rows, rows, None, 1)
    yield "dropout", lambda: aten.native_dropout_backward(rows, rows > 0, 2.0)
    yield "glu", lambda: aten.glu_backward(rows[:, :128], rows, 1)
    yield (
        "average pool",
        lambda: aten.avg_pool2d_backward(half, maps, [2, 2], [2, 2], [0, 0], False, True, None),
    )
    yield "adaptive average pool", lambda: aten._adaptive_avg_pool2d_backward(half, maps)
    places = _numbers(8, 64, 20, 20)
    for name, of in (("", maps), (", channels-last", last)):
        yield (
            f"max pool{name}",
            lambda: aten.max_pool2d_with_indices_backward(
                half, of, [2, 2], [2, 2], [0, 0], [1, 1], False, places
            ),
        )
    yield "upsample nearest", lambda: aten.upsample_nearest2d_backward(wide, *sides)
    yield "upsample bilinear", lambda: aten.upsample_bilinear2d_backward(wide, *sides, False)
    yield (
        "pad by reflection",
        lambda: aten.reflection_pad2d_backward(_some(8, 64, 42, 42), maps, [1, 1, 1, 1]),
    )
    grid = _some(8, 20, 20, 2)
    yield (
        "grid sample",
        lambda: aten.grid_sampler_2d_backward(half, maps, grid, 0, 0, False, [True, True]),
    )
    yield (
        "group norm",
        lambda: aten.native_group_norm_backward(
            maps, maps, _some(8, 8), _some(8, 8), rows[0, :64], 8, 64, 1600, 8, [True, True, True]
        ),
    )
    yield "fold", lambda: aten.col2im(_some(8, 576, 1444), [40, 40], [3, 3], [1, 1], [0, 0], [1, 1])


def writing() -> Cases:
    """What writes by index, from other sides."""
    flat, big = _some(100, 10), _some(400_000)
    index, columns = _numbers(5000), _numbers(100, 1)
    mask, rows = _mask(100), _some(7, 10)
    yield "write by index", lambda: big.index_put_((index,), _some(5000))
    yield (
        "add by two indices",
        lambda: flat.index_put_((index, index), _some(5000), accumulate=True),
    )
    yield "write by mask", lambda: flat.index_put_((mask,), rows)
    yield "set a number by index", lambda: big.__setitem__(index, 1.0)
    yield "scatter", lambda: flat.scatter(1, columns, _some(100, 1))
    yield "scatter along the first", lambda: flat.scatter(0, _numbers(30, 10), _some(30, 10))
    yield "scatter a number", lambda: flat.scatter(1, columns, 1.0)
    yield "scatter_add", lambda: flat.scatter_add(1, columns, _some(100, 1))
    yield "index_add", lambda: flat.index_add(0, index, _some(5000, 10))
    yield "index_copy", lambda: flat.index_copy(0, index[:50], _some(50, 10))
    yield "gather", lambda: flat.gather(1, columns)
    yield "cumsum", lambda: big.cumsum(0)
    yield (
        "upsample bilinear backward",
        lambda: aten.upsample_bilinear2d_backward(
            _some(8, 64, 80, 80), [80, 80], [8, 64, 40, 40], False
        ),
    )


def _deterministic(family: Callable[[], Cases]) -> Callable[[], Cases]:
    """Return a family whose operators run under deterministic algorithms."""

    @functools.wraps(family)
    def runs() -> Cases:
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        try:
            yield from family()
        finally:
            torch.use_deterministic_algorithms(mode=False)

    runs.__name__ = f"{family.__name__}, deterministic"
    return runs


_PLAIN: tuple[Callable[[], Cases], ...] = (
    reductions, losses, sorting, selecting, unique, layers, shapes, backward, writing,
)  # fmt: skip
FAMILIES = (*_PLAIN, *map(_deterministic, _PLAIN))
