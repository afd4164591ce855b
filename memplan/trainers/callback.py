"""What the callbacks of the trainers share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from memplan.trainers.passes import Passes, Split
from memplan.trainers.pieces import GuardEvent
from memplan.trainers.update import guard_step
from memplan.trainers.watch import GuardFinding


class TrainerGuard:
    """Replaces functions of a trainer by guarded ones while it trains."""

    def _hold(
        self,
        loss: Literal["mean", "sum"],
        retry_after: int,
        split: Split,
        optimizer_step: bool,
        watch: bool,
    ) -> None:
        self._make = functools.partial(
            Passes, loss=loss, retry_after=retry_after, split=split, watch=watch
        )
        self._make(torch.nn.Module())  # a wrong argument is told here
        self._guards_optimizer = optimizer_step
        self._passes: Passes | None = None
        self._undo: list[Callable[[], None]] = []

    @property
    def events(self) -> list[GuardEvent]:
        """Passes that found no room, in order."""
        return [] if self._passes is None else self._passes.pieces.events

    @property
    def findings(self) -> list[GuardFinding]:
        """What memory was about to do, and what was done about it, in order; none on a CPU."""
        return [] if self._passes is None else self._passes.findings

    @property
    def num_pieces(self) -> int:
        """Into how many pieces the last batch was split."""
        return 1 if self._passes is None else self._passes.pieces.held

    def _begin(self, model: torch.nn.Module, optimizers: Iterable[Any]) -> Passes:
        self._leave()
        self._passes = self._make(model)
        if self._guards_optimizer:
            self._undo += [guard_step(optimizer) for optimizer in optimizers]
        return self._passes

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        """Put a function in an object's place for a method, until `_leave`."""
        own = vars(owner).get(name)
        vars(owner)[name] = function

        def undo() -> None:
            if own is not None:
                vars(owner)[name] = own
            else:
                vars(owner).pop(name, None)

        self._undo.append(undo)

    def _leave(self) -> None:
        while self._undo:
            self._undo.pop()()
