"""Batches of any layout: how many samples they hold, and the same samples in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from memplan.errors import BadInputError


def num_samples(batch: Any) -> int:
    """Return how many samples a batch holds: the first dimension that all its tensors share.

    Args:
        batch: tensors, `[B, ...]`, in dictionaries, lists and tuples however deep. What is
            neither, such as a number, and tensors of no dimension belong to every sample.

    Raises:
        BadInputError: it holds no tensor, or tensors that disagree about `B`.
    """
    sizes = {tensor.shape[0] for tensor in _tensors(batch) if tensor.ndim}
    if len(sizes) == 1:
        return sizes.pop()
    found = f"first dimensions {sorted(sizes)}" if sizes else "no tensor"
    raise BadInputError(
        f"A batch of type {type(batch).__name__} with {found} cannot be split. "
        "Give guard(..., split=FUNCTION) that returns a list of (samples, piece)."
    )


def split(batch: Any, num_pieces: int) -> list[tuple[int, Any]]:
    """Return a batch in pieces of nearly one size, each with its number of samples, in order.

    A list or tuple of `B` plain values, such as texts, beside tensors is split with them.
    """
    count = num_samples(batch)
    num_pieces = min(num_pieces, count)
    edges = [count * i // num_pieces for i in range(num_pieces + 1)]
    return [
        (stop - start, _part(batch, slice(start, stop), count))
        for start, stop in itertools.pairwise(edges)
    ]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _part(value: Any, part: slice, count: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[part] if value.ndim else value
    if isinstance(value, Mapping):
        return _rebuilt(value, {name: _part(one, part, count) for name, one in value.items()})
    if not isinstance(value, list | tuple):
        return value
    if len(value) == count and not any(True for _ in _tensors(value)):
        parts: list[Any] = list(value[part])
    else:
        parts = [_part(one, part, count) for one in value]
    if hasattr(value, "_fields"):  # a named tuple takes its fields one by one
        return type(value)(*parts)
    return type(value)(parts)


def _rebuilt(mapping: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """Return the parts as what they came in: a `BatchEncoding` is made from a dictionary."""
    return parts if type(mapping) is dict else type(mapping)(parts)  # type: ignore[call-arg]
