"""Host copies of small device tensors whose content is known.

On the phantom card kernels compute nothing, so device memory has no content. What came from the
host (targets, sizes, indices, lengths) keeps its values here, in one host copy for each device
storage; views of a storage read and write the same copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Storages above this size have no host copy: images and activations, whose values decide no size.
LIMIT_BYTES = 1 << 20
# Copies of freed storages are let go after so many new ones.
_SWEEP_EVERY = 512


@dataclass(slots=True)
class Content:
    """What a device storage holds, as far as it is known."""

    host: torch.UntypedStorage | None
    """The host's copy; None where every element is `constant`."""
    by_rule: bool
    """Whether any of it follows from a stated rule instead of from the host's own values."""
    constant: bool = False


@dataclass(slots=True)
class _Entry:
    weak: int
    content: Content


def _identity(tensor: torch.Tensor) -> int:
    """Return what a tensor's storage is known by; 0 where it has none, as a sparse tensor."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else 0


def _host_storage(num_bytes: int) -> torch.UntypedStorage:
    storage: torch.UntypedStorage = torch.UntypedStorage(num_bytes)  # type: ignore[no-untyped-call]
    return storage


def _weak_reference(storage: torch.UntypedStorage) -> int:
    weak: Any = storage._weak_ref()
    return int(weak)


def _free(entry: _Entry) -> None:
    torch.UntypedStorage._free_weak_ref(entry.weak)  # type: ignore[no-untyped-call]


class HostValues:
    """The known contents of device storages.

    A storage is known by its C++ identity. The weak reference kept beside each content keeps that
    identity from being given to another storage, so a freed and reused address is never mistaken.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._entries: dict[int, _Entry] = {}
        self._until_sweep = _SWEEP_EVERY

    def __len__(self) -> int:
        return len(self._entries)

    def content(self, tensor: torch.Tensor) -> Content | None:
        """Return what a device tensor's storage holds, None when that is not known."""
        if not self._entries:
            return None
        entry = self._entries.get(_identity(tensor))
        return None if entry is None else entry.content

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Return whether a device tensor's storage has a known content."""
        return _identity(tensor) in self._entries

    def has_room(self, tensor: torch.Tensor) -> bool:
        """Return whether a device tensor's storage is small enough to have a host copy."""
        is_plain = tensor.layout is torch.strided
        return is_plain and tensor.untyped_storage().nbytes() <= self._limit_bytes

    def view(self, tensor: torch.Tensor, content: Content) -> torch.Tensor:
        """Return the host's view of a device tensor, sharing memory with all others of it."""
        if content.host is None:
            return torch.tensor(content.constant).expand(tensor.shape)
        host = torch.empty((), dtype=tensor.dtype)
        return host.set_(content.host, tensor.storage_offset(), tensor.size(), tensor.stride())

    def keep(
        self, tensor: torch.Tensor, host: torch.Tensor, *, by_rule: bool, is_fresh: bool = False
    ) -> bool:
        """Take host values as a device tensor's content.

        Args:
            tensor: on the device; must cover its whole storage unless that is known already.
            host: on the CPU, of the same shape.
            by_rule: whether a rule had a part in them.
            is_fresh: whether an operator has just made the tensor, so that nothing else reads the
                rest of its storage.

        Returns:
            Whether they were taken: False above the size limit, or for a part of an unknown whole.
        """
        if tensor.layout is not torch.strided:
            return False
        storage = tensor.untyped_storage()
        known = self._entries.get(storage._cdata)
        if known is None or known.content.host is None:
            if not self._is_taken(tensor, storage, is_fresh):
                return False
            self.forget(tensor)
            known = self._add(storage, Content(_host_storage(storage.nbytes()), by_rule=False))
        content = known.content
        content.by_rule = content.by_rule or by_rule
        self.view(tensor, content).copy_(host)
        return True

    def keep_constant(self, mask: torch.Tensor, value: bool) -> None:
        """Take a fresh device mask of any size as one value throughout, by rule."""
        self._add(mask.untyped_storage(), Content(None, by_rule=True, constant=value))

    def forget(self, tensor: torch.Tensor) -> None:
        """Take a device tensor's whole storage as unknown from now on."""
        if not self._entries:
            return
        entry = self._entries.pop(_identity(tensor), None)
        if entry is not None:
            _free(entry)

    def clear(self) -> None:
        """Forget everything."""
        for entry in self._entries.values():
            _free(entry)
        self._entries.clear()

    def _is_taken(
        self, tensor: torch.Tensor, storage: torch.UntypedStorage, is_fresh: bool
    ) -> bool:
        num_bytes = storage.nbytes()
        is_whole = tensor.numel() * tensor.element_size() == num_bytes
        return 0 < num_bytes <= self._limit_bytes and (is_whole or is_fresh)

    def _add(self, storage: torch.UntypedStorage, content: Content) -> _Entry:
        self._until_sweep -= 1
        if not self._until_sweep:
            self._sweep()
        entry = _Entry(_weak_reference(storage), content)
        self._entries[storage._cdata] = entry
        return entry

    def _sweep(self) -> None:
        """Let go of the contents of storages that are freed."""
        self._until_sweep = max(_SWEEP_EVERY, len(self._entries))
        for identity, entry in list(self._entries.items()):
            if torch.UntypedStorage._expired(entry.weak):
                _free(entry)
                del self._entries[identity]
