"""Real values of fake tensors, where they follow from a batch and from constants.

They are computed on the CPU beside the fake tensors while they are small: the boxes of an image,
the indices of images, the number of boxes in the fullest one.

Limits: values are those of CPU kernels; random numbers count as unknown.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

# Elements above which a tensor's values are not followed. Every box of a batch is far below, every
# map of predictions far above.
MAX_ELEMENTS = 1 << 18

MASKS = (torch.bool, torch.uint8)
_RANDOM = torch.Tag.nondeterministic_seeded


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def real_tensors() -> Iterator[None]:
    """Let PyTorch compute, whatever modes are active."""
    guard = torch._C._DisableTorchDispatch()
    try:
        yield
    finally:
        del guard


def _shown(tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    """Return a CPU tensor laid out as `tensor` over other memory."""
    with real_tensors():
        return torch.empty(0, dtype=tensor.dtype).set_(
            storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        )


def operator_name(overload: Any) -> str:
    """Return an operator's name without its overload, such as `aten.gt`."""
    return str(overload.overloadpacket)


class Values:
    """Real values of the fake tensors for which they are known, by the memory that holds them.

    Views of one memory share its values, so writing through one is seen through all.
    """

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._makers: dict[int, str] = {}
        self._watched: dict[int, Any] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a CPU tensor with the values of `tensor`, None where they are not known."""
        if not isinstance(tensor, FakeTensor):
            return tensor if tensor.numel() <= MAX_ELEMENTS else None
        storage = self._storages.get(_key(tensor))
        if storage is None or tensor.numel() > MAX_ELEMENTS:
            return None
        return _shown(tensor, storage)

    def maker(self, tensor: torch.Tensor) -> str:
        """Return the operator that computed a tensor of unknown values, empty if not noted."""
        return self._makers.get(_key(tensor), "")

    def learn(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Note the values of a fake tensor that has memory of its own."""
        num_bytes = tensor.untyped_storage().nbytes()
        if num_bytes > MAX_ELEMENTS * tensor.element_size():
            return
        storage = torch.UntypedStorage(num_bytes)  # type: ignore[no-untyped-call]
        shown = _shown(tensor, storage)
        with real_tensors():
            shown.copy_(value)
        self._watch(tensor)
        self._makers.pop(_key(tensor), None)
        self._storages[_key(tensor)] = storage

    def forget(self, tensor: torch.Tensor, overload: Any) -> None:
        """Note that an operator gave a tensor's memory values that are not known."""
        self._storages.pop(_key(tensor), None)
        if tensor.dtype in MASKS or tensor.numel() == 1:
            self._watch(tensor)
            self._makers[_key(tensor)] = operator_name(overload)

    def _watch(self, tensor: torch.Tensor) -> None:
        """Drop what is noted when the memory goes: its address will serve another."""
        key = _key(tensor)
        if key in self._watched:
            return

        def freed(_: Any) -> None:
            for table in (self._watched, self._storages, self._makers):
                table.pop(key, None)

        self._watched[key] = weakref.ref(tensor.untyped_storage(), freed)

    def follow(self, overload: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Compute the results of an operator from known values, or note that they are unknown."""
        results = [leaf for leaf in tensors_in((result,)) if isinstance(leaf, FakeTensor)]
        if overload.is_view:
            self._follow_view(overload, args, kwargs, results)
            return
        tensors = tensors_in((*args, *kwargs.values()))
        values = self._computed(overload, args, kwargs, tensors, results)
        if values is None:
            for tensor in (*_written(overload, args, kwargs), *results):
                self.forget(tensor, overload)
            return
        old = {_key(tensor) for tensor in tensors} & self._storages.keys()
        for tensor, value in zip(results, values, strict=True):
            if _key(tensor) not in old:
                self.learn(tensor, value)

    def _follow_view(self, overload: Any, args: Any, kwargs: Any, results: list[Any]) -> None:
        """Learn the values of what was a real tensor until now; other views share theirs."""
        base = args[0]
        if isinstance(base, FakeTensor) or base.numel() > MAX_ELEMENTS:
            return
        values = tensors_in((run_real(overload, args, kwargs),))
        for tensor, value in zip(results, values, strict=True):
            if _key(tensor) not in self._storages:
                self.learn(tensor, value)

    def _computed(
        self, overload: Any, args: Any, kwargs: Any, tensors: list[Any], results: list[Any]
    ) -> list[torch.Tensor] | None:
        """Return real results; None where an input is unknown, random, or anything is too large."""
        name = overload._schema.name
        if name in _UNINITIALIZED or any(t.numel() > MAX_ELEMENTS for t in results):
            return None
        known: dict[int, torch.Tensor] = {}
        for tensor in tensors:
            value = self.of(tensor)
            if value is None and tensor is args[0]:
                value = _without_values(name, tensor)
            if value is None:
                return None
            known[id(tensor)] = value
        if _RANDOM in overload.tags:
            return None
        try:
            return tensors_in((run_real(overload, *_replaced((args, kwargs), known)),))
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
            return None  # no CPU kernel, or one that wants other numbers than these

    def real(self, tree: Any, tensors: Sequence[torch.Tensor]) -> Any:
        """Return arguments with real tensors on the CPU, None where one is not known."""
        known: dict[int, torch.Tensor] = {}
        for tensor in tensors:
            value = self.of(tensor)
            if value is None:
                return None
            known[id(tensor)] = value
        return _replaced(tree, known)


# Operators whose results have no values yet.
_UNINITIALIZED = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
}
# Operators that look at nothing but the dtype of their first argument, or at its shape too.
_OF_DTYPE = {"aten::new_full", "aten::new_ones", "aten::new_zeros"}
_OF_SHAPE = {"aten::full_like", "aten::ones_like", "aten::zeros_like"}
# Operators that overwrite their first argument.
_OVERWRITES = {"aten::copy_", "aten::fill_", "aten::zero_"}


def _without_values(name: str, tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a stand-in for a first argument whose values do not count; None where they do."""
    with real_tensors():
        if name in _OF_DTYPE:
            return torch.empty(0, dtype=tensor.dtype)
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        if name in _OF_SHAPE or (name in _OVERWRITES and whole):
            return torch.empty(tensor.shape, dtype=tensor.dtype)
    return None


def _replaced(tree: Any, known: dict[int, torch.Tensor]) -> Any:
    """Return arguments with tensors replaced, on the CPU."""
    if isinstance(tree, torch.Tensor):
        return known[id(tree)]
    if isinstance(tree, torch.device):
        return torch.device("cpu")
    if isinstance(tree, dict):
        return {name: _replaced(value, known) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([_replaced(value, known) for value in tree])
    return tree


def tensors_in(values: Iterable[Any]) -> list[torch.Tensor]:
    """Return the tensors among values and in their lists, as operators take and give them."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, torch.Tensor)]
    return found


def _written(overload: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Return the tensors that an operator writes into."""
    if not overload._schema.is_mutable:
        return []
    given = [*args, *([None] * (len(overload._schema.arguments) - len(args)))]
    return [
        leaf
        for argument, value in zip(overload._schema.arguments, given, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write
        for leaf in tensors_in((kwargs.get(argument.name, value),))
    ]


def run_real(overload: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operator gives for real tensors, whatever modes are active."""
    with real_tensors():
        return overload(*args, **kwargs)
