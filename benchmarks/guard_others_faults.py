"""Faults of memory for the trainers of `benchmarks.guard_others`, and a log of what they train on.

Every trainer has the same sample numbers, batch size and epochs. A fault is raised in place of the
work of a batch of more than `FITS` samples, once three quarters of the run's first epoch, or half
of its second, are done; those that last go on from there, whatever the trainer does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

SAMPLES, BATCH, EPOCHS, FITS = 64, 8, 3, 4
STEPS = SAMPLES // BATCH * EPOCHS
_OWN = "CUDA out of memory. Tried to allocate 2.00 GiB."
_CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@dataclass(frozen=True)
class Kind:
    """What goes wrong, where and when."""

    title: str
    where: str
    """`forward`, `backward`, `optimizer step` or `validation`; empty for nowhere."""
    after: int = 0
    """Steps of the optimizer that are taken before."""
    lasts: bool = True
    message: str = _OWN


KINDS = (
    Kind("forward, from the first batch on", "forward"),
    Kind("forward, from within epoch 1 on", "forward", 6),
    Kind("forward, from within epoch 2 on", "forward", 12),
    Kind("forward, one crowded batch in epoch 2", "forward", 12, lasts=False),
    Kind("forward, in cuBLAS's words, from within epoch 2 on", "forward", 12, message=_CUBLAS),
    Kind("backward, from within epoch 2 on", "backward", 12),
    Kind("optimizer's step, once in epoch 2", "optimizer step", 12, lasts=False),
    Kind("validation, from that of epoch 2 on", "validation", 12),
)
NOTHING = Kind("nothing", "")


@dataclass
class Log:
    """A fault, and the samples of every optimizer step that was taken."""

    kind: Kind = NOTHING
    steps: list[frozenset[Any]] = field(default_factory=list)
    """The samples of each, those of steps that were thrown away later included."""
    times: list[float] = field(default_factory=list)
    """When each was taken, on a clock of seconds."""
    raised: int = 0
    raised_at: tuple[int, float] = (0, 0.0)
    """Steps that were taken when it was raised first, and when that was."""
    _pending: set[Any] = field(default_factory=set)
    _begun: bool = False
    _repeats: bool = False

    def forward(self, samples: Iterable[Any]) -> None:
        """Note a training batch on its way forward, which may find no room."""
        samples = list(samples)
        if self._hits("forward", len(samples)):
            self._raise()
        if self._repeats:
            self._pending, self._repeats = set(), False
        self._pending.update(samples)

    def loss(self, loss: torch.Tensor, count: int) -> torch.Tensor:
        """Return a training loss, whose backward pass may find no room."""
        if not self._hits("backward", count):
            return loss
        result: torch.Tensor = _NoRoom.apply(loss, self)  # type: ignore[no-untyped-call]
        return result

    def validation(self, count: int) -> None:
        """Note a batch that is validated, which may find no room."""
        if self._hits("validation", count):
            self._raise()

    def make_optimizer(self, kind: Any) -> Any:
        """Return a class of optimizers that notes its steps; one may find no room halfway."""
        log = self

        class Noting(kind):  # type: ignore[misc]
            def step(self, closure: Any = None) -> Any:
                loss = None if closure is None else torch.enable_grad()(closure)()
                if log._hits("optimizer step", BATCH):
                    first = self.param_groups[0]["params"][0]
                    first.data.mul_(3)  # a half-applied step
                    log._raise()
                kind.step(self)
                log.stepped()
                return loss

        return Noting

    def stepped(self) -> None:
        """Note a step of the optimizer."""
        if self._pending:
            self.steps.append(frozenset(self._pending))
            self.times.append(time.perf_counter())
        self._pending = set()

    def _hits(self, where: str, count: int) -> bool:
        if where != self.kind.where or (self.raised and not self.kind.lasts):
            return False
        self._begun = self._begun or len(self.steps) >= self.kind.after
        return self._begun and count > FITS

    def _raise(self) -> None:
        if not self.raised:
            self.raised_at = len(self.steps), time.perf_counter()
        self.raised += 1
        self._repeats = True  # whoever goes forward again does so with all of the step's samples
        own = self.kind.message == _OWN
        raise (torch.OutOfMemoryError if own else RuntimeError)(self.kind.message)


class _NoRoom(torch.autograd.Function):
    """The identity, whose backward pass finds no room."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, log: Log) -> torch.Tensor:
        """Return the loss."""
        ctx.log = log
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        """Find no room."""
        ctx.log._raise()  # noqa: SLF001 - its own


@dataclass
class Outcome:
    """What a run came to."""

    log: Log
    died: str = ""
    """The error it died of; empty where it went to its end."""
    weights: list[torch.Tensor] = field(default_factory=list)
    """Empty where nothing computes."""

    @property
    def kept_batch(self) -> bool:
        """Whether every step of the last epoch was of a whole batch."""
        return all(len(one) == BATCH for one in self.log.steps[-SAMPLES // BATCH :])

    @property
    def extra_steps(self) -> float:
        """Steps' worth of samples trained beyond the recipe's: repeated, or thrown away."""
        return (sum(map(len, self.log.steps)) - SAMPLES * EPOCHS) / BATCH

    @property
    def recovery_seconds(self) -> float | None:
        """Seconds from the error until training was past the batch it came at; None where it died.

        What was thrown away or repeated was trained again by then.
        """
        first, started = self.log.raised_at
        missing = BATCH * (1 + self.extra_steps)
        for step, ended in zip(self.log.steps[first:], self.log.times[first:], strict=True):
            missing -= len(step)
            if missing <= 0 and not self.died:
                return ended - started
        return None


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs `[SAMPLES, 4]` and targets `[SAMPLES, 2]`, of which one is its number."""
    numbers = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 4, generator=numbers)
    values = torch.randn(SAMPLES, 1, generator=numbers)
    return inputs, torch.cat([values, torch.arange(float(SAMPLES))[:, None]], 1)


def network() -> torch.nn.Module:
    """Return the network, its weights those of one seed."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def loss_of(log: Log, net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of a training batch, where it finds room."""
    log.forward(y[:, 1].tolist())
    return log.loss(torch.nn.functional.mse_loss(net(x), y[:, :1]), len(x))
