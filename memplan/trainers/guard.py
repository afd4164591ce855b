"""`memplan.guard`: out of memory in a loop of one's own is undone and repeated in pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch.amp.grad_scaler import GradScaler

from memplan.errors import MemplanError, UsageError
from memplan.train.guard import BufferSnapshot, OutOfMemory, attempt
from memplan.train.random_states import capture_random_states, restore_random_states
from memplan.trainers import batches

Loss = Callable[..., torch.Tensor]
Split = Callable[[Any, int], list[tuple[int, Any]]]


@dataclass(frozen=True)
class GuardEvent:
    """A pass that found no room."""

    step: int
    """Passes that had ended before, of this guard."""
    num_pieces: int
    """Into how many pieces the batch was split when it found none."""
    message: str


class guard:  # noqa: N801 - reads as the function it is used as
    """Runs forward and backward passes, undoing and repeating in pieces those that find no room.

    As decorator of a function `loss(batch, ...)`, or as context manager called with such a
    function. Either way the call runs the backward pass too and returns the detached loss of the
    whole batch; the optimizer's step stays with the caller. Gradients are those of the whole
    batch to rounding. Before a repeat, and where an error ends the call, buffers, gradients and
    random states (Python, NumPy, PyTorch) are as they were; parameters, optimizer and scaler are
    not touched by these passes.

    Limits: batch norm takes its statistics of each piece, as with any accumulation. A function
    with effects of its own, such as a counter, has them again with each repeat. Out of memory in
    the optimizer's step is not caught. Several ranks are refused.

    Args:
        model: whose gradients and buffers are put back, on its device.
        scaler: a `torch.amp.GradScaler` that scales the loss before its backward pass.
        loss: whether the function returns the mean over the samples or their sum.
        retry_after: passes after which the whole batch is tried again, >= 1; doubled each time
            that this finds no room again.
        split: `split(batch, pieces)` returns `(samples, piece)` for layouts memplan does not know.

    Raises:
        UsageError: an argument is out of its range, or several ranks train together.
        MemplanError: when called, a batch of 1 or one that cannot be split finds no room.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        scaler: GradScaler | None = None,
        loss: Literal["mean", "sum"] = "mean",
        retry_after: int = 50,
        split: Split = batches.split,
    ) -> None:
        if loss not in ("mean", "sum"):
            raise UsageError(f"loss={loss!r} is neither 'mean' nor 'sum'.")
        if retry_after < 1:
            raise UsageError(f"retry_after={retry_after} is not 1 or more.")
        _refuse_ranks(model)
        self.events: list[GuardEvent] = []
        self.num_pieces = 1
        self._model, self._scaler, self._split = model, scaler, split
        self._is_mean, self._wait, self._first_wait = loss == "mean", retry_after, retry_after
        self._steps = self._since = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Let errors pass: each call has put back what it undid."""

    def __call__(self, function: Loss, *arguments: Any, **names: Any) -> Any:
        """Decorate the function where it is given alone, else run it on a batch."""
        if arguments:
            return self._run(function, *arguments, **names)

        @functools.wraps(function)
        def guarded(batch: Any, *others: Any, **more: Any) -> torch.Tensor:
            return self._run(function, batch, *others, **more)

        return guarded

    def _run(self, function: Loss, batch: Any, *others: Any, **names: Any) -> torch.Tensor:
        before = _Before(self._model)
        try:
            return self._repeated(before, function, batch, others, names)
        except Exception:
            # A piece may fail where the batch did not: batch norm refuses a single value.
            before.restore()
            raise

    def _repeated(
        self, before: _Before, function: Loss, batch: Any, others: Any, names: Any
    ) -> torch.Tensor:
        held, is_trial = self.num_pieces, self.num_pieces > 1 and self._since >= self._wait
        pieces = 1 if is_trial else held
        while True:
            parts = self._parts(batch, pieces)
            work = functools.partial(self._passes, function, parts, others, names)
            done = attempt(work)
            if not isinstance(done, OutOfMemory):
                break
            before.restore()
            self.events.append(GuardEvent(self._steps, len(parts), done.message))
            pieces = self._smaller(batch, len(parts), done)
        self._remember(held, pieces, is_trial=is_trial)
        return done

    def _parts(self, batch: Any, pieces: int) -> list[tuple[int, Any]]:
        """Leave a batch that need not be split as it is, whatever its layout."""
        return [(1, batch)] if pieces == 1 else self._split(batch, pieces)

    def _passes(
        self, function: Loss, parts: list[tuple[int, Any]], others: Any, names: Any
    ) -> torch.Tensor:
        count = sum(samples for samples, _ in parts)
        total: torch.Tensor | None = None
        for samples, part in parts:
            loss = function(part, *others, **names)
            if self._is_mean and len(parts) > 1:
                loss = loss * (samples / count)
            scaled = loss if self._scaler is None else self._scaler.scale(loss)
            scaled.backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _smaller(self, batch: Any, pieces: int, refusal: OutOfMemory) -> int:
        wanted = 2 * pieces
        if len(self._split(batch, wanted)) > pieces:
            return wanted
        raise MemplanError(
            f"A batch in {pieces} piece{'s' if pieces > 1 else ''} finds no room and cannot be "
            f"split further ({refusal.message}). Take smaller samples or a lighter model."
        )

    def _remember(self, held: int, pieces: int, *, is_trial: bool) -> None:
        self._steps += 1
        if is_trial and pieces > 1:
            self._wait *= 2
        elif pieces == 1:
            self._wait = self._first_wait
        self._since = self._since + 1 if pieces == held and not is_trial else 0
        self.num_pieces = pieces


class _Before:
    """What a pass changes, as it was; gradients that were there cost a copy of themselves."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = BufferSnapshot(model)
        self._gradients = [
            (parameter, None if parameter.grad is None else parameter.grad.clone())
            for parameter in model.parameters()
        ]
        self._random = capture_random_states()

    def restore(self) -> None:
        """Put it back; may be called again."""
        self._buffers.restore()
        for parameter, gradient in self._gradients:
            if gradient is None or parameter.grad is None:
                parameter.grad = None if gradient is None else gradient.clone()
            else:
                parameter.grad.copy_(gradient)
        restore_random_states(self._random)


def _refuse_ranks(model: torch.nn.Module) -> None:
    ranks = torch.distributed
    together = ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1
    if together or isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise UsageError(
            "guard() of a model trained by several ranks would leave them waiting for each other. "
            "Use it on one card, or `memplan train --guard`."
        )
