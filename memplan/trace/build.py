"""A model built as always, on the host, and then made fake.

Fake tensors have no values, and some models ask for values while they are built: torchvision's
RegNet computes its depths with tensors. So a model is built outside the fake world. Its weights'
values are never looked at, so filling them at random, the costliest part, is left out; memory that
nobody writes to costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Smaller tensors may hold what a model computes with, such as its depths.
_FEWEST_WEIGHTS = 1024
_FILLS = {
    "normal_",
    "uniform_",
    "fill_",
    "zero_",
    "erfinv_",
    "mul_",
    "add_",
    "clamp_",
}


class _SkipsFills(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves large tensors as they are where they would be filled in place."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.rpartition("::")[2]
        if name in _FILLS and args[0].numel() >= _FEWEST_WEIGHTS and _is_contiguous_whole(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))


def _is_contiguous_whole(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is all of its memory, as a weight is and a view is not."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


class _Builds(Protocol):
    """What a model is taken from, such as a `Workload`."""

    @property
    def build_model(self) -> Callable[[], torch.nn.Module]:
        """The function that makes it."""


def build(workload: _Builds) -> torch.nn.Module:
    """Return the workload's model on the host, weights without meaning."""
    with _SkipsFills():  # type: ignore[no-untyped-call]
        return workload.build_model()


def make_fake(model: torch.nn.Module) -> torch.nn.Module:
    """Replace parameters and buffers by fake ones, in place; what is shared stays shared.

    To be called inside the fake world, where a new tensor is a fake one.
    """
    fakes: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in fakes:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            fakes[id(tensor)] = (
                torch.nn.Parameter(made, tensor.requires_grad)
                if isinstance(tensor, torch.nn.Parameter)
                else made
            )
        return fakes[id(tensor)]

    for module in model.modules():
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for registry in registries:
            for name, tensor in registry.items():
                if tensor is not None:
                    registry[name] = fake(tensor)
    return model
