"""Activation checkpointing (rematerialisation) of chosen modules, batch norm updated once.

A wrapped module keeps only its inputs during forward and runs again in backward. The second run
leaves batch-norm statistics alone, so recomputing changes neither the loss, the gradients nor the
buffers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint

from memplan.errors import UsageError
from memplan.lean import Lean


@contextlib.contextmanager
def _frozen_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Run batch norms without moving their running statistics.

    Momentum 0 leaves the statistics as they are, and saves for backward exactly what the first
    run saved; dropping the statistics instead would save fewer tensors, which PyTorch refuses.
    """
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def _without_recipes(lean: Lean | None, inputs: Any) -> Iterator[None]:
    """Take from tensors how a lean block would make them again.

    They are kept whole for the second run, which may see what hangs on them or not, as autograd
    hands them out again; both runs must save the same tensors.
    """
    if lean is None:
        yield
        return
    taken = [(tensor, lean.take_recipe(tensor)) for tensor in _tensors(inputs)]
    try:
        yield
    finally:
        for tensor, recipe in taken:
            if recipe is not None:
                lean.give_recipe(tensor, recipe)


def _draws_random_numbers(module: torch.nn.Module) -> bool:
    return any(
        "Dropout" in type(m).__name__ or "Depth" in type(m).__name__ for m in module.modules()
    )


def _wrap(module: torch.nn.Module, lean_now: Callable[[], Lean | None]) -> None:
    plain = module.forward
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    preserve = _draws_random_numbers(module)

    def run(*args: Any, **kwargs: Any) -> Any:
        with _without_recipes(lean_now(), (args, kwargs)):
            return plain(*args, **kwargs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        result = checkpoint(
            partial(run, **kwargs),
            *args,
            use_reentrant=False,
            preserve_rng_state=preserve,
            context_fn=lambda: (contextlib.nullcontext(), _frozen_statistics(norms)),
        )
        if (lean := lean_now()) is not None:
            # How a lean block makes its result again keeps alive what recomputation is to free.
            for tensor in _tensors(result):
                lean.take_recipe(tensor)
        return result

    module.forward = forward


def _never() -> None:
    """Say that the model has no lean blocks."""


def apply_recompute(
    model: torch.nn.Module, paths: Sequence[str], lean: Callable[[], Lean | None] = _never
) -> None:
    """Make the named modules recompute their activations in backward.

    Args:
        model: changed in place.
        paths: dotted module paths; nested choices are redundant but harmless.
        lean: asked in each pass for the workload whose lean blocks the model has, since they may
            become lean later; None where it has none.

    Raises:
        UsageError: a path names no module of this model.

    Source: `torch.utils.checkpoint.checkpoint`, non-reentrant, PyTorch 2.11.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise UsageError(
                f"--recompute {path!r} names no module of this model. "
                "`memplan probe --json` lists the modules' paths."
            )
        _wrap(modules[path], lean)
