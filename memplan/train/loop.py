"""The run: epochs, evaluation, the best weights, early stop, checkpoints and records."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from memplan import _version
from memplan.errors import BadInputError, MemplanError
from memplan.train.checkpoint import Checkpoint, plain_state, save_checkpoint
from memplan.train.epoch import EpochResult, EpochRunner
from memplan.train.memory import MemoryWatch
from memplan.train.progress import Progress
from memplan.train.random_states import capture_random_states
from memplan.train.run_folder import RunFolder
from memplan.train.schedule import accumulation_steps
from memplan.train.setup import Setup
from memplan.train.summary import RunSummary
from memplan.train.validation import validate, validation_batch_size

_MEMORY_INTERVAL = 10  # steps of the optimizer between rows of memory.csv


@dataclass
class _Standing:
    """What changes from epoch to epoch and goes into checkpoints."""

    epochs_done: int = 0
    best_fitness: float = 0.0
    best_epoch: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Run:
    """One session of a run, fresh or resumed.

    Args:
        setup: ready to start, restored where resumed.
        folder: where records go.
        progress: where people look.
        announce: told every event, by name and facts.
        checkpoint: what is continued, None for a fresh run.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        progress: Progress,
        announce: Callable[[str, Mapping[str, Any]], None],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.setup = setup
        self.options = setup.options
        self.folder = folder
        self.progress = progress
        self.announce = announce
        plan = setup.plan
        self.memory = MemoryWatch(setup.step.device, plan.predicted if plan else None)
        self.standing = _standing_of(checkpoint)
        size = checkpoint.micro_batch_size if checkpoint else self.options.batch
        self.runner = EpochRunner(
            setup, size, on_step=self._after_step, on_back_off=self._back_off_training
        )
        self.validation_size = validation_batch_size(setup, size)
        self.back_offs = 0
        self._steps = 0
        self._images = 0
        self._training_seconds = 0.0
        self._warned_of_memory = False

    def go(self) -> RunSummary:
        """Train to the end and return what came of it.

        Raises:
            DeviceOutOfMemoryError: not even one image fits.
            MemplanError: the weights became useless (not finite).
            BadInputError: the last checkpoint cannot be written.
        """
        started = time.monotonic()
        if self.options.epochs == 0:
            self._evaluate_only()
        stopped_early = False
        while self.standing.epochs_done < self.options.epochs and not stopped_early:
            stopped_early = self._one_epoch(self.standing.epochs_done)
        summary = self._summary(time.monotonic() - started, stopped_early=stopped_early)
        facts = {**asdict(summary), "run_folder": str(summary.run_folder)}
        self.announce("finished", facts)
        return summary

    def _one_epoch(self, epoch: int) -> bool:
        """Train, evaluate, record and save; return whether patience ends the run here."""
        started = time.monotonic()
        size = self.runner.micro_batch_size
        self.progress.start_epoch(self.setup.data.num_training_images)
        result = self.runner.run(
            epoch,
            self.setup.data.training_batches(
                micro_batch_size=size,
                epoch=epoch,
                augment_fully=epoch < self.options.epochs - self.options.close_mosaic,
            ),
        )
        training_seconds = time.monotonic() - started
        self._training_seconds += training_seconds
        self._images += result.num_images
        self._check_finite(epoch, result)
        self._record_memory("train")
        standing = self.standing
        patience = self.options.patience
        # The best so far is what this epoch's evaluation may still beat.
        out_of_patience = bool(patience) and epoch - max(standing.best_epoch, 0) >= patience
        is_last = epoch + 1 == self.options.epochs
        metrics: dict[str, float] = {}
        if not self.options.noval or is_last or out_of_patience:
            metrics = self._evaluate(epoch)
        is_best = bool(metrics) and standing.best_epoch == epoch
        stops = not is_last and out_of_patience and not is_best
        standing.epochs_done = epoch + 1
        seconds = time.monotonic() - started
        self._record_epoch(epoch, result, metrics, seconds, training_seconds)
        self._save(is_best=is_best, finished=is_last or stops)
        return stops

    def _evaluate(self, epoch: int) -> dict[str, float]:
        metrics, self.validation_size = validate(
            self.setup, self.validation_size, self._back_off_validation
        )
        self._record_memory("validation")
        standing = self.standing
        standing.metrics = metrics
        fitness = metrics["fitness"]
        if fitness >= standing.best_fitness or standing.best_epoch < 0:
            standing.best_fitness, standing.best_epoch = fitness, epoch
            standing.best_metrics = metrics
        return metrics

    def _evaluate_only(self) -> None:
        started = time.monotonic()
        metrics = self._evaluate(0)
        row = {"epoch": 0, **metrics, "seconds": round(time.monotonic() - started, 3)}
        self.folder.add_result(row)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self.progress.note(f"evaluation: {shown}")

    def _check_finite(self, epoch: int, result: EpochResult) -> None:
        """Stop where training diverged: every later step would be wasted."""
        if all(math.isfinite(loss) for loss in result.losses):
            return
        parameters = self.setup.step.model.parameters()
        if all(bool(parameter.isfinite().all()) for parameter in parameters):
            self._warn(f"The loss of epoch {epoch + 1} is not finite, the weights still are.")
            return
        raise MemplanError(
            f"The weights are not finite any more in epoch {epoch + 1}. "
            f"{self.folder.weights / 'last.pt'} keeps the epoch before, if there was one. "
            "Lower lr0 in --hyp, or use --precision fp32."
        )

    def _after_step(self, runner: EpochRunner) -> None:
        self._steps += 1
        if self._steps == 1 or self._steps % _MEMORY_INTERVAL == 0:
            self._record_memory("train")
        self.progress.update(
            runner.epoch,
            runner.images_seen,
            lambda: (self._losses_text(runner.mean_losses()), self.memory.summary()),
        )

    def _record_memory(self, phase: str) -> None:
        live = self.memory.read()
        predicted = self.memory.predicted
        self.folder.add_memory(
            {
                "epoch": self.runner.epoch + 1,
                "step": self._steps,
                "phase": phase,
                "micro_batch_size": self.runner.micro_batch_size,
                "predicted_allocated_bytes": predicted and predicted.allocated_peak_bytes,
                "predicted_reserved_bytes": predicted and predicted.reserved_peak_bytes,
                "predicted_device_used_bytes": predicted and predicted.device_used_peak_bytes,
                "live_allocated_bytes": live.allocated_bytes,
                "live_reserved_bytes": live.reserved_bytes,
                "live_device_used_bytes": live.device_used_bytes,
                "host_resident_bytes": live.host_resident_bytes,
            }
        )
        if self.memory.exceeds_prediction() and not self._warned_of_memory:
            self._warned_of_memory = True
            self._warn(f"Reserved memory is above the plan's prediction: {self.memory.summary()}.")

    def _loss_names(self, count: int) -> tuple[str, ...]:
        names = self.setup.loss_names
        if names is not None and len(names) == count:
            return names
        return ("loss",) if count == 1 else tuple(f"loss_{part}" for part in range(count))

    def _losses_text(self, losses: tuple[float, ...]) -> str:
        names = self._loss_names(len(losses))
        return ", ".join(f"{name} {loss:.3f}" for name, loss in zip(names, losses, strict=True))

    def _record_epoch(
        self,
        epoch: int,
        result: EpochResult,
        metrics: Mapping[str, float],
        seconds: float,
        training_seconds: float,
    ) -> None:
        speed = result.num_images / max(training_seconds, 1e-9)
        self.folder.add_result(
            {
                "epoch": epoch + 1,
                **dict(zip(self._loss_names(len(result.losses)), result.losses, strict=True)),
                **metrics,
                "learning_rate": result.rates.learning_rate,
                "bias_learning_rate": result.rates.bias_learning_rate,
                "micro_batch_size": self.runner.micro_batch_size,
                "accumulation_steps": result.rates.accumulation,
                "steps": result.num_steps,
                "seconds": round(seconds, 3),
                "images_per_second": round(speed, 3),
            }
        )
        losses = self._losses_text(result.losses)
        self.progress.end_epoch(epoch, losses, metrics, speed, self.memory.summary())

    def _back_off_training(self, message: str, micro_batch_size: int) -> None:
        steps = accumulation_steps(self.setup.effective_batch_size, micro_batch_size)
        self.validation_size = min(
            self.validation_size, validation_batch_size(self.setup, micro_batch_size)
        )
        self._report_back_off("training", message, micro_batch_size, steps)

    def _back_off_validation(self, message: str, batch_size: int) -> None:
        self._report_back_off("validation", message, batch_size, None)

    def _report_back_off(self, phase: str, message: str, size: int, steps: int | None) -> None:
        self.back_offs += 1
        epoch = self.runner.epoch + 1
        self.announce("out_of_memory", {"epoch": epoch, "phase": phase, "message": message})
        facts = {"epoch": epoch, "phase": phase, "micro_batch_size": size}
        self.announce("backed_off", facts if steps is None else {**facts, "accumulation": steps})
        rest = "" if steps is None else f", {steps} a step; the same images are repeated"
        self.progress.note(f"Out of memory in {phase}: now {size} images at once{rest}.")

    def _warn(self, text: str) -> None:
        self.announce("warning", {"message": text})
        self.progress.note(f"Warning: {text}")

    def _save(self, *, is_best: bool, finished: bool) -> None:
        """Write the epoch's checkpoints; only the run's last may not fail."""
        if self.options.nosave and not finished:
            return
        checkpoint = self._checkpoint(finished=finished)
        period = self.options.save_period
        targets = ["last.pt"]
        # Until something is evaluated the latest weights are the best known.
        if is_best or self.standing.best_epoch < 0:
            targets.append("best.pt")
        if period > 0 and checkpoint.epoch % period == 0:
            targets.append(f"epoch{checkpoint.epoch}.pt")
        saved = []
        for name in targets:
            try:
                save_checkpoint(self.folder.weights / name, checkpoint)
                saved.append(name)
            except BadInputError as error:
                if finished:
                    raise
                self._warn(str(error))
        self.announce("saved", {"epoch": checkpoint.epoch, "files": saved})

    def _checkpoint(self, *, finished: bool) -> Checkpoint:
        setup, standing, step = self.setup, self.standing, self.setup.step
        average = step.average
        return Checkpoint(
            epoch=standing.epochs_done,
            finished=finished,
            model=plain_state(step.model),
            ema=None if average is None else plain_state(average.model),
            ema_updates=0 if average is None else average.updates,
            optimizer=step.optimizer.state_dict(),
            scaler=step.scaler.state_dict(),
            micro_batch_size=self.runner.micro_batch_size,
            best_fitness=standing.best_fitness,
            best_epoch=standing.best_epoch,
            best_metrics=standing.best_metrics,
            metrics=standing.metrics,
            random_states=capture_random_states(),
            options=self.options.as_record(),
            hyperparameters=setup.hyperparameters,
            workload=setup.workload.name,
            num_classes=setup.data.num_classes,
            plan=None if setup.plan is None else setup.plan.to_json(),
            versions={"memplan": _version.__version__, "torch": str(torch.__version__)},
        )

    def _summary(self, seconds: float, *, stopped_early: bool) -> RunSummary:
        standing, memory = self.standing, self.memory
        size = self.runner.micro_batch_size
        return RunSummary(
            run_folder=Path(self.folder.path),
            epochs_done=standing.epochs_done,
            stopped_early=stopped_early,
            best_epoch=standing.best_epoch + 1,
            best_metrics=standing.best_metrics,
            metrics=standing.metrics,
            seconds=round(seconds, 3),
            images_per_second=round(self._images / max(self._training_seconds, 1e-9), 3),
            micro_batch_size=size,
            accumulation_steps=accumulation_steps(self.setup.effective_batch_size, size),
            back_offs=self.back_offs,
            allocated_peak_bytes=memory.allocated_peak_bytes,
            reserved_peak_bytes=memory.reserved_peak_bytes,
            device_used_peak_bytes=memory.device_used_peak_bytes,
            host_resident_peak_bytes=memory.host_resident_peak_bytes,
        )


def _standing_of(checkpoint: Checkpoint | None) -> _Standing:
    if checkpoint is None:
        return _Standing()
    return _Standing(
        epochs_done=checkpoint.epoch,
        best_fitness=checkpoint.best_fitness,
        best_epoch=checkpoint.best_epoch,
        best_metrics=dict(checkpoint.best_metrics),
        metrics=dict(checkpoint.metrics),
    )
