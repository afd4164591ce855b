"""Remembers what an operator does for given shapes, so that it is worked out once.

A network repeats a few hundred operator calls thousands of times. The first call goes through
PyTorch's fake kernel and the operator rules; later ones with the same shapes, strides and numbers
are answered from here, at a fifth of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_flatten

from memplan.trace.operators import Request


class FakeTensors:
    """Makes fake tensors of a mode out of bare ones.

    PyTorch's constructor sets fifteen attributes one by one, which are the same for all tensors of
    a device; here they are copied from the first.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._attributes: dict[torch.device, dict[str, Any]] = {}

    def __call__(self, bare: torch.Tensor, device: torch.device) -> FakeTensor:
        """Return a fake tensor on a device, shaped as one without data; dispatch is off."""
        attributes = self._attributes.get(device)
        if attributes is None:
            first = FakeTensor(self._mode, bare, device)
            self._attributes[device] = dict(vars(first))
            return first
        made = torch.Tensor._make_subclass(
            FakeTensor, bare, dispatch_device=True, device_for_backend_keys=device
        )
        vars(made).update(attributes)
        return made


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operator call does, apart from its results."""

    name: int
    """Index of the operator's name."""
    flops: int
    moved_bytes: int
    requests: tuple[Request, ...]
    """What it asks of the allocator, in order."""
    is_understood: bool


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor, but for its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class Known:
    """A remembered call: its cost, and the shapes of its results."""

    cost: Cost | None
    """None when no result is on the recorded device."""
    outputs: tuple[Spec | None, ...]
    container: type | None
    """`tuple` or `list` of results, None for a bare tensor."""
    viewed: int | None
    """Position of the argument whose memory all results show; None when results are new."""

    def make_outputs(self, make: FakeTensors, args: Sequence[Any]) -> list[FakeTensor | None]:
        """Return fake tensors like the results of the remembered call."""
        storage = None if self.viewed is None else args[self.viewed].untyped_storage()
        guard = torch._C._DisableTorchDispatch()
        try:
            return [
                None if spec is None else make(_bare(spec, storage), spec.device)
                for spec in self.outputs
            ]
        finally:
            del guard

    def packed(self, outputs: list[Any]) -> Any:
        """Return results in the container that the operator returns them in."""
        return outputs[0] if self.container is None else self.container(outputs)


def _bare(spec: Spec, storage: torch.UntypedStorage | None) -> torch.Tensor:
    """Return a tensor without data, over the memory of another or over its own."""
    if storage is None:
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")
    empty = torch.empty(0, dtype=spec.dtype, device="meta")
    return empty.set_(storage, spec.offset, spec.shape, spec.stride)


def _part(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        # requires_grad and the version play no part below autograd.
        return (
            value.shape,
            value.stride(),
            value.storage_offset(),
            value.dtype,
            value.fake_device.type,
        )
    if isinstance(value, list | tuple):
        return tuple(map(_part, value))
    if isinstance(value, torch.Tensor):
        raise TypeError("a tensor with data is not remembered")
    return (type(value), value)


def call_key(overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return what decides an operator's results and cost; None when it cannot be remembered."""
    try:
        key = (overload, tuple(map(_part, args)), tuple((k, _part(v)) for k, v in kwargs.items()))
        hash(key)
    except TypeError:
        return None
    return key


def remember(
    overload: Any, result: Any, outputs: Sequence[Any], args: Sequence[Any], cost: Cost | None
) -> Known | None:
    """Return the remembered call, or None when its results are neither new nor views of one input.

    Args:
        overload: the operator.
        result: what it returned.
        outputs: the flat results.
        args: its positional arguments.
        cost: what the call did on the recorded device.
    """
    if not all(tensor is None or isinstance(tensor, FakeTensor) for tensor in outputs):
        return None
    viewed = 0 if overload.is_view else None
    fits = _are_views(outputs, args) if overload.is_view else _are_new(outputs, args)
    if not fits:
        return None
    specs = tuple(
        tensor
        if tensor is None
        else Spec(
            tuple(tensor.shape),
            tensor.stride(),
            tensor.storage_offset(),
            tensor.dtype,
            tensor.fake_device,
        )
        for tensor in outputs
    )
    return Known(cost, specs, type(result) if isinstance(result, tuple | list) else None, viewed)


def _are_views(outputs: Sequence[Any], args: Sequence[Any]) -> bool:
    if not args or not isinstance(args[0], FakeTensor):
        return False
    base = args[0].untyped_storage()._cdata
    return all(tensor is not None and tensor.untyped_storage()._cdata == base for tensor in outputs)


def _are_new(outputs: Sequence[Any], args: Sequence[Any]) -> bool:
    """Return whether each result has memory of its own, as an empty tensor of its shape would."""
    seen = {
        leaf.untyped_storage()._cdata
        for leaf in tree_flatten(args)[0]
        if isinstance(leaf, torch.Tensor)
    }
    for tensor in outputs:
        if tensor is None:
            continue
        storage = tensor.untyped_storage()
        if storage._cdata in seen or tensor.storage_offset():
            return False
        if not _fills(tensor, storage.nbytes()):
            return False
        seen.add(storage._cdata)
    return True


def _fills(tensor: torch.Tensor, storage_bytes: int) -> bool:
    """Return whether an empty tensor of this shape and stride would have the same memory."""
    if tensor.numel() == 0:
        return storage_bytes == 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((side - 1) * stride for side, stride in pairs)
    return extent * tensor.element_size() == storage_bytes
