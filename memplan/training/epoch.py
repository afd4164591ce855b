"""One epoch of training: micro-batches gathered into steps, repeated smaller when memory runs out.

Gradients are summed over the micro-batches of a step, as in the official recipe, so a workload's
loss is expected to grow with the images it sees (a mean would make accumulation change the step).
A step left incomplete by an epoch's end is taken with the images it has.

Several processes take their part of each round of micro-batches, and agree in a step's last one on
whether everybody found room; where not, all of them read the step's images again and split them
smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, astuple
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from memplan.capabilities import Resizes
from memplan.device.distributed import training_policy
from memplan.errors import BadInputError, MemplanError, ProcessError
from memplan.training.exchange import GradientExchange, Losses
from memplan.training.guard import (
    DataLostError,
    NoRoomError,
    OutOfMemory,
    StepStart,
    attempt,
    evenly,
    first_line,
    num_images,
    num_samples,
    persisted,
)
from memplan.training.position import EpochPosition, EpochResult, Wishes
from memplan.training.schedule import Schedule
from memplan.training.setup import Setup
from memplan.training.update import SafeUpdate
from memplan.workload import Batch, dealt

_T = TypeVar("_T")
IN_ANOTHER = "in another process"
ON_HOST = "average on the host"
_MOST_UNREAD = 3
_SIDE_STREAM = 11  # of random numbers that share the run's seed


class EpochRunner:
    """Trains epoch after epoch on one device, alone or as one of several processes.

    Args:
        setup: what to train.
        micro_batch_size: to begin with; `micro_batch_size` is lower after memory ran out.
        on_step: called after each step of the optimizer with what any process wished.
        on_back_off: called with the message and the new size when memory ran out.
        on_relief: called when not one image fitted, with the message, and what is done about it
            from there on: `average on the host`, or as `TrainingStep.lighten` says. The message is
            empty where it was the optimizer's step that found no room.
        wishes: asked before each step.
    """

    def __init__(
        self,
        setup: Setup,
        micro_batch_size: int,
        *,
        on_step: Callable[[EpochRunner, Wishes], None],
        on_back_off: Callable[[str, int], None],
        on_relief: Callable[[str, str], None] = lambda *_: None,
        wishes: Callable[[], Wishes] = Wishes,
    ) -> None:
        self.setup = setup
        self.step = setup.step
        self.ranks = setup.ranks
        self.micro_batch_size = micro_batch_size
        self.images_seen = 0
        """Images of this epoch in finished steps and in the one under way, by all processes."""
        self.num_steps = 0
        """Steps of the optimizer in this epoch."""
        self.epoch = 0
        self._on_step = on_step
        self._on_back_off = on_back_off
        self._on_relief = on_relief
        self._wishes = wishes
        self._schedule: Schedule = setup.schedule(setup.micro_batch_size)
        self._snapshot: StepStart | None = None
        if setup.guards:
            self._snapshot = _persisted(partial(StepStart, self.step.model))
        self._safe_update = SafeUpdate(self.step)
        # What is read at once and what the rates go by. It stays when memory runs out: each batch
        # is then split, so that a step keeps its images and its rates, whatever the numbers.
        self._unit = setup.micro_batch_size
        self._unread = 0  # failures in a row to read a batch
        self._is_last_try = False
        self._spared_average = False
        self._least = 1  # images at once: of fewer it was found that they cannot be run
        # Over the finished steps of this epoch, of this process's images.
        self._loss_sums: torch.Tensor | None = None
        self._loss_images = 0
        self._rates = self._schedule.rates(0, 0)
        self._window_start = 0
        self._pending = 0  # micro-batches of the step under way
        self._refusal: OutOfMemory | None = None  # of this process, in this step
        self._exchange: GradientExchange | None = None
        if self.ranks.size > 1 and setup.options.epochs:
            synchronised = setup.spec.sync_bn
            policy = training_policy(self.ranks.size, sync_batch_norm=synchronised)
            self._exchange = GradientExchange(self.step, policy)
        self._window_losses: torch.Tensor | None = None
        self._window_images = 0

    def run(self, epoch: int, position: EpochPosition | None = None) -> EpochResult:
        """Train one epoch, or what is left of it.

        Args:
            epoch: 0-based.
            position: where to go on; None begins.

        Raises:
            DeviceOutOfMemoryError: not even one image fits, or the optimizer's step does not.
            BadInputError: the data gives fewer images than it promised.
        """
        start = position or EpochPosition()
        self.epoch, self.images_seen, self.num_steps = epoch, start.images_seen, start.num_steps
        # Rank 0 goes on with what all had seen.
        self._loss_sums = start.loss_sums if self.ranks.is_first else None
        self._loss_images = start.images_seen if self.ranks.is_first else 0
        self._rates = start.rates or self._schedule.rates(epoch, 0)
        self._open_window()
        while self.images_seen < self._num_images:
            batches = iter(self._open(self.images_seen))
            while self.images_seen < self._num_images and self._one_round(batches):
                pass
        return EpochResult(
            losses=_means(self.ranks.sum(self._sums()), self.images_seen),
            num_images=self.images_seen - start.images_seen,
            num_steps=self.num_steps,
            rates=self._rates,
        )

    def close(self) -> None:
        """Let go of what only training needs, before the group of processes is left."""
        if self._exchange is not None:
            self._exchange.close()

    def position(self) -> EpochPosition:
        """Return where the epoch stands; between steps, by all processes at once."""
        total = self.ranks.sum(self._sums())
        if self.ranks.size > 1:
            # From here on rank 0 holds what all have seen, as it will after a resume.
            self._loss_sums = total if self.ranks.is_first else None
            self._loss_images = self.images_seen if self.ranks.is_first else 0
        return EpochPosition(
            images_seen=self.images_seen,
            num_steps=self.num_steps,
            loss_sums=_persisted(total.cpu) if len(total) else None,
            rates=self._rates,
        )

    def mean_losses(self) -> tuple[float, ...]:
        """Return this epoch's mean losses so far, of this process; waits for the device."""
        return _means(self._sums(), self._loss_images)

    def _sums(self) -> torch.Tensor:
        total = self._loss_sums
        if total is not None:
            return _persisted(lambda: total.to(self.step.device))
        # A process without an image so far still takes part in the sum over all.
        width = len(self.setup.loss_names or ("loss",)) if self._window_start else 0
        return _persisted(lambda: torch.zeros(width, device=self.step.device))

    @property
    def _num_images(self) -> int:
        return self.setup.data.num_training_images

    def _open(self, first_image: int) -> Iterable[Batch]:
        """Return this process's batches of the rest of the epoch."""
        options = self.setup.options
        return self.setup.data.training_batches(
            micro_batch_size=self._unit,
            epoch=self.epoch,
            augment_fully=options.augments_fully(self.epoch),
            first_image=first_image,
            rank=self.ranks.rank,
            num_ranks=self.ranks.size,
        )

    def _one_round(self, batches: Iterator[Batch]) -> bool:
        """Train every process's next micro-batch; return whether `batches` may go on."""
        self._apply_rates()
        if not self._pending and self._snapshot is not None:
            _persisted(self._snapshot.take)
        size = self.ranks.size
        count = min(self._num_images - self.images_seen, self._unit * size)
        # In an epoch's last round a process may go without.
        batch = None
        for part in dealt(count, self._unit, self.ranks.rank, size):
            found = self._read(batches, len(part))
            if isinstance(found, OutOfMemory):
                return False  # reads again from here on
            batch = found
        self._pending += 1
        self.images_seen += count
        is_last = self._pending >= self._rates.accumulation or self.images_seen >= self._num_images
        if self._exchange is not None and is_last:
            return self._close_together(self._exchange, batch)
        if batch is not None and self._refusal is None:
            self._refusal = self._accumulate_split(batch)
        # Alone, there is nobody to wait for; together, all come to the step's end first.
        if self._refusal is not None and size == 1:
            self._back_off(self._refusal)
            return False
        return self._close_window() if is_last else True

    def _read(self, batches: Iterator[Batch], expected: int) -> Batch | OutOfMemory:
        """Return the next batch; where the host had no room for it the images can be read again.

        Raises:
            NoRoomError: there was none several times in a row.
            DataLostError: images cannot be read, or the processes that read them are lost.
        """
        try:
            found = self._attempt(lambda: self._next(batches, expected))
        except (BadInputError, ProcessError) as error:
            self._drop_step()
            raise DataLostError(str(error)) from None
        if not isinstance(found, OutOfMemory):
            self._unread = 0
            return found
        self._unread += 1
        if self._unread > _MOST_UNREAD:
            self._drop_step()
            raise NoRoomError(
                f"Reading the training images finds no room ({found.message}). Give fewer "
                "--workers, a smaller --batch, or close other programs."
            )
        return found

    def _accumulate_split(self, batch: Batch) -> OutOfMemory | None:
        """Accumulate a batch in parts that have been found to fit."""
        for part in self._parts(batch):
            refusal = self._accumulate(part)
            if refusal is not None:
                return refusal
        return None

    def _parts(self, batch: Batch) -> list[Batch]:
        rows = num_images(batch)
        images_each = max(num_samples(batch) // rows, 1)
        at_once = max(self.micro_batch_size // images_each, 1)
        return [batch] if at_once >= rows else evenly(batch, at_once)

    def _next(self, batches: Iterator[Batch], expected: int) -> Batch:
        batch = next(batches, None)
        found = 0 if batch is None else num_samples(batch)
        if batch is None or found != expected:
            raise BadInputError(
                f"The data gave a batch of {found} images in epoch {self.epoch + 1} where "
                f"{expected} were due. Its training_batches must give num_training_images an epoch."
            )
        return batch

    def _apply_rates(self) -> None:
        """Set the rates of the coming micro-batch on the optimizer."""
        rates = self._schedule.rates(self.epoch, self._place)
        for group in self.step.optimizer.param_groups:
            is_bias = group.get("kind") == "bias"
            group["lr"] = rates.bias_learning_rate if is_bias else rates.learning_rate
            if "momentum" in group:
                group["momentum"] = rates.momentum
        self._rates = rates

    @property
    def _place(self) -> int:
        """The coming round's place in its epoch."""
        return self.images_seen // (self._unit * self.ranks.size)

    def _side(self) -> int | None:
        """Return the side that this round's images are resized to, alike in all processes."""
        seed = self.setup.options.seed
        generator = np.random.default_rng([seed, self.epoch, self._place, _SIDE_STREAM])
        workload = self.setup.workload
        return workload.draw_side(generator) if isinstance(workload, Resizes) else None

    def _accumulate(self, part: Batch) -> OutOfMemory | None:
        """Add a micro-batch's gradients and losses, or say that there was no room."""

        def work() -> torch.Tensor:
            with self._exchange.local() if self._exchange else nullcontext():
                _, parts = self.step.accumulate(self.step.training_batch(part, self._side()))
                return parts.float() * num_samples(part)

        def and_sum() -> None:
            self._add_losses(work(), num_samples(part))

        try:
            return self._attempt(and_sum)
        except MemplanError:
            raise
        except Exception as error:
            # The same images in whole had run, or had only found no room.
            if self._snapshot is None or self.micro_batch_size >= self._unit:
                raise
            return OutOfMemory(first_line(error), is_too_small=True)

    def _attempt(self, work: Callable[[], _T]) -> _T | OutOfMemory:
        return work() if self._snapshot is None else attempt(work)

    def _add_losses(self, losses: torch.Tensor, images: int) -> None:
        """Add a micro-batch's losses, each times its images, to the step's."""
        total = self._window_losses
        self._window_losses = losses if total is None else total + losses
        self._window_images += images

    def _close_window(self) -> bool:
        """Take the step; return that it was taken."""
        wishes = self._wishes()
        self._update()
        self._on_step(self, wishes)
        return True

    def _close_together(self, exchange: GradientExchange, batch: Batch | None) -> bool:
        """Run a step's last micro-batch and take the step, or go back where one found no room.

        Its last part alone is exchanged. See `exchange` for why all come to both agreements.
        """
        *others, part = [None] if batch is None else self._parts(batch)
        for other in others:
            if self._refusal is None and other is not None:
                self._refusal = self._accumulate(other)

        def forward() -> Losses:
            moved = None if part is None else self.step.training_batch(part, self._side())
            return self.step.forward(moved)

        found: Losses | OutOfMemory | None = self._refusal
        if found is None:
            found = self._attempt(forward)
        wishes = self._wishes()
        refused, is_small, *wished = self.ranks.agree([*_refused(found), *astuple(wishes)])
        done: bool | OutOfMemory = True
        if not refused and found is not None and not isinstance(found, OutOfMemory):
            loss, parts = found
            if part is not None:
                self._add_losses(parts.float() * num_samples(part), num_samples(part))
            found = None
            done = self._attempt(partial(exchange.backward, loss))
            del loss
            refused, is_small, lacks = self.ranks.agree([*_refused(done), not done])
            if lacks and not refused:
                self._drop_step()
                exchange.open(finds_unused=True)
                return False
        if refused:
            refusals = [one for one in (found, done) if isinstance(one, OutOfMemory)]
            found = None
            message = refusals[0].message if refusals else IN_ANOTHER
            self._back_off(OutOfMemory(message, is_too_small=is_small))
            return False
        self._update()
        self._on_step(self, Wishes(**dict(zip(asdict(wishes), wished, strict=True))))
        return True

    def _update(self) -> None:
        """Take the optimizer's step with what was gathered."""
        if self._snapshot is None:
            self.step.update()
        elif (refusal := self._take_safely()) is not None:
            self._drop_step()
            # No activation is alive here, so a smaller micro-batch would free nothing.
            lighter = "" if self.setup.spec.optimizer == "SGD" else ", or --optimizer SGD"
            raise NoRoomError(
                f"The optimizer's step finds no room, not even one parameter at a time "
                f"({refusal.message}), and a smaller batch would not help. Use a smaller "
                f"model{lighter}."
            )
        self._sum_losses()
        self.num_steps += 1
        self._is_last_try = False
        self._open_window()

    def _take_safely(self) -> OutOfMemory | None:
        was_away = self.step.has_average_away
        refusal = self._safe_update.take()
        if self.step.has_average_away and not was_away:
            self._on_relief("", ON_HOST)
        return refusal

    def _sum_losses(self) -> None:
        """Add the step's losses to the epoch's; the step itself is taken."""
        new, total = self._window_losses, self._loss_sums
        if new is None:
            return

        def work() -> torch.Tensor:
            return new if total is None else total.to(new.device) + new

        self._loss_sums = _persisted(work)
        self._loss_images += self._window_images

    def _open_window(self) -> None:
        """Begin to gather the next step."""
        self._window_start = self.images_seen
        self._pending = 0
        self._refusal = None
        self._window_losses = None
        self._window_images = 0

    @property
    def parts_a_step(self) -> int:
        """How many parts a step's images are run in, once warm-up is over."""
        return self.setup.accumulation_steps * -(-self._unit // self.micro_batch_size)

    def try_planned(self) -> bool:
        """Go back to the planned micro-batch after it did not fit; return whether it was smaller.

        Between steps, in all processes at the same one.
        """
        if self.micro_batch_size >= self._unit:
            return False
        self.micro_batch_size = self._unit
        return True

    def lower(self) -> None:
        """Halve the micro-batch before memory runs out, between steps, in all processes."""
        self.micro_batch_size = -(-self.micro_batch_size // 2)

    def drop_step(self) -> None:
        """Return to the last finished step, so that it can be saved."""
        self._drop_step()

    def _drop_step(self) -> None:
        """Return to the state before this step."""
        self.step.optimizer.zero_grad(set_to_none=True)
        if self._snapshot is not None:
            self._snapshot.restore()
        self.images_seen = self._window_start
        self._open_window()

    def _back_off(self, refusal: OutOfMemory) -> None:
        """Return to the state before this step and halve the micro-batch."""
        self._drop_step()
        if self._exchange is not None:
            self._exchange.open()
        if refusal.is_too_small:
            # Twice as many were the fewest that could be run.
            self._least = self.micro_batch_size = min(2 * self.micro_batch_size, self._unit)
        if self.micro_batch_size <= self._least or refusal.is_too_small:
            self._try_alone(refusal)
            return
        self.micro_batch_size = -(-self.micro_batch_size // 2)
        self._on_back_off(refusal.message, self.micro_batch_size)

    def _try_alone(self, refusal: OutOfMemory) -> None:
        """Let the fewest images be tried again, in all processes alike, from cheap to dear.

        With the cache given back; the average on the host; less kept for backward.

        Raises:
            NoRoomError: all that was tried already.
        """
        if not self._is_last_try:
            self._is_last_try = True
        elif not self._spared_average:
            self._spared_average = True  # the first process alone has one
            if self.step.spare_average():
                self._on_relief(refusal.message, ON_HOST)
            elif self.ranks.size == 1:
                self._try_alone(refusal)
        elif how := self.step.lighten():
            self._on_relief(refusal.message, how)
        else:
            fewest = "one image fits"
            if self._least > 1 or refusal.is_too_small:
                fewest = f"{self.micro_batch_size} images fit, and fewer cannot be run"
            raise NoRoomError(
                f"Not even {fewest} ({refusal.message}). Lower --img or use a smaller model."
            )


def _refused(found: object) -> tuple[bool, bool]:
    """Return whether a part found no room, and whether it was too small to be run."""
    return isinstance(found, OutOfMemory), isinstance(found, OutOfMemory) and found.is_too_small


def _persisted(work: Callable[[], _T]) -> _T:
    way_out = "Another program may have taken the memory: close it."
    return persisted(work, "Not even a few numbers find room", way_out)


def _means(sums: torch.Tensor, images: int) -> tuple[float, ...]:
    means = _persisted(lambda: sums / max(images, 1))
    return tuple(_persisted(means.tolist))
