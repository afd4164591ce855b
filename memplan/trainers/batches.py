"""Batches of any layout: how many samples they hold, and the same samples in pieces."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from memplan.errors import BadInputError

_Array = torch.Tensor | np.ndarray


def num_samples(batch: Any) -> int:
    """Return how many samples a batch holds: the first dimension that all its tensors share.

    Where they share none, but the batch is made of lists of one length (images of any sizes beside
    their targets) or is a list of dictionaries, that length.

    Args:
        batch: tensors or NumPy arrays, `[B, ...]`, in dictionaries, lists, tuples and data classes
            however deep. What is neither, such as a number, and tensors of no dimension belong to
            every sample.

    Raises:
        BadInputError: it holds no tensor, or tensors that disagree about `B`, or it may be read
            both ways.
    """
    sizes = {array.shape[0] for array in _arrays(batch) if array.ndim}
    listed = _listed(batch)
    if len(sizes) == 1 and listed is None:
        return int(sizes.pop())
    if len(sizes) > 1 and listed is not None:
        return listed
    found = f"first dimensions {sorted(sizes)}" if sizes else "no tensor"
    if len(sizes) == 1:  # the lists may be of samples or of a batch's inputs
        found += f" in lists of {listed}"
    raise BadInputError(
        f"A batch of type {type(batch).__name__} with {found} cannot be split. "
        "Give guard(..., split=FUNCTION) that returns a list of (samples, piece)."
    )


def split(batch: Any, num_pieces: int) -> list[tuple[int, Any]]:
    """Return a batch in pieces of nearly one size, each with its number of samples, in order.

    A list or tuple of `B` plain values, such as texts, beside tensors is split with them.

    Raises:
        BadInputError: see `num_samples`.
    """
    count = num_samples(batch)
    num_pieces = max(min(num_pieces, count), 1)
    edges = [count * i // num_pieces for i in range(num_pieces + 1)]
    sizes = {array.shape[0] for array in _arrays(batch) if array.ndim}
    is_listed = len(sizes) > 1
    return [
        (stop - start, _part(batch, slice(start, stop), count, is_listed=is_listed))
        for start, stop in itertools.pairwise(edges)
    ]


def copied(batch: Any) -> Any:
    """Return a batch in containers of its own, so that a function may change these, not tensors."""
    if isinstance(batch, Mapping):
        return _rebuilt(batch, {name: copied(one) for name, one in batch.items()})
    if _is_data_class(batch):
        return copy.copy(batch)
    return _as(batch, [copied(one) for one in batch]) if _is_sequence(batch) else batch


def arrays_of(batch: Any) -> list[torch.Tensor]:
    """Return the tensors of a batch."""
    return [one for one in _arrays(batch) if isinstance(one, torch.Tensor)]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_data_class(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _members(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if _is_data_class(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return list(value) if _is_sequence(value) else []


def _arrays(value: Any) -> Iterator[_Array]:
    if isinstance(value, torch.Tensor | np.ndarray):
        yield value
    for one in _members(value):
        yield from _arrays(one)


def _listed(batch: Any) -> int | None:
    """Return the number of samples in lists of them; None where a batch is not made of such."""
    members = _members(batch)
    if not any(True for _ in _arrays(batch)):
        return None
    if _is_sequence(batch) and all(isinstance(one, Mapping) for one in members):
        return len(members)
    lengths = {len(one) if _is_sequence(one) else None for one in members}
    return lengths.pop() if len(lengths) == 1 else None


def _part(value: Any, part: slice, count: int, *, is_listed: bool) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        return value[part] if value.ndim and not is_listed else value
    is_count = _is_sequence(value) and len(value) == count
    if is_count and (is_listed or not any(True for _ in _arrays(value))):
        return _as(value, list(value[part]))
    parts = [_part(one, part, count, is_listed=is_listed) for one in _members(value)]
    if isinstance(value, Mapping):
        return _rebuilt(value, dict(zip(value, parts, strict=True)))
    if _is_data_class(value):
        names = [field.name for field in dataclasses.fields(value)]
        return _with_fields(value, dict(zip(names, parts, strict=True)))
    return _as(value, parts) if _is_sequence(value) else value


def _as(sequence: Any, parts: list[Any]) -> Any:
    if hasattr(sequence, "_fields"):  # a named tuple takes its fields one by one
        return type(sequence)(*parts)
    return type(sequence)(parts)


def _with_fields(value: Any, parts: dict[str, Any]) -> Any:
    made = copy.copy(value)
    for name, part in parts.items():
        object.__setattr__(made, name, part)  # a frozen one too
    return made


def _rebuilt(mapping: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """Return the parts as what they came in, with what else it carries: a `BatchEncoding`."""
    if type(mapping) is dict:
        return parts
    if not isinstance(mapping, MutableMapping):
        return type(mapping)(parts)  # type: ignore[call-arg]
    made = copy.copy(mapping)
    made.update(parts)
    return made


def joined(found: list[tuple[int, Any]]) -> Any:
    """Return what pieces brought as if the whole batch had: tensors in a row, numbers averaged.

    Args:
        found: samples and values of each piece; numbers and tensors of no dimension are averaged
            over samples, what is neither is the last piece's.
    """
    values = [value for _, value in found]
    first, count = values[0], sum(samples for samples, _ in found)
    if len(found) == 1:
        return first
    if isinstance(first, Mapping):
        return {
            name: joined([(samples, value[name]) for samples, value in found]) for name in first
        }
    if _is_sequence(first):
        return _as(first, [joined(_at(found, place)) for place in range(len(first))])
    if isinstance(first, torch.Tensor) and first.ndim:
        return torch.cat(values)
    if isinstance(first, float | torch.Tensor):
        return sum(value * (samples / count) for samples, value in found)
    return values[-1]


def _at(found: list[tuple[int, Any]], place: int) -> list[tuple[int, Any]]:
    return [(samples, value[place]) for samples, value in found]


def detached(value: Any) -> Any:
    """Return tensors without their graphs, in the containers they came in."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return _rebuilt(value, {name: detached(one) for name, one in value.items()})
    return _as(value, [detached(one) for one in value]) if _is_sequence(value) else value
