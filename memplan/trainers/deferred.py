"""A loss whose backward pass is somebody else's to start, guarded all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from memplan.step.changed import Written
from memplan.trainers import batches
from memplan.trainers.passes import Parts, Passes, Run, refuse_written, share
from memplan.trainers.undo import GatheredGradients
from memplan.training.random_states import capture_random_states, restore_random_states


def deferred(
    passes: Passes, run: Run, batch: Any, *, is_mean: Callable[[], bool] | None = None
) -> tuple[torch.Tensor, list[tuple[int, Any]]]:
    """Run the forward pass of a batch; return a loss whose backward pass is guarded too.

    Where memory runs out in the forward pass, the loss is found in pieces that keep nothing, and
    each is computed again when the backward pass comes to it: one forward pass more.

    Limits: `torch.autograd.grad` and second derivatives do not go through.

    Args:
        passes: what is known of this training.
        run: a piece's loss.
        batch: of any layout.
        is_mean: whether this batch's loss is a mean over samples, asked when it is first run in
            pieces; None as `passes` says.

    Returns:
        The loss, and what else came with each piece, with its samples.
    """
    made = Deferred(passes, run, batch, is_mean or (lambda: passes.is_mean))
    anchor = torch.zeros((), requires_grad=True)
    return _Boundary.apply(made, anchor), made.extras  # type: ignore[no-untyped-call]


class Deferred:
    """A batch's passes, the backward one still to come."""

    def __init__(self, passes: Passes, run: Run, batch: Any, is_mean: Callable[[], bool]) -> None:
        self._passes, self._run, self._batch, self._is_mean = passes, run, batch, is_mean
        self._start = passes.start()
        self._autocast = _autocast(passes.model)
        self._written = Written(batches.arrays_of(batch))
        self._loss: torch.Tensor | None = None
        self._at_first = passes.pieces.first()
        self.extras: list[tuple[int, Any]] = []
        try:
            self.value: Any
            self.value, self._num_pieces = passes.repeat(
                self._start, batch, self._written, self._at_first, None, self._forward
            )
        except BaseException:
            self._start.restore()
            raise

    def _forward(self, parts: Parts, _: object) -> torch.Tensor:
        if len(parts) == 1:
            loss, extra = self._run(batches.copied(parts[0][1]))
            self._loss, self.extras = loss, [(1, extra)]
            return loss.detach().clone()
        with torch.no_grad():
            return self._in_pieces(parts)

    def _in_pieces(self, parts: Parts) -> torch.Tensor:
        count, self.extras = sum(samples for samples, _ in parts), []
        is_mean = self._is_mean()
        total: torch.Tensor | None = None
        for samples, part in parts:
            loss, extra = self._run(batches.copied(part))
            loss = loss * share(samples, count, is_mean=is_mean)
            total = loss if total is None else total + loss
            self.extras.append((samples, extra))
        assert total is not None
        return total

    def backward(self, gradient: torch.Tensor) -> None:
        """Run the backward pass, in pieces where that is needed."""
        passes, at_first = self._passes, self._num_pieces
        after = None if self._loss is not None else capture_random_states()
        with passes.gathered(self._start) as gradients:

            def work(parts: Parts, gathered: GatheredGradients) -> None:
                loss, self._loss = self._loss, None
                if loss is not None:
                    passes.find_others(loss, self._batch, gathered)
                    torch.autograd.backward(loss, gradient)
                else:
                    self._again(parts, gradient, gathered)

            _, num_pieces = passes.repeat(
                self._start, self._batch, self._written, at_first, gradients, work
            )
        if after is not None:
            restore_random_states(after)  # what was drawn since the forward pass is not drawn again
        passes.done(self._batch, num_pieces, self._at_first)

    def _again(self, parts: Parts, gradient: torch.Tensor, gathered: GatheredGradients) -> None:
        """Compute each piece as in the forward pass, now with its backward pass."""
        refuse_written(self._written)
        is_mean = len(parts) > 1 and self._is_mean()
        self._start.restore()
        count = sum(samples for samples, _ in parts)
        for samples, part in parts:
            with torch.enable_grad(), contextlib.ExitStack() as stack:
                for autocast in self._autocast():
                    stack.enter_context(autocast)
                loss, _ = self._run(batches.copied(part))
            self._passes.find_others(loss, self._batch, gathered)
            torch.autograd.backward(loss, gradient * share(samples, count, is_mean=is_mean))


class _Boundary(torch.autograd.Function):
    """A loss whose graph is kept apart, so that it can be made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, deferred: Deferred, anchor: torch.Tensor) -> Any:
        """Return the loss; `anchor` is there for autograd to come back."""
        del anchor
        ctx.deferred = deferred
        value, deferred.value = deferred.value, None  # it leads back here by its graph
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None]:
        """Run the deferred backward pass."""
        if ctx.deferred is None:
            raise RuntimeError("The backward pass of a guarded loss runs once; compute it again.")
        deferred, ctx.deferred = ctx.deferred, None  # a loss that is kept keeps no batch
        deferred.backward(gradient)
        return None, None


def _autocast(model: torch.nn.Module) -> Callable[[], list[torch.autocast]]:
    """Return what makes the present autocast contexts again, one for each kind of device."""
    kinds = {"cpu", *(one.device.type for one in model.parameters())} - {"meta"}
    cache = torch.is_autocast_cache_enabled()
    found = [
        (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds
    ]

    def made() -> list[torch.autocast]:
        return [
            torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache)
            for kind, dtype, enabled in found
        ]

    return made
