"""One epoch of training: micro-batches gathered into steps, repeated smaller when memory runs out.

Gradients are summed over the micro-batches of a step, as in the official recipe, so a workload's
loss is expected to grow with the images it sees (a mean would make accumulation change the step).
A step left incomplete by an epoch's end is taken with the images it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from memplan.errors import DeviceOutOfMemoryError
from memplan.train.guard import BufferSnapshot, OutOfMemory, attempt, num_images, split
from memplan.train.schedule import Rates, Schedule
from memplan.train.setup import Setup
from memplan.workload import Batch


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What an epoch's training came to."""

    losses: tuple[float, ...]
    """Mean of each part over the images."""
    num_images: int
    num_steps: int
    """Steps of the optimizer."""
    rates: Rates
    """Those of the last micro-batch."""


class EpochRunner:
    """Trains epoch after epoch on one device.

    Args:
        setup: what to train.
        micro_batch_size: to begin with; `micro_batch_size` is lower after memory ran out.
        on_step: called after each step of the optimizer.
        on_back_off: called with the message and the new size when memory ran out.
    """

    def __init__(
        self,
        setup: Setup,
        micro_batch_size: int,
        *,
        on_step: Callable[[EpochRunner], None],
        on_back_off: Callable[[str, int], None],
    ) -> None:
        self.setup = setup
        self.step = setup.step
        self.micro_batch_size = micro_batch_size
        self.images_seen = 0
        """Images of this epoch in finished steps and in the one under way."""
        self.num_steps = 0
        """Steps of the optimizer in this epoch."""
        self.epoch = 0
        self._on_step = on_step
        self._on_back_off = on_back_off
        self._schedule: Schedule = setup.schedule(micro_batch_size)
        self._snapshot = BufferSnapshot(self.step.model) if setup.options.guard else None
        self._window: list[Batch] = []  # micro-batches of the step under way
        self._pending = 0
        self._window_images = 0
        self._window_losses: torch.Tensor | None = None
        self._losses: torch.Tensor | None = None
        self._loss_images = 0
        self._rates = self._schedule.rates(0, 0)

    def run(self, epoch: int, batches: Iterable[Batch]) -> EpochResult:
        """Train one epoch.

        Args:
            epoch: 0-based.
            batches: CPU tensors, each of at most `micro_batch_size` images.

        Raises:
            DeviceOutOfMemoryError: not even one image fits, or the optimizer's step does not.
        """
        self.epoch, self.images_seen, self.num_steps = epoch, 0, 0
        self._losses, self._loss_images = None, 0
        for batch in batches:
            self._train_on(batch)
        if self._pending:
            self._update()
        return EpochResult(
            losses=self.mean_losses(),
            num_images=self.images_seen,
            num_steps=self.num_steps,
            rates=self._rates,
        )

    def mean_losses(self) -> tuple[float, ...]:
        """Return this epoch's mean losses so far; waits for the device."""
        if self._losses is None:
            return ()
        return tuple((self._losses / max(self._loss_images, 1)).tolist())

    def _train_on(self, batch: Batch) -> None:
        queue = deque(split([batch], self.micro_batch_size))
        while queue:
            part = queue.popleft()
            self._apply_rates()
            if self._pending == 0 and self._snapshot is not None:
                self._snapshot.take()
            refusal = self._accumulate(part)
            if refusal is None:
                if self._pending >= self._rates.accumulation:
                    self._update()
                continue
            again = [*self._window, part, *queue]
            self._back_off(refusal)
            queue = deque(split(again, self.micro_batch_size))

    def _apply_rates(self) -> None:
        """Set the rates of the coming micro-batch on the optimizer."""
        place = self.images_seen // self.micro_batch_size
        rates = self._schedule.rates(self.epoch, place)
        for group in self.step.optimizer.param_groups:
            is_bias = group.get("kind") == "bias"
            group["lr"] = rates.bias_learning_rate if is_bias else rates.learning_rate
            if "momentum" in group:
                group["momentum"] = rates.momentum
        self._rates = rates

    def _accumulate(self, part: Batch) -> OutOfMemory | None:
        """Add a micro-batch's gradients and losses, or say that there was no room."""

        def work() -> torch.Tensor:
            _, parts = self.step.accumulate(self.step.to_device(part))
            return parts.float() * num_images(part)

        losses = attempt(work) if self._snapshot is not None else work()
        if isinstance(losses, OutOfMemory):
            return losses
        total = self._window_losses
        self._window_losses = losses if total is None else total + losses
        if self._snapshot is not None:
            self._window.append(part)
        self._pending += 1
        self._window_images += num_images(part)
        self.images_seen += num_images(part)
        return None

    def _update(self) -> None:
        """Take the optimizer's step with what was gathered."""
        refusal = attempt(self.step.update)
        if isinstance(refusal, OutOfMemory):
            # No activation is alive here, so a smaller micro-batch would free nothing.
            raise DeviceOutOfMemoryError(
                f"The optimizer's step finds no room ({refusal.message}) and a smaller batch "
                "would not help. Use a smaller model, or --optimizer SGD.",
                0,
            )
        assert self._window_losses is not None
        total = self._losses
        self._losses = self._window_losses if total is None else total + self._window_losses
        self._loss_images += self._window_images
        self._forget_window()
        self.num_steps += 1
        self._on_step(self)

    def _forget_window(self) -> None:
        self._window.clear()
        self._pending = 0
        self._window_images = 0
        self._window_losses = None

    def _back_off(self, refusal: OutOfMemory) -> None:
        """Return to the state before this step and halve the micro-batch."""
        if self.micro_batch_size == 1:
            raise DeviceOutOfMemoryError(
                f"Not even one image fits ({refusal.message}). Lower --img, use a smaller model, "
                "or add --recompute all.",
                0,
            )
        assert self._snapshot is not None
        self.step.optimizer.zero_grad(set_to_none=True)
        self._snapshot.restore()
        self.images_seen -= self._window_images
        self._forget_window()
        self.micro_batch_size //= 2
        self._schedule = self.setup.schedule(self.micro_batch_size)
        self._on_back_off(refusal.message, self.micro_batch_size)
