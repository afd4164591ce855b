"""Names of modules over all models of a script, so that those of two models are told apart."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

# Between the name of a model and that of a module in it; it shows as a point.
_MODEL_END = "\x1e"


@dataclass(frozen=True)
class _Model:
    """One outermost module that has parameters."""

    title: str
    """Its class, and which of that class it is."""
    family: int
    """The same for a model and what wraps it, or is part of it."""
    paths: dict[int, str]
    """The model's title and the module's name, by identity of the module."""


class RootModels:
    """Names modules by the outermost module through which they were called.

    `Generator` and `Discriminator` are told by their class, a second `Net`, such as the average of
    the first, is `Net (2)`. A wrapper (`DistributedDataParallel`) and what it wraps are one model.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[torch.nn.Module, _Model] = (
            weakref.WeakKeyDictionary()
        )
        self._families: set[int] = set()

    def paths(self, module: torch.nn.Module) -> dict[int, str]:
        """Return the paths of an outermost module and all within it, by identity."""
        known = self._known.get(module)
        if known is not None:
            return known.paths
        if next(module.parameters(), None) is None:
            kind = type(module).__name__
            return {
                id(one): f"{kind}.{name}" if name else kind for name, one in module.named_modules()
            }
        for root, model in self._known.items():
            # It may have been put there after the model was first called.
            if any(one is module for one in root.modules()):
                model.paths.update(_paths(root, model.title))
                return model.paths
        made = self._made(module)
        self._known[module] = made
        self._families.add(made.family)
        return made.paths

    def shown(self, path: str) -> str:
        """Return a path as people read it: without the model's name where there is but one."""
        title, end, name = path.partition(_MODEL_END)
        if not end:
            return path
        if len(self._families) <= 1:
            return name
        return f"{title}.{name}" if name else title

    def _made(self, module: torch.nn.Module) -> _Model:
        within = {id(one) for one in module.modules()}
        family = next(
            (model.family for root, model in self._known.items() if id(root) in within),
            len(self._families),
        )
        title = self._title(type(module).__name__)
        return _Model(title, family, _paths(module, title))

    def _title(self, kind: str) -> str:
        """Return the first title that no living model has."""
        taken = {model.title for model in self._known.values()}
        title, number = kind, 1
        while title in taken:
            number += 1
            title = f"{kind} ({number})"
        return title


def _paths(root: torch.nn.Module, title: str) -> dict[int, str]:
    return {id(one): f"{title}{_MODEL_END}{name}" for name, one in root.named_modules()}
