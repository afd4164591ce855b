"""Memory that loader processes share: one copy of labels and kept images, however many they are.

A process is given the descriptor of anonymous memory and maps it, so starting one takes no longer
for a large data set, and Python's reference counts copy no page of it.
"""

from __future__ import annotations

import mmap
import os
import pickle
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")
_Bytes = npt.NDArray[np.uint8]


class SharedBytes:
    """Anonymous memory; a process that is started with it maps the same pages, to read.

    Args:
        num_bytes: how much, >= 0; pages take memory once they are written to.
    """

    def __init__(self, num_bytes: int) -> None:
        self._file = os.memfd_create("memplan")
        weakref.finalize(self, os.close, self._file)
        self._num_bytes = num_bytes
        os.ftruncate(self._file, max(num_bytes, 1))
        self.array = self._mapped(self._file, mmap.PROT_READ | mmap.PROT_WRITE)
        """The bytes, uint8 `[num_bytes]`."""

    def _mapped(self, file: int, protection: int) -> _Bytes:
        size = max(self._num_bytes, 1)
        mapped = mmap.mmap(file, size, prot=protection)
        return np.frombuffer(mapped, np.uint8)[: self._num_bytes]

    def __getstate__(self) -> dict[str, Any]:
        """Send the descriptor; only to a process that is being started."""
        return {"descriptor": DupFd(self._file), "num_bytes": self._num_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map what was sent."""
        self._num_bytes = state["num_bytes"]
        self._file = state["descriptor"].detach()
        weakref.finalize(self, os.close, self._file)
        self.array = self._mapped(self._file, mmap.PROT_READ)


class SharedSequence(Sequence[Item], Generic[Item]):
    """Objects that are kept pickled in shared memory, and made anew when they are asked for.

    Args:
        items: copied as they are now.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        pickled = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        ends = np.cumsum([len(one) for one in pickled], dtype=np.int64)
        self._size = len(items)
        self._ends = SharedBytes(ends.nbytes)
        self._ends.array[:] = ends.view(np.uint8)
        self._items = SharedBytes(int(ends[-1]) if len(ends) else 0)
        self._items.array[:] = np.frombuffer(b"".join(pickled), np.uint8)

    def __len__(self) -> int:
        """Return how many there are."""
        return self._size

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        """Return an object, equal to the one that was given."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._size))]
        place = range(self._size)[index]
        ends = self._ends.array.view(np.int64)
        start = int(ends[place - 1]) if place else 0
        pickled = self._items.array[start : int(ends[place])].data
        item: Item = pickle.loads(pickled)  # noqa: S301 - ours
        return item
