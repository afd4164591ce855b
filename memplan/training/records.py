"""What a run records and shows while it goes: memory, epochs, events, warnings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from memplan.training.epoch import EpochRunner
from memplan.training.memory import MemoryWatch
from memplan.training.position import EpochResult
from memplan.training.progress import Progress
from memplan.training.run_folder import RunFolder
from memplan.workload import LeavesOut

if TYPE_CHECKING:
    from memplan.training.setup import Setup

_MOST_IN_WORDS = 5  # images left out; all are in the events
_MEMORY_INTERVAL = 10  # steps of the optimizer between rows of memory.csv

Announce = Callable[[str, Mapping[str, Any]], None]


_OFFICIAL_COLUMNS = {
    "precision": "metrics/precision",
    "recall": "metrics/recall",
    "mAP50": "metrics/mAP_0.5",
    "mAP50-95": "metrics/mAP_0.5:0.95",
}
"""How the official tool's `results.csv` names what evaluators return."""


def metric_columns(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics by their column of `results.csv`; those with a section keep their name.

    A mark of what is judged stays: `mAP50(M)` is that of masks.
    """
    columns = {}
    for metric, value in metrics.items():
        name, bracket, mark = metric.partition("(")
        column = _OFFICIAL_COLUMNS.get(name, name if "/" in name else f"metrics/{name}")
        columns[column + bracket + mark] = value
    return columns


class Records:
    """Writes the run folder's rows and keeps people informed.

    Args:
        setup: what is trained.
        folder: where rows go.
        progress: where people look.
        announce: told every event, by name and facts.
    """

    def __init__(
        self, setup: Setup, folder: RunFolder, progress: Progress, announce: Announce
    ) -> None:
        self.setup = setup
        self.folder = folder
        self.progress = progress
        self.announce = announce
        plan = setup.plan
        self.memory = MemoryWatch(
            setup.step.device,
            plan.predicted if plan else None,
            plan.budget_bytes if plan else None,
        )
        self.back_offs = 0
        self._warned_of_memory = False
        data = setup.data
        self._unreadable = data.unreadable if isinstance(data, LeavesOut) else {}
        self._num_told = 0  # of the images left out
        self._num_counted = 0  # of the times
        self._ranks = setup.ranks
        self._untold: list[tuple[str, dict[str, Any], str]] = []  # for the first process to tell

    @property
    def has_untold(self) -> bool:
        """Whether this process noticed what the first one, which keeps the records, must tell."""
        return bool(self._untold)

    def tell(self, name: str, facts: Mapping[str, Any], text: str = "") -> None:
        """Tell what this process alone noticed; one after the first has it told at the next step.

        Args:
            name: of the event.
            facts: of the event.
            text: for people; empty for none.
        """
        if not self._ranks.is_first:
            self._untold.append((name, dict(facts), text))
            return
        self._tell(name, facts, text)

    def tell_of_others(self) -> None:
        """Tell what the other processes noticed; all of them must call it."""
        everybodys = self._ranks.gather(self._untold) or []
        self._untold = []
        for rank, noticed in enumerate(everybodys):
            for name, facts, text in noticed:
                told = f"Process {rank}: {text}" if text else ""
                self._tell(name, {**facts, "rank": rank}, told)

    def _tell(self, name: str, facts: Mapping[str, Any], text: str) -> None:
        self.announce(name, facts)
        if text:
            self.progress.note(text)

    def after_step(self, runner: EpochRunner, steps: int) -> None:
        """Record memory now and then, and show how far the epoch is.

        Args:
            runner: in the epoch.
            steps: of the optimizer since the run began.
        """
        if steps == 1 or steps % _MEMORY_INTERVAL == 0:
            self.add_memory(runner, "train", steps)
        if len(self._unreadable) > self._num_told:
            self.tell_unreadable(runner)
        self.progress.update(
            runner.epoch,
            runner.images_seen,
            lambda: (self._brief_losses(runner.mean_losses()), self.memory.brief()),
        )

    def tell_unreadable(self, runner: EpochRunner) -> None:
        """Tell of images that have vanished or broken since the last time; a few in words."""
        new = list(self._unreadable)[self._num_told :]
        for number, text in enumerate(new, start=self._num_told):
            words = f"Warning: {text} It is left out." if number < _MOST_IN_WORDS else ""
            self.tell("image_left_out", {"epoch": runner.epoch + 1, "message": text}, words)
        self._num_told += len(new)

    def count_unreadable(self, runner: EpochRunner) -> None:
        """Tell how many images an epoch did without."""
        self.tell_unreadable(runner)
        times = sum(self._unreadable.values())
        if times > self._num_counted:
            files, now = len(self._unreadable), times - self._num_counted
            facts = {"epoch": runner.epoch + 1, "images": files, "times": now}
            self.tell(
                "images_left_out",
                facts,
                f"Warning: {files} image(s) cannot be read any more; they were left out {now} "
                "time(s) in this epoch.",
            )
        self._num_counted = times

    def end_training(self, runner: EpochRunner, steps: int) -> None:
        """Record memory at the end of an epoch's training, once."""
        # The first process knows it from its records, also of earlier sessions.
        if self._ranks.share(self.folder.last_step < steps):
            self.add_memory(runner, "train", steps)

    def add_memory(self, runner: EpochRunner, phase: str, steps: int) -> None:
        """Add a row to `memory.csv`, and one to each other process's own file."""
        for rank, row in enumerate(self._ranks.gather(self._row(runner, phase, steps)) or []):
            self.folder.add_memory(row, rank)
        self.compare_with_plan()

    def _row(self, runner: EpochRunner, phase: str, steps: int) -> dict[str, Any]:
        live = self.memory.read(of_steps=phase == "train")
        predicted = self.memory.predicted
        return {
            "epoch": runner.epoch + 1,
            "step": steps,
            "phase": phase,
            "micro_batch_size": runner.micro_batch_size,
            "predicted_allocated_bytes": predicted and predicted.allocated_peak_bytes,
            "predicted_reserved_bytes": predicted and predicted.reserved_peak_bytes,
            "predicted_device_used_bytes": predicted and predicted.device_used_peak_bytes,
            "live_allocated_bytes": live.allocated_bytes,
            "live_reserved_bytes": live.reserved_bytes,
            "live_device_used_bytes": live.device_used_bytes,
            "host_resident_bytes": live.host_resident_bytes,
        }

    def compare_with_plan(self) -> None:
        """Warn, once, where the highest figures are above what the plan predicted."""
        if self._warned_of_memory or not (above := self.memory.above_prediction()):
            return
        self._warned_of_memory = True
        text = f"{above} memory is above the plan's prediction: {self.memory.summary()}."
        self.tell("warning", {"message": text}, f"Warning: {text}")

    def add_epoch(
        self,
        runner: EpochRunner,
        result: EpochResult,
        metrics: Mapping[str, float],
        *,
        seconds: float,
        training_seconds: float,
    ) -> None:
        """Add a row to `results.csv` and show the epoch's line.

        Args:
            runner: that trained the epoch.
            result: what its training came to.
            metrics: by name; empty where it was not evaluated.
            seconds: of the whole epoch, earlier sessions included.
            training_seconds: of this session's training.
        """
        self.count_unreadable(runner)
        speed = result.num_images / max(training_seconds, 1e-9)
        names = self._loss_names(len(result.losses))
        self.folder.add_result(
            {
                "epoch": runner.epoch + 1,
                **{f"train/{n}": loss for n, loss in zip(names, result.losses, strict=True)},
                **metric_columns(metrics),
                "x/lr0": result.rates.bias_learning_rate,
                "x/lr1": result.rates.learning_rate,
                "x/lr2": result.rates.learning_rate,
                "micro_batch_size": runner.micro_batch_size,
                "accumulation_steps": result.rates.accumulation,
                "steps": result.num_steps,
                "seconds": round(seconds, 3),
                "images_per_second": round(speed, 3),
            }
        )
        losses = self.losses_text(result.losses)
        self.progress.end_epoch(runner.epoch, losses, metrics, speed, self.memory.summary())

    def back_off(
        self, runner: EpochRunner, phase: str, message: str, size: int, steps: int | None
    ) -> None:
        """Tell that memory ran out and what is done about it.

        Args:
            runner: in the epoch.
            phase: `training` or `validation`.
            message: the device's own words.
            size: images at once from now on.
            steps: micro-batches a step from now on; None in validation.
        """
        self.back_offs += 1
        epoch = runner.epoch + 1
        self.announce("out_of_memory", {"epoch": epoch, "phase": phase, "message": message})
        facts = {"epoch": epoch, "phase": phase, "micro_batch_size": size}
        self.announce("backed_off", facts if steps is None else {**facts, "accumulation": steps})
        rest = "" if steps is None else f", {steps} a step; the same images are repeated"
        self.progress.note(f"Out of memory in {phase}: now {size} images at once{rest}.")

    def lower(self, runner: EpochRunner) -> None:
        """Tell that micro-batches are smaller from here on, before memory runs out."""
        size, parts = runner.micro_batch_size, runner.parts_a_step
        facts = {"epoch": runner.epoch + 1, "micro_batch_size": size, "accumulation": parts}
        self.announce("micro_batch_lowered", facts)
        self.progress.note(f"Memory is short: now {size} images at once, {parts} a step.")

    def relieve(self, runner: EpochRunner, message: str, how: str) -> None:
        """Tell that not one image fitted, and what is done about it; the images are repeated.

        Args:
            runner: in the epoch.
            message: the device's own words; empty where the optimizer's step found no room.
            how: `average on the host`, or as `TrainingStep.lighten` says.
        """
        if not message:
            self.lighten(runner, how)
            return
        facts = {"epoch": runner.epoch + 1, "phase": "training", "message": message}
        self.announce("out_of_memory", facts)
        self.progress.note("Out of memory with one image at once; the same images are repeated.")
        self.lighten(runner, how)

    def lighten(self, runner: EpochRunner, how: str) -> None:
        """Tell that less is kept on the device from here on.

        Args:
            runner: in the epoch.
            how: as for `relieve`.
        """
        self.announce("memory_spared", {"epoch": runner.epoch + 1, "by": how})
        self.progress.note(f"From here on: {how}, which takes time and changes no loss.")

    def try_again(self, runner: EpochRunner) -> None:
        """Tell that the planned micro-batch, which did not fit once, is tried again."""
        facts = {"epoch": runner.epoch + 1, "micro_batch_size": runner.micro_batch_size}
        self.announce("micro_batch_tried_again", facts)
        self.progress.note(f"Trying {runner.micro_batch_size} images at once again.")

    def warn(self, text: str) -> None:
        """Tell what the user should know, and go on."""
        self.announce("warning", {"message": text})
        self.progress.note(f"Warning: {text}")

    def losses_text(self, losses: tuple[float, ...]) -> str:
        """Return losses by name, for a line."""
        names = self._loss_names(len(losses))
        return ", ".join(f"{name} {loss:.3f}" for name, loss in zip(names, losses, strict=True))

    def _brief_losses(self, losses: tuple[float, ...]) -> str:
        names = self._loss_names(len(losses))
        pairs = zip(names, losses, strict=True)
        return ", ".join(f"{name.removesuffix('_loss')} {loss:.2f}" for name, loss in pairs)

    def _loss_names(self, count: int) -> tuple[str, ...]:
        names = self.setup.loss_names
        if names is not None and len(names) == count:
            return names
        return ("loss",) if count == 1 else tuple(f"loss_{part}" for part in range(count))
