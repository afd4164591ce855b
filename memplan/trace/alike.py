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
        likes = _likes(overload, len(known.outputs))
        results = []
        for like, spec in zip(likes, known.outputs, strict=True):
            if spec is None or (like is not None and not _is_like(spec, args[like])):
                return
            results.append(_Result(like, spec))
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


def _likes(overload: Any, count: int) -> tuple[int | None, ...]:
    return _LIKE.get(overload.name(), (0,) * count)


def _is_like(spec: Spec, argument: torch.Tensor) -> bool:
    return spec.shape == tuple(argument.shape) and spec.stride == argument.stride()


def _shaped(result: _Result, args: Sequence[Any]) -> Spec:
    if result.like is None:
        return result.spec
    like, spec = args[result.like], result.spec
    return Spec(tuple(like.shape), like.stride(), 0, spec.dtype, spec.device)


def _key(overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what decides the results' dtypes, None where shapes decide more than sizes."""
    likes = _LIKE.get(overload.name())
    if likes is None and torch.Tag.pointwise not in overload.tags:
        return None
    if kwargs.get("memory_format") not in {None, torch.preserve_format}:
        return None
    parts = []
    for position, value in enumerate(args):
        if isinstance(value, FakeTensor):
            layout = _layout(value)
            if likes is None:
                if layout is None or not _same_shape(value, args[0]):
                    return None
            elif position in likes and layout is None:
                return None
            parts.append((value.dtype, value.fake_device.type, value.dim(), layout))
        elif isinstance(value, torch.Tensor | list | tuple):
            return None
        else:
            parts.append((type(value), value))
    return overload, tuple(parts), tuple(sorted((k, str(v)) for k, v in kwargs.items()))


def _same_shape(one: FakeTensor, other: Any) -> bool:
    return (
        isinstance(other, FakeTensor)
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


def _layout(tensor: torch.Tensor) -> str | None:
    """Return the layout of a tensor that fills its memory just as an empty one would."""
    stride = list(tensor.stride())
    if stride == strides_of_layout(tensor.shape, torch.contiguous_format):
        return "contiguous"
    for name, rank in (("channels_last", 4), ("channels_last_3d", 5)):
        layout = getattr(torch, name)
        if tensor.dim() == rank and stride == strides_of_layout(tensor.shape, layout):
            # One that is contiguous too, but for sides of 1, is made anew as contiguous.
            return None if tensor.is_contiguous() else name
    return None
