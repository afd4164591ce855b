"""Operators whose results are laid out like arguments of theirs, whatever the shapes.

A fake kernel that is a decomposition takes up to 5 ms a call, for an answer that follows from the
first call on tensors of other shapes: the same dtypes, laid out like the same arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from memplan.trace.memo import Known, Spec
from memplan.trace.operators_base import strides_of_layout

# By operator: the argument whose shape each result has; None where the shape is always the same.
_LIKE: dict[str, tuple[int | None, ...]] = {
    "aten::_to_copy": (0,),
    "aten::clone": (0,),
    "aten::cudnn_batch_norm": (0, 1, 1, None),
    "aten::cudnn_batch_norm_backward": (0, 2, 2),
}


@dataclass(frozen=True, slots=True)
class _Result:
    """A result of the first call."""

    like: int | None
    spec: Spec


class AlikeResults:
    """Remembers by operator and dtypes, not by shape, what results are."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[type | None, tuple[_Result, ...]]] = {}

    def learn(self, overload: Any, args: Sequence[Any], kwargs: Any, known: Known) -> None:
        """Note the results of a call, if they are laid out like arguments."""
        key = _key(overload, args, kwargs)
        if key is None or known.viewed is not None:
            return
        results = []
        for like, spec in zip(_likes(overload, known), known.outputs, strict=True):
            result = _Result(like, spec) if spec is not None else None
            if result is None or _shaped(result, args) != spec:
                return
            results.append(result)
        self._known[key] = known.container, tuple(results)

    def results(self, overload: Any, args: Sequence[Any], kwargs: Any) -> Known | None:
        """Return what a call gives, its cost left out; None where that is not known."""
        key = _key(overload, args, kwargs)
        found = self._known.get(key) if key is not None else None
        if found is None:
            return None
        container, results = found
        specs = tuple(_shaped(result, args) for result in results)
        return Known(cost=None, outputs=specs, container=container, viewed=None)


def _likes(overload: Any, known: Known) -> list[int | None]:
    likes = _LIKE.get(overload.name(), (0,) * len(known.outputs))
    # What a call leaves out, such as the statistics in evaluation, has no element for any shape.
    return [
        None if spec is not None and spec.shape == (0,) else like
        for like, spec in zip(likes, known.outputs, strict=True)
    ]


def _shaped(result: _Result, args: Sequence[Any]) -> Spec:
    if result.like is None:
        return result.spec
    like = args[result.like]
    shape, order = tuple(like.shape), _order(like)
    assert order is not None
    stride = tuple(strides_of_layout(shape, order))
    return Spec(shape, stride, 0, result.spec.dtype, result.spec.device)


def _key(overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what decides the results' dtypes, None where shapes decide more than sizes."""
    likes = _LIKE.get(overload.name())
    starts = bool(args) and isinstance(args[0], FakeTensor)
    is_elementwise = starts and torch.Tag.pointwise in overload.tags
    if likes is None and not is_elementwise:
        return None
    if kwargs.get("memory_format") not in {None, torch.preserve_format}:
        return None
    parts: list[tuple[Any, ...]] = []
    for position, value in enumerate(args):
        if isinstance(value, FakeTensor):
            order = _order(value)
            if order is None and (likes is None or position in likes):
                return None
            # Tensors of one shape and order: an elementwise result has both, too.
            if likes is None and (
                value.shape != args[0].shape or (parts and order is not parts[0][-1])
            ):
                return None
            parts.append((value.dtype, value.fake_device.type, value.dim(), order))
        elif isinstance(value, torch.Tensor | list | tuple) or position in (likes or ()):
            return None
        else:
            parts.append((type(value), value))
    return overload, tuple(parts), tuple(sorted((k, str(v)) for k, v in kwargs.items()))


def _order(tensor: torch.Tensor) -> torch.memory_format | None:
    """Return the layout in whose order a tensor lies in memory, holes or not; None for any other.

    Where sides of 1 leave it open, only what an empty tensor of the layout would be has one.
    """
    shape, stride = tensor.shape, tensor.stride()
    if list(stride) == strides_of_layout(shape, torch.contiguous_format):
        return torch.contiguous_format
    if 1 in shape or 0 in shape:
        return None
    for layout, rank in _ORDERS:
        if rank in {None, len(shape)} and _descends(shape, stride, layout):
            return layout
    return None


_ORDERS = (
    (torch.contiguous_format, None),
    (torch.channels_last, 4),
    (torch.channels_last_3d, 5),
)


def _descends(shape: Sequence[int], stride: Sequence[int], layout: torch.memory_format) -> bool:
    """Return whether each stride spans at least what lies within it, in the layout's order."""
    dense = strides_of_layout(shape, layout)
    axes = sorted(range(len(shape)), key=dense.__getitem__)
    span = 1
    for axis in axes:
        if stride[axis] < span:
            return False
        span = stride[axis] * shape[axis]
    return True
