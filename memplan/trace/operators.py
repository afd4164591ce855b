"""What each operator asks of the allocator on CUDA, beyond what a fake kernel shows.

A fake kernel tells an operator's outputs. On a device the same operator may also copy an input
into the layout its library wants, and ask for workspace. Each rule yields an operator's requests in
the order the device makes them; an operator with neither a rule nor a reason to need none is
counted by the recorder and named to the user.

The rules stand in the files `operators_*.py`, a family each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from memplan.trace import (  # noqa: F401 - importing them registers their rules
    operators_attention,
    operators_convolution,
    operators_foreach,
    operators_indexing,
    operators_loss,
    operators_matrix,
    operators_normalization,
    operators_plain,
    operators_reduction,
    operators_selection,
    operators_sorting,
    operators_vision,
)
from memplan.trace.layouts import laid_out_on_device
from memplan.trace.operators_base import (
    GROWING,
    OUTPUTS_ONLY,
    RULES,
    LightMatrixWorkspace,
    MatrixWorkspace,
    Output,
    Release,
    Request,
    Rule,
    Scratch,
    Temporary,
    Workspace,
    grown,
)
from memplan.trace.operators_matrix import adds_bias_in_place

__all__ = [
    "LightMatrixWorkspace",
    "MatrixWorkspace",
    "Output",
    "Release",
    "Request",
    "Rule",
    "Scratch",
    "Temporary",
    "Workspace",
    "adds_bias_in_place",
    "in_place_on_device",
    "is_understood",
    "laid_out_on_device",
    "requests",
]


@functools.cache
def _name(overload: Any) -> str:
    """Return an operator's name as rules spell it, such as `aten::sum.dim_IntList`."""
    return str(overload.name())


def _bound(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Any]:
    """Return all arguments in the order of the schema, defaults filled in."""
    given = kwargs or {}
    rest = overload._schema.arguments[len(args) :]
    return [*args, *(given.get(argument.name, argument.default_value) for argument in rest)]


def requests(
    overload: Any,
    args: Sequence[Any],
    outputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
) -> Iterator[Request]:
    """Yield what the operator asks of the allocator, in order.

    Args:
        overload: the operator, such as `torch.ops.aten.convolution.default`.
        args: its positional arguments.
        outputs: its flat list of results; empty when it writes into its first argument.
        kwargs: its arguments by name.
    """
    name = _name(overload)
    known = RULES.get(name)
    asked: Iterable[Request]
    if known is None:
        asked = (Output(index) for index in range(len(outputs)))
    else:
        asked = known(_bound(overload, args, kwargs), outputs)
    for request in asked:
        if not isinstance(request, Output):
            yield request
        # An operator in place shares its rule with the one that returns something new.
        elif request.index < len(outputs):
            yield request
            if name in GROWING:
                yield from grown(outputs[request.index].element_size())


@functools.cache
def is_understood(overload: Any) -> bool:
    """Return whether the operator's requests on CUDA are known to be those `requests` yields."""
    name = _name(overload)
    if name in RULES or name in OUTPUTS_ONLY or operators_foreach.allocates_outputs_only(name):
        return True
    return overload.is_view or _is_pointwise(overload)


def _is_pointwise(overload: Any) -> bool:
    """Return whether an operator, or the one it is the in-place form of, works by elements."""
    packet, _, overloaded = _name(overload).removeprefix("aten::").partition(".")
    plain = getattr(torch.ops.aten, packet.rstrip("_"), None)
    same = getattr(plain, overloaded or "default", overload)
    return torch.Tag.pointwise in {*overload.tags, *same.tags}


# Backward formulas write out of place what they write in place on a device, because a dispatch mode
# is watching. By the node's name: the operators, and the argument whose memory the result has.
# Source: `areAnyTensorSubclassLike` in torch/csrc/autograd/FunctionsManual.cpp (index_backward,
# value_selecting_reduction_backward, binary_cross_entropy_with_logits_backward), `gather_backward`
# in aten/src/ATen/native/TensorAdvancedIndexing.cpp, PyTorch 2.11.
_WRITTEN_IN_PLACE = {
    "IndexBackward": {"aten::index_put"},
    "MaxBackward": {"aten::scatter.src"},
    "MinBackward": {"aten::scatter.src"},
    "TopkBackward": {"aten::scatter.src"},
    "SortBackward": {"aten::scatter.src"},
    "ModeBackward": {"aten::scatter.src"},
    "KthvalueBackward": {"aten::scatter.src"},
    "GatherBackward": {"aten::scatter_add"},
    "IndexSelectBackward": {"aten::index_add"},
    "MaskedSelectBackward": {"aten::masked_scatter"},
    "BinaryCrossEntropyWithLogitsBackward": {"aten::sub.Tensor", "aten::mul.Tensor"},
}


def in_place_on_device(node_name: str, overload: Any) -> bool:
    """Return whether an operator in a node of the backward graph writes into its first argument.

    Args:
        node_name: of the node that runs, as `Node.name()` spells it, such as `IndexBackward0`.
        overload: an operator that returns something new under a dispatch mode.
    """
    return _name(overload) in _WRITTEN_IN_PLACE.get(node_name.rstrip("0123456789"), ())
