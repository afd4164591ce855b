"""A callback for Lightning's `Trainer`: steps that find no room are repeated in pieces."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any, Literal, Self

import torch

from memplan.errors import MemplanError, UsageError
from memplan.trainers import batches
from memplan.trainers.callback import TrainerGuard
from memplan.trainers.deferred import deferred
from memplan.trainers.passes import Passes, Split

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise MemplanError(
            f"memplan.trainers.lightning needs Lightning ({error}): pip install lightning."
        ) from None

_Logged = tuple[str, Any, tuple[Any, ...], dict[str, Any]]
_MEANS = ("mean", torch.mean)


class MemoryGuard(TrainerGuard, Callback):  # type: ignore[misc]
    """Guards the steps of training, backward pass included, and of validation while it trains.

    `Trainer(callbacks=[MemoryGuard()])`.

    What finds no room is undone and repeated with the batch in 2, 4, ... pieces, within the same
    step: batches, accumulation, learning rates and step counts stay what they are. What
    the steps return and log of the pieces is averaged over their samples.

    Limits: automatic optimization and one process alone. The transfer of a batch and what hooks do
    are not guarded.

    Args:
        loss: whether `training_step` returns the mean over the samples or their sum.
        retry_after: steps after which the whole batch is tried again, >= 1.
        split: `split(batch, pieces)` returns `(samples, piece)` for layouts memplan does not know.
        optimizer_step: whether the optimizer's step is undone and repeated one parameter at a time
            too; each step then costs a copy of weights, gradients and optimizer state.
        watch: whether memory is looked at after each pass, which resets the allocator's peaks.

    Raises:
        UsageError: an argument is out of its range; when training begins, manual optimization or
            several processes.
    """

    def __init__(
        self,
        *,
        loss: Literal["mean", "sum"] = "mean",
        retry_after: int = 50,
        split: Split = batches.split,
        optimizer_step: bool = False,
        watch: bool = True,
    ) -> None:
        super().__init__()
        self._hold(loss, retry_after, split, optimizer_step, watch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Guard the module's step while it trains."""
        if not pl_module.automatic_optimization:
            raise UsageError(
                "MemoryGuard guards automatic optimization. With manual optimization, use "
                "memplan.guard within training_step."
            )
        if trainer.world_size > 1:
            raise UsageError(
                f"MemoryGuard guards one process, and {trainer.world_size} train together. Take "
                "one device, or leave the callback out."
            )
        passes = self._begin(pl_module, trainer.optimizers)
        self._replace(pl_module, "training_step", _guarded(passes, pl_module))
        self._replace(pl_module, "validation_step", _evaluated(passes, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        del trainer, pl_module
        self._leave()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        del trainer, pl_module, exception
        self._leave()


def _guarded(passes: Passes, module: LightningModule) -> Any:
    original = module.training_step

    @functools.wraps(original)
    def training_step(batch: Any, *others: Any, **names: Any) -> Any:
        def run(piece: Any) -> tuple[torch.Tensor, Any]:
            with _Log(module) as log:
                output = original(piece, *others, **names)
            loss = output["loss"] if isinstance(output, dict) else output
            if loss is None:
                raise _SkippedError
            rest = batches.detached({**output, "loss": None} if isinstance(output, dict) else {})
            return loss, (rest, log.calls)

        try:
            loss, extras = deferred(passes, run, batch)
        except _SkippedError:
            return original(batch, *others, **names)
        _log_again(module, [(samples, calls) for samples, (_, calls) in extras])
        rest = batches.joined([(samples, rest) for samples, (rest, _) in extras])
        return {**rest, "loss": loss} if rest else loss

    return training_step


def _evaluated(passes: Passes, module: LightningModule) -> Any:
    original = module.validation_step

    @functools.wraps(original)
    def validation_step(batch: Any, *others: Any, **names: Any) -> Any:
        def run(piece: Any) -> tuple[Any, list[_Logged]]:
            with _Log(module) as log:
                output = original(piece, *others, **names)
            return output, log.calls

        found = passes.evaluated(run, batch)
        _log_again(module, [(samples, calls) for samples, (_, calls) in found])
        return batches.joined([(samples, output) for samples, (output, _) in found])

    return validation_step


class _SkippedError(Exception):
    """A step without a loss, which Lightning leaves out."""


class _Log:
    """Keeps what a module logs in the context, for a step that may yet be undone."""

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self.calls: list[_Logged] = []

    def __enter__(self) -> Self:
        vars(self._module)["log"] = self._keep
        return self

    def __exit__(self, *error: object) -> None:
        del vars(self._module)["log"]

    def _keep(self, name: str, value: Any, *others: Any, **names: Any) -> None:
        kept = value if names.get("enable_graph") else batches.detached(value)
        self.calls.append((name, kept, others, names))


def _log_again(module: LightningModule, found: list[tuple[int, list[_Logged]]]) -> None:
    """Log what pieces logged, averages in one call for the whole batch."""
    if len(found) == 1:
        for name, value, others, names in found[0][1]:
            module.log(name, value, *others, **names)
        return
    by_name: dict[str, list[tuple[int, _Logged]]] = defaultdict(list)
    for samples, logged in found:
        for one in logged:
            by_name[one[0]].append((samples, one))
    for calls in by_name.values():
        _log_name(module, calls)


def _log_name(module: LightningModule, calls: list[tuple[int, _Logged]]) -> None:
    _, (name, _, others, names) = calls[-1]
    values = [(samples, value) for samples, (_, value, _, _) in calls]
    is_mean = names.get("reduce_fx", "mean") in _MEANS
    if is_mean and all(isinstance(value, int | float | torch.Tensor) for _, value in values):
        whole = batches.joined([(samples, value * 1.0) for samples, value in values])
        count = sum(samples for samples, _ in values)
        module.log(name, whole, *others, **{**names, "batch_size": count})
        return
    for samples, value in values:
        module.log(name, value, *others, **{"batch_size": samples, **names})
