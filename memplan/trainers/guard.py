"""`memplan.guard`: out of memory in a loop of one's own is undone and repeated in pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch.amp.grad_scaler import GradScaler

from memplan.errors import UsageError
from memplan.trainers import batches
from memplan.trainers.passes import Passes, Split
from memplan.trainers.pieces import GuardEvent
from memplan.trainers.update import update
from memplan.trainers.watch import GuardFinding

Loss = Callable[..., torch.Tensor]


class guard:  # noqa: N801 - reads as the function it is used as
    """Runs forward and backward passes, undoing and repeating in pieces those that find no room.

    As decorator of a function `loss(batch, ...)`, or as context manager called with such a
    function. Either way the call runs the backward pass too and returns the detached loss of the
    whole batch; the optimizer's step stays with the caller, see `step`. Gradients are those of the
    whole batch to rounding. Before a repeat, and where an error ends the call, gradients, buffers,
    numbers, lists and tensors that are attributes of modules, and random states (Python, NumPy,
    PyTorch) are as they were; parameters, optimizer and scaler are not touched by these passes.

    Limits: batch norm takes its statistics of each piece, as with any accumulation. Effects outside
    the model, such as a counter of the loop's or a scheduler's step, happen for each piece and
    again with each repeat. Several ranks are refused.

    Args:
        model: whose gradients and buffers are put back, on its device.
        scaler: a `torch.amp.GradScaler` that scales the loss before its backward pass.
        loss: whether the function returns the mean over the samples or their sum.
        retry_after: passes after which the whole batch is tried again, >= 1; doubled each time
            that this finds no room again.
        split: `split(batch, pieces)` returns `(samples, piece)` for layouts memplan does not know.
        watch: whether memory is looked at after each pass, which resets the allocator's peaks.

    Raises:
        UsageError: an argument is of another type or out of its range, or several ranks train
            together.
        DeviceOutOfMemoryError: when called, a batch of 1 finds no room.
        BadInputError: when called, a batch that finds no room cannot be split.
        MemplanError: when called, a function that writes to its batch finds no room.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        scaler: GradScaler | None = None,
        loss: Literal["mean", "sum"] = "mean",
        retry_after: int = 50,
        split: Split = batches.split,
        watch: bool = True,
    ) -> None:
        if not (scaler is None or hasattr(scaler, "scale")):
            raise UsageError(f"scaler={scaler!r} is no torch.amp.GradScaler.")
        self._passes = Passes(model, loss=loss, retry_after=retry_after, split=split, watch=watch)
        self._scaler = scaler

    @property
    def events(self) -> list[GuardEvent]:
        """Passes that found no room, in order."""
        return self._passes.pieces.events

    @property
    def findings(self) -> list[GuardFinding]:
        """What memory was about to do, and what was done about it, in order; none on a CPU."""
        return self._passes.findings

    @property
    def num_pieces(self) -> int:
        """Into how many pieces the last batch was split."""
        return self._passes.pieces.held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let errors pass: each call has put back what it undid."""

    def __call__(self, function: Loss, *arguments: Any, **names: Any) -> Any:
        """Decorate the function where it is given alone, else run it on a batch."""
        if not callable(function):
            raise UsageError(
                f"guard(...) is called with the loss function first, not a "
                f"{type(function).__name__}: guard(loss, batch)."
            )
        if arguments:
            return self._run(function, *arguments, **names)

        @functools.wraps(function)
        def guarded(batch: Any, *others: Any, **more: Any) -> torch.Tensor:
            return self._run(function, batch, *others, **more)

        return guarded

    def evaluate(self, function: Callable[..., Any], batch: Any, *others: Any, **names: Any) -> Any:
        """Return what a function returns for a batch, computed without gradients.

        Where it finds no room it is repeated in pieces: tensors of these are joined along their
        first dimension, numbers and tensors of no dimension averaged over the samples. Attributes
        of the model's modules and random states are put back before a repeat. How small pieces are
        is remembered apart from training's.

        Args:
            function: called with the batch or a piece of it, then with `others` and `names`.
            batch: as in training.
            *others: for the function.
            **names: for the function.

        Raises:
            DeviceOutOfMemoryError: a batch of 1 finds no room.
            BadInputError: a batch that finds no room cannot be split.
            MemplanError: a function that writes to its batch finds no room.
        """
        found = self._passes.evaluated(lambda piece: function(piece, *others, **names), batch)
        return batches.joined(found)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step, through the scaler where one was given, whole or not at all.

        Before it, everything it changes is copied: on the device where memory that is held already
        has room for the copies, else on the host. A step that finds no room is undone bit for bit
        and taken again one parameter at a time.

        Raises:
            DeviceOutOfMemoryError: that finds no room either; everything is as it was.
        """
        update(optimizer, self._scaler)

    def _run(self, function: Loss, batch: Any, *others: Any, **names: Any) -> torch.Tensor:
        def run(piece: Any) -> tuple[torch.Tensor, None]:
            loss = function(piece, *others, **names)
            if not isinstance(loss, torch.Tensor):
                raise UsageError(
                    f"{getattr(function, '__name__', function)} returned a {type(loss).__name__}; "
                    "a guarded function returns the loss, a tensor with its graph."
                )
            return loss, None

        scale = self._scaler.scale if self._scaler is not None else _unscaled
        return self._passes.together(run, batch, scale)


def _unscaled(loss: torch.Tensor) -> torch.Tensor:
    return loss


__all__ = ["GuardEvent", "GuardFinding", "guard"]
