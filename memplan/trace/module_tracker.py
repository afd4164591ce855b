"""Which module of the recorded model is running."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from memplan import tape


class ModuleTracker:
    """Knows which module is running, forward by hooks and backward by sequence numbers."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._index = {}
        self.records: list[tape.ModuleRecord] = []
        for index, (path, module) in enumerate(model.named_modules()):
            self._index[id(module)] = index
            self.records.append(tape.ModuleRecord(path, type(module).__name__, ()))
        self._stack = [-1]
        self._numbers: list[int] = []
        self._owners: list[int] = []
        self.of_backward: int | None = None

    @property
    def current(self) -> int:
        """The index of the running module, -1 outside any."""
        return self._stack[-1] if self.of_backward is None else self.of_backward

    def _mark(self) -> None:
        """Note that autograd nodes made from now on belong to the module on top."""
        number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        if self._numbers and number < self._numbers[-1]:  # recomputation interleaves
            return
        self._numbers.append(number)
        self._owners.append(self._stack[-1])

    def enter(self, module: torch.nn.Module, _: Any) -> None:
        """Note that a module begins."""
        self._stack.append(self._index.get(id(module), self._stack[-1]))
        self._mark()

    def leave(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        """Note that a module ends, and what it returns."""
        self._stack.pop()
        self._mark()
        index = self._index.get(id(module))
        if index is not None and not self.records[index].output_shape:
            first = next((o for o in tree_flatten(output)[0] if isinstance(o, torch.Tensor)), None)
            if first is not None:
                record = self.records[index]
                self.records[index] = tape.ModuleRecord(
                    record.path, record.type, tuple(first.shape)
                )

    def owner(self, sequence_number: int) -> int:
        """Return the module in which a node was made."""
        position = bisect.bisect_right(self._numbers, sequence_number) - 1
        return self._owners[position] if position >= 0 else -1

    def forget(self) -> None:
        """Start afresh: sequence numbers of a finished graph mean nothing any more."""
        self._numbers.clear()
        self._owners.clear()
        self.of_backward = None

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch every module's forward pass."""
        module = torch.nn.modules.module
        handles = [
            module.register_module_forward_pre_hook(self.enter),
            module.register_module_forward_hook(self.leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
