"""Which module the program is in, told to the allocator so that its history names it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch.compiler import is_compiling

from memplan.recording.root_models import RootModels

SEPARATOR = "\x1f"


def label(phase: str, path: str) -> str:
    """Return the text that travels with allocations."""
    return f"{phase}{SEPARATOR}{path}"


def _grad_functions(output: Any) -> Iterator[Any]:
    """Yield the nodes that tensors came from, in whatever holds these."""
    if isinstance(output, torch.Tensor):
        if (function := output.grad_fn) is not None:
            yield function
    elif isinstance(output, (list, tuple)):
        for one in output:
            yield from _grad_functions(one)
    elif isinstance(output, dict):
        yield from _grad_functions(list(output.values()))


class ModulesSeen:
    """Follows forward and backward through modules, by hooks that change nothing of the step.

    In backward the node that a module's output came from says which module it belongs to; nodes
    before the next such node count to the same module.

    Args:
        tell: called with each new label; it must be quick, and may be replaced.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.thread = get_ident()
        self._names: dict[int, str] = {}
        self._root: weakref.ref[torch.nn.Module] | None = None
        self._root_identity = 0
        self._stack: list[tuple[int, str, dict[int, str]]] = []
        self.models = RootModels()
        self._was_leaf = False
        self._hooks: dict[str, Callable[[Any], None]] = {}
        self.phase = "between"
        self.path = ""
        self.roots: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        """Outermost modules that were called."""
        self.on_root: Callable[[bool], None] = lambda _: None
        """Told that an outermost module begins, and whether it trains."""

    def install(self) -> None:
        """Register the hooks, for all modules of this process."""
        torch.nn.modules.module.register_module_forward_pre_hook(self._enter)
        torch.nn.modules.module.register_module_forward_hook(self._leave)
        torch.autograd.backward = self._phased(torch.autograd.backward)
        torch.autograd.grad = self._phased(torch.autograd.grad)

    def set_phase(self, phase: str) -> None:
        """Begin a phase, outside all modules.

        Phases are `forward`, `backward`, `optimizer_step`, `evaluation`, `input` (a move from the
        host) and `between` (after a backward or an optimizer step).
        """
        self.phase, self.path = phase, ""
        self._stack.clear()
        self.tell(label(phase, ""))

    def _phased(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of autograd's that says when backward begins and ends."""

        @functools.wraps(run)
        def backward(*args: Any, **kwargs: Any) -> Any:
            if self.phase == "backward" or get_ident() != self.thread:
                return run(*args, **kwargs)
            self.set_phase("backward")
            # Backward runs in a thread of its own, whose label is still that of the last backward.
            begins = self._in_backward("")
            roots = args[0] if args else kwargs.get("tensors", kwargs.get("outputs"))
            for function in _grad_functions(roots):
                function.register_prehook(begins)
            result = run(*args, **kwargs)
            self.set_phase("between")
            return result

        return backward

    @contextmanager
    def input(self) -> Iterator[None]:
        """Label what is allocated inside as input."""
        self.tell(label("input", self.path))
        try:
            yield
        finally:
            self.tell(label(self.phase, self.path))

    # A step calls the two hooks two thousand times, so they do little and call less.

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        if is_compiling() or get_ident() != self.thread:
            return
        identity, outer, stack = id(module), self._names, self._stack
        is_root = identity == self._root_identity and module is self._current_root()
        if not stack or is_root or identity not in outer:
            if not stack or is_root:
                self._begin_root(module)
            # What no model holds, such as a teacher hidden in a list, has names of its own.
            self._names = self.models.paths(module)
        self._was_leaf = True
        stack.append((identity, self.path, outer))
        self.path = path = self._names[identity]
        self.tell(self.phase + SEPARATOR + path)

    def _current_root(self) -> torch.nn.Module | None:
        return None if self._root is None else self._root()

    def _begin_root(self, module: torch.nn.Module) -> None:
        """Take an outermost module; what an exception left on the stack is dropped."""
        if module is not self._current_root():
            self._root, self._root_identity = weakref.ref(module), id(module)
            self.roots.add(module)
        self._stack.clear()
        self.path = ""
        self.phase = "forward" if torch.is_grad_enabled() else "evaluation"
        self.on_root(torch.is_grad_enabled())

    def _leave(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        if is_compiling() or get_ident() != self.thread:
            return
        if not self._stack or self._stack[-1][0] != id(module):
            return
        _, outer, self._names = self._stack.pop()
        if self._was_leaf and torch.is_grad_enabled():
            hook = self._hooks.get(self.path) or self._in_backward(self.path)
            if type(output) is torch.Tensor:
                if (function := output.grad_fn) is not None:
                    function.register_prehook(hook)
            else:
                for function in _grad_functions(output):
                    function.register_prehook(hook)
        self._was_leaf = False
        self.path = outer
        self.tell(self.phase + SEPARATOR + outer)

    def _in_backward(self, path: str) -> Callable[[Any], None]:
        """Return the hook of a module's last node, one for each path."""

        def hook(_: Any) -> None:
            self.path = path
            self.tell(self.phase + SEPARATOR + path)

        return self._hooks.setdefault(path, hook)
