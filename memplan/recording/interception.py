"""Calls of PyTorch's operators, intercepted below autograd and above the device's kernels.

No dispatch mode is used, which would change backward formulas: Python kernels are registered for
the `BackendSelect` key, which every call passes after autograd and before the device's kernel.
Source: PyTorch's `c10/core/DispatchKey.h` and `torch.library` documentation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Tensor = torch.Tensor
Kernel = Callable[..., Any]
_BELOW = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)


class Call:
    """One overload of an operator: what it reads and writes, and how it is run.

    Args:
        overload: of PyTorch's own operators.
        overwrites: whether what it writes is not read before.
    """

    def __init__(self, overload: torch._ops.OpOverload, *, overwrites: bool = False) -> None:
        self.overload = overload
        self.name = operator_name(overload)
        arguments = overload._schema.arguments
        self.names = [argument.name for argument in arguments]
        self.written = written_names(overload)
        is_out = any(one.is_out for one in arguments)
        self._not_read = self.written if overwrites or is_out else frozenset()
        self.follows_first = not self._not_read and self.written <= {*self.names[:1]}
        """Whether, with the first argument unknown, nothing known comes of it or is lost."""
        self._tensors = [i for i, one in enumerate(arguments) if str(one.type) == "Tensor"]
        self._redispatch = overload._handle.redispatch_boxed

    def run(self, keyset: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run what would have run without interception."""
        keys = keyset & _BELOW
        for position in self._tensors:
            # None stands for a tensor that is not there.
            if position < len(args) and not isinstance(args[position], Tensor | None):
                return self._run_with_number(keys, args, kwargs)
        return self._redispatch(keys, *args, **kwargs)

    def _run_with_number(self, keys: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a call one of whose tensors arrives as a number, as Python kernels get them."""
        operands = args[1:] if self.name == "where" else args
        others = [one for one in operands if isinstance(one, Tensor)]
        tensors = [
            _as_tensor(one, others)
            if position in self._tensors and not isinstance(one, Tensor | None)
            else one
            for position, one in enumerate(args)
        ]
        return self._redispatch(keys, *tensors, **kwargs)

    def reads(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """Yield the device tensors whose values are read."""
        for name, value in (*zip(self.names, args, strict=False), *kwargs.items()):
            if name not in self._not_read:
                yield from device_tensors(value)

    def writes(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
        """Yield the device tensors that are written."""
        for name, value in (*zip(self.names, args, strict=False), *kwargs.items()):
            if name in self.written:
                yield from device_tensors(value)


def _as_tensor(number: Any, others: Sequence[Tensor]) -> Tensor:
    """Return a number as a tensor that leaves the result's dtype as the number would have.

    Source: `torch.result_type`: a number decides only when its kind is higher than the tensors';
    so does a tensor of no dimension beside one that has some.
    """
    if not others:
        return torch.tensor(number)
    other = max(others, key=Tensor.dim)
    if torch.result_type(other, number) != other.dtype:
        return torch.tensor(number)
    if other.dim() and isinstance(number, float):
        return torch.tensor(number, dtype=torch.float64)
    return torch.tensor(number, dtype=None if other.dim() else other.dtype)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument or a result, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)


def device_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument that are on a card."""
    return (one for one in tensors_in(value) if one.is_cuda)


def pairs(device: Any, host: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tensors that stand in the same place of two results; kernels may leave places empty."""
    if isinstance(device, Tensor) and isinstance(host, Tensor):
        yield device, host
    elif isinstance(device, (list, tuple)) and isinstance(host, (list, tuple)):
        for one, other in zip(device, host, strict=False):
            yield from pairs(one, other)


def touches_device(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether any argument is on a card."""
    for value in args:
        if isinstance(value, Tensor):
            if value.is_cuda:
                return True
        elif isinstance(value, (list, tuple)) and next(device_tensors(value), None) is not None:
            return True
    return bool(kwargs) and touches_device(tuple(kwargs.values()), {})


def operator_name(overload: torch._ops.OpOverload) -> str:
    """Return an operator's name without its overload, and without the namespace `aten`."""
    return str(overload._schema.name).removeprefix("aten::")


def written_names(overload: torch._ops.OpOverload) -> frozenset[str]:
    """Return the names of the arguments that an overload writes to."""
    return frozenset(
        one.name
        for one in overload._schema.arguments
        if one.alias_info is not None and one.alias_info.is_write
    )


def is_view(overload: torch._ops.OpOverload) -> bool:
    """Return whether what an overload returns may share memory with what it is given."""
    return any(one.alias_info is not None for one in overload._schema.returns)


def maps_tensors(overload: torch._ops.OpOverload) -> bool:
    """Return whether tensors are taken and given.

    Where none are taken, PyTorch's own kernel for this key chooses the device.
    """
    schema = overload._schema
    sides = (schema.arguments, schema.returns)
    return all(any("Tensor" in str(one.type) for one in side) for side in sides)


def has_device_kernel(overload: torch._ops.OpOverload) -> bool:
    """Return whether an overload has a kernel of its own on a card, and is not made of others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(_full_name(overload), "CUDA")


def overloads() -> Iterator[torch._ops.OpOverload]:
    """Yield PyTorch's own operators that reach a device kernel under their own name."""
    for schema in torch._C._jit_get_all_schemas():
        if not schema.name.startswith("aten::"):
            continue
        packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::"), None)
        overload = getattr(packet, schema.overload_name or "default", None)
        if isinstance(overload, torch._ops.OpOverload) and _has_kernel(overload):
            yield overload


def _has_kernel(overload: torch._ops.OpOverload) -> bool:
    name = _full_name(overload)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    # TorchScript's own operators are not in the dispatcher.
    is_dispatched = torch._C._dispatch_has_kernel(name)
    return is_dispatched and (has(name, "CUDA") or has(name, "CompositeExplicitAutograd"))


def _full_name(overload: torch._ops.OpOverload) -> str:
    tail = overload._schema.overload_name
    return f"{overload._schema.name}.{tail}" if tail else str(overload._schema.name)


def intercept(
    kernels: Iterator[tuple[torch._ops.OpOverload, Kernel]], namespace: str = "aten"
) -> torch.library.Library:
    """Register kernels for operators; they are in force while the returned library lives.

    Args:
        kernels: each called with the call's key set, arguments and keyword arguments.
        namespace: of the operators.
    """
    library = torch.library.Library(namespace, "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # Registering over a kernel warns once; that is what is meant here.
        warnings.simplefilter("ignore")
        for overload, kernel in kernels:
            name = _full_name(overload).removeprefix(f"{namespace}::")
            library.impl(  # type: ignore[no-untyped-call]
                name, kernel, "BackendSelect", with_keyset=True
            )
    return library
