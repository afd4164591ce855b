"""The operators whose results the host can compute beside the card, by what they do to values."""

from __future__ import annotations

# Computed on the CPU's copies when all inputs are known.
FUNCTIONAL = frozenset(
    [
        "abs",
        "add",
        "all",
        "amax",
        "amin",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "bincount",
        "bitwise_and",
        "bitwise_not",
        "bitwise_or",
        "bitwise_xor",
        "bucketize",
        "cat",
        "ceil",
        "clamp",
        "clamp_max",
        "clamp_min",
        "constant_pad_nd",
        "count_nonzero",
        "cummax",
        "cummin",
        "cumprod",
        "cumsum",
        "div",
        "embedding",
        "eq",
        "exp",
        "expm1",
        "flip",
        "floor",
        "floor_divide",
        "fmod",
        "gather",
        "ge",
        "gt",
        "histc",
        "index",
        "index_add",
        "index_copy",
        "index_fill",
        "index_put",
        "index_reduce",
        "index_select",
        "isfinite",
        "isin",
        "isinf",
        "isnan",
        "isneginf",
        "isposinf",
        "le",
        "log",
        "log10",
        "log1p",
        "log2",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "lt",
        "masked_fill",
        "masked_scatter",
        "masked_select",
        "max",
        "maximum",
        "mean",
        "min",
        "minimum",
        "mul",
        "nan_to_num",
        "ne",
        "neg",
        "nonzero",
        "pow",
        "prod",
        "reciprocal",
        "relu",
        "remainder",
        "repeat",
        "repeat_interleave",
        "roll",
        "round",
        "rsqrt",
        "rsub",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "searchsorted",
        "sgn",
        "sigmoid",
        "sign",
        "sort",
        "sqrt",
        "stack",
        "sub",
        "sum",
        "take",
        "tanh",
        "topk",
        "tril",
        "triu",
        "trunc",
        "where",
        "_unique",
        "_unique2",
        "unique_consecutive",
        "unique_dim",
        "unique_dim_consecutive",
    ]
)

# Change a known tensor in place by known values.
IN_PLACE = frozenset(
    [
        "abs_",
        "add_",
        "bitwise_and_",
        "bitwise_not_",
        "bitwise_or_",
        "bitwise_xor_",
        "ceil_",
        "clamp_",
        "clamp_max_",
        "clamp_min_",
        "copy_",
        "div_",
        "eq_",
        "fill_",
        "floor_",
        "floor_divide_",
        "fmod_",
        "ge_",
        "gt_",
        "index_add_",
        "index_copy_",
        "index_fill_",
        "index_put_",
        "_index_put_impl_",
        "index_reduce_",
        "le_",
        "logical_and_",
        "logical_not_",
        "logical_or_",
        "logical_xor_",
        "lt_",
        "masked_fill_",
        "masked_scatter_",
        "mul_",
        "ne_",
        "neg_",
        "pow_",
        "remainder_",
        "round_",
        "scatter_",
        "scatter_add_",
        "scatter_reduce_",
        "sub_",
        "tril_",
        "triu_",
        "trunc_",
        "zero_",
    ]
)

# Give a whole tensor its content, whatever it held.
OVERWRITES = frozenset({"copy_", "fill_", "zero_"})

# Fill a tensor, given as `out`, from numbers alone.
FACTORIES = frozenset({"arange", "eye", "linspace", "logspace", "range"})

# Their writes leave known values standing: gradients are taken not to overflow, and some change no
# more than how a tensor is seen.
KEEPS_VALUES = frozenset(
    [
        "_amp_foreach_non_finite_check_and_unscale_",
        "_amp_update_scale_",
        "as_strided_",
        "detach_",
        "requires_grad_",
        "resize_",
        "resize_as_",
        "set_",
        "squeeze_",
        "swapaxes_",
        "swapdims_",
        "t_",
        "transpose_",
        "unsqueeze_",
    ]
)

# Read how long their results are while they run: the bytes of that number.
DATA_SIZED = {
    "nonzero": 4,
    "_unique2": 8,
    "unique_consecutive": 8,
    "unique_dim": 4,
    "unique_dim_consecutive": 4,
}

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})

# Met in every layer: their kernels begin with nothing that is known, and need no look.
COMMON = frozenset(
    [
        "_log_softmax",
        "_log_softmax_backward_data",
        "_softmax",
        "_softmax_backward_data",
        "addmm",
        "bmm",
        "convolution",
        "convolution_backward",
        "cudnn_batch_norm",
        "cudnn_batch_norm_backward",
        "cudnn_convolution",
        "gelu",
        "gelu_backward",
        "hardtanh_backward",
        "max_pool2d_with_indices",
        "mm",
        "native_batch_norm",
        "native_batch_norm_backward",
        "native_layer_norm",
        "native_layer_norm_backward",
        "sigmoid_backward",
        "silu",
        "silu_backward",
        "threshold_backward",
    ]
)

# Tell of a mask how much of it is true.
MASK_SUMMARIES = frozenset({"all", "any", "count_nonzero", "max", "min", "sum"})

# Combine masks element by element.
MASK_LOGIC = frozenset(
    {"mul", "bitwise_and", "bitwise_or", "bitwise_not", "logical_and", "logical_or", "logical_not"}
)

# Element by element: with some operands known and the others as the rules state them, what follows
# is the result's value.
ELEMENTWISE = frozenset(
    [
        "abs",
        "add",
        "ceil",
        "clamp",
        "clamp_max",
        "clamp_min",
        "div",
        "exp",
        "expm1",
        "floor",
        "floor_divide",
        "fmod",
        "log",
        "log10",
        "log1p",
        "log2",
        "maximum",
        "minimum",
        "mul",
        "nan_to_num",
        "neg",
        "pow",
        "reciprocal",
        "relu",
        "remainder",
        "round",
        "rsqrt",
        "rsub",
        "sgn",
        "sigmoid",
        "sign",
        "sqrt",
        "sub",
        "tanh",
        "trunc",
        "where",
    ]
)
# In place only what bounds: the counters that layers add to stay unknown.
BOUNDING_IN_PLACE = frozenset({"clamp_", "clamp_max_", "clamp_min_"})
# Their kernels write every element and begin with nothing that is known.
PLAIN = (
    ELEMENTWISE
    | COMPARISONS
    | {"cat", "flip", "masked_fill", "mean", "repeat", "roll", "stack", "sum", "tril", "triu"}
)
