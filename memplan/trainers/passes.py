"""Forward and backward passes over a batch, repeated in pieces where they find no room."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import torch

from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.step.changed import Written
from memplan.trainers import batches
from memplan.trainers.pieces import Pieces
from memplan.trainers.undo import GatheredGradients, PassStart, leaves
from memplan.trainers.watch import GuardFinding, LoopWatch
from memplan.training.guard import NoRoomError, OutOfMemory, attempt, first_line, persist

_T = TypeVar("_T")
_PAIR = 2  # samples and piece
Split = Callable[[Any, int], list[tuple[int, Any]]]
Parts = list[tuple[int, Any]]
Run = Callable[[Any], tuple[torch.Tensor, Any]]
"""Returns the loss of a piece, with its graph, and whatever else came with it."""


class Passes:
    """Runs passes, undoing and repeating in pieces those that find no room.

    Args:
        model: whose gradients, buffers and plain attributes are put back. Other parameters that the
            first loss depends on are found, and their gradients put back too.
        loss: whether a loss is the mean over the samples or their sum.
        retry_after: passes after which the whole batch is tried again, >= 1; doubled each time
            that this finds no room again.
        split: `split(batch, pieces)` returns `(samples, piece)`.
        watch: whether the device is looked at after each pass.

    Raises:
        UsageError: an argument is of another type or out of its range, or several ranks train
            together.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        loss: Literal["mean", "sum"] = "mean",
        retry_after: int = 50,
        split: Split = batches.split,
        watch: bool = True,
    ) -> None:
        _check(model, loss, split)
        self.pieces = Pieces(retry_after)
        self.evaluation = Pieces(retry_after)
        """Of evaluations, whose batches find room in other sizes; the events are the same list."""
        self.evaluation.events = self.pieces.events
        self.model, self.split, self.is_mean = model, split, loss == "mean"
        self._others: list[torch.Tensor] | None = None
        self._watches = watch
        self._watch: LoopWatch | None = None

    def together(
        self, run: Run, batch: Any, scale: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Run forward and backward pass; return the detached loss of the whole batch.

        Args:
            run: a piece's loss.
            batch: of any layout.
            scale: what is done to a loss before its backward pass.
        """
        start, at_first = self.start(), self.pieces.first()

        def work(parts: Parts, gradients: GatheredGradients) -> torch.Tensor:
            return self._each(
                run, parts, lambda loss: self._backward(scale(loss), batch, gradients)
            )

        with self.gathered(start) as gradients:
            written = Written(batches.arrays_of(batch))
            loss, num_pieces = self.repeat(start, batch, written, at_first, gradients, work)
        self.done(batch, num_pieces, at_first)
        return loss

    def evaluated(self, run: Callable[[Any], _T], batch: Any) -> list[tuple[int, _T]]:
        """Return what pieces of a batch come to without gradients, each with its samples.

        Args:
            run: returns what a piece comes to; attributes of modules that it changes are put back
                where it finds no room.
            batch: of any layout.
        """
        start, at_first = self.start(), self.evaluation.first()

        def work(parts: Parts, _: None) -> list[tuple[int, _T]]:
            return [(samples, run(batches.copied(part))) for samples, part in parts]

        written = Written(batches.arrays_of(batch))
        with torch.no_grad():
            found, num_pieces = self.repeat(
                start, batch, written, at_first, None, work, self.evaluation
            )
        self.evaluation.done(num_pieces, at_first=at_first)
        return found

    @property
    def findings(self) -> list[GuardFinding]:
        """What the watch of memory found, in order."""
        return [] if self._watch is None else self._watch.findings

    def done(self, batch: Any, num_pieces: int, at_first: int) -> None:
        """Note that a batch got through, and look at memory."""
        self.pieces.done(num_pieces, at_first=at_first)
        if self._watches and self._watch is None:
            first = next(self.model.parameters(), torch.empty(0))
            self._watch = LoopWatch(first.device, self.pieces)
        if self._watch is not None:
            self._watch.follow(lambda: _num_samples(batch))

    def start(self) -> PassStart:
        """Remember what a pass is about to change.

        Raises:
            DeviceOutOfMemoryError: there is no room to remember it.
        """
        _refuse_ranks(self.model)  # they may have come together since
        start = persist(lambda: PassStart(self.model))
        if isinstance(start, OutOfMemory):
            raise NoRoomError(
                f"The buffers of the model find no room for a copy ({start.message}). Take a "
                "smaller batch or a lighter model."
            )
        return start

    @contextlib.contextmanager
    def gathered(self, start: PassStart) -> Iterator[GatheredGradients]:
        """Keep gradients where all went well; else leave everything as it was."""
        gradients = GatheredGradients([*self.model.parameters(), *(self._others or ())])
        try:
            yield gradients
        except BaseException:
            # A piece may fail where the batch did not: batch norm refuses a single value.
            gradients.drop()
            start.restore()
            raise
        gradients.add()

    def repeat(
        self,
        start: PassStart,
        batch: Any,
        written: Written,
        num_pieces: int,
        gradients: GatheredGradients | None,
        work: Callable[[Parts, Any], _T],
        pieces: Pieces | None = None,
    ) -> tuple[_T, int]:
        """Return what the work returns, and the pieces in which it found room."""
        pieces = pieces or self.pieces
        is_last, at_first = False, num_pieces
        while True:
            parts = self._parts(batch, num_pieces)
            try:
                done = attempt(lambda: work(parts, gradients))  # noqa: B023 - called at once
            except Exception as error:
                if num_pieces > at_first and not isinstance(error, MemplanError):
                    raise _piece_failed(num_pieces, error) from error
                raise
            if not isinstance(done, OutOfMemory):
                return done, num_pieces
            self.undo(start, gradients)
            pieces.refused(len(parts), done.message)
            refuse_written(written)
            wanted, is_last = self._smaller(batch, len(parts), done, is_last=is_last)
            num_pieces = max(num_pieces, wanted)

    def undo(self, start: PassStart, gradients: GatheredGradients | None) -> None:
        """Go back to where a pass began."""
        start.restore()
        if gradients is not None:
            gradients.clear()

    def _parts(self, batch: Any, num_pieces: int) -> Parts:
        """Leave a batch that need not be split as it is, whatever its layout."""
        if num_pieces == 1:
            return [(1, batch)]
        parts = self.split(batch, num_pieces)
        if not _are_parts(parts):
            raise UsageError(
                f"split() returned {reprlib.repr(parts)}, which is no list of (samples, "
                "piece) with samples in it."
            )
        return parts

    def _smaller(
        self, batch: Any, num_pieces: int, refusal: OutOfMemory, *, is_last: bool
    ) -> tuple[int, bool]:
        """Return more pieces; at the most there can be, the same once more."""
        if len(self._parts(batch, 2 * num_pieces)) > num_pieces:
            return 2 * num_pieces, False
        if not is_last:  # once more, with all that was cached given back
            return num_pieces, True
        raise NoRoomError(
            f"A batch in {num_pieces} piece{'s' if num_pieces > 1 else ''} finds no room and "
            f"cannot be split further ({refusal.message}). Take smaller samples or a lighter model."
        )

    def _each(
        self, run: Run, parts: Parts, backward: Callable[[torch.Tensor], None]
    ) -> torch.Tensor:
        count = sum(samples for samples, _ in parts)
        total: torch.Tensor | None = None
        for samples, part in parts:
            loss, _ = run(batches.copied(part))
            loss = loss * share(samples, count, is_mean=self.is_mean) if len(parts) > 1 else loss
            backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _backward(self, loss: torch.Tensor, batch: Any, gradients: GatheredGradients) -> None:
        self.find_others(loss, batch, gradients)
        loss.backward()  # type: ignore[no-untyped-call]

    def find_others(self, loss: torch.Tensor, batch: Any, gradients: GatheredGradients) -> None:
        """Look, once, for parameters that are not the model's, as of a loss with weights."""
        if self._others is not None:
            return
        known = {id(one) for one in (*self.model.parameters(), *batches.arrays_of(batch))}
        self._others = [one for one in leaves(loss) if id(one) not in known]
        gradients.include(self._others)


def _piece_failed(num_pieces: int, error: Exception) -> NoRoomError:
    """Return the error of a batch whose pieces fail, as batch norm does at a single value."""
    fewer = num_pieces // 2
    return NoRoomError(
        f"A batch in {fewer} piece{'s' if fewer > 1 else ''} finds no room, and in {num_pieces} "
        f"the loss fails ({type(error).__name__}: {first_line(error)}). Take smaller samples or a "
        "lighter model."
    )


def share(samples: int, count: int, *, is_mean: bool) -> float:
    """Return by how much a piece's loss counts in the whole batch's."""
    return samples / count if is_mean else 1.0


def refuse_written(written: Written) -> None:
    """Refuse to compute a loss again from a batch that it changed."""
    if written:
        raise MemplanError(
            "Memory ran out, and the loss cannot be computed again: it writes to its batch in "
            "place. Let it work on a copy."
        )


def _are_parts(parts: Any) -> bool:
    if not isinstance(parts, list) or not parts:
        return False
    are_pairs = all(isinstance(one, tuple) and len(one) == _PAIR for one in parts)
    if not are_pairs or not all(isinstance(samples, int | float) for samples, _ in parts):
        return False
    return len(parts) == 1 or sum(samples for samples, _ in parts) > 0


def _num_samples(batch: Any) -> int:
    try:
        return batches.num_samples(batch)
    except BadInputError:
        return 1


def _check(model: Any, loss: object, split: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise UsageError(
            f"A guard is given the network first, not a {type(model).__name__}: "
            "guard = memplan.guard(model), then @guard. Several networks: torch.nn.ModuleList."
        )
    if loss not in ("mean", "sum"):
        raise UsageError(f"loss={loss!r} is neither 'mean' nor 'sum'.")
    if not callable(split):
        raise UsageError(f"split={split!r} is no function of a batch and a number of pieces.")
    _refuse_ranks(model)


def _refuse_ranks(model: torch.nn.Module) -> None:
    ranks = torch.distributed
    together = ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1
    if together or isinstance(model, torch.nn.parallel.DistributedDataParallel):
        raise UsageError(
            "guard() of a model trained by several ranks would leave them waiting for each other. "
            "Use it on one card, or `memplan train --guard`."
        )
