"""The run: epochs, evaluation, the best weights, early stop, checkpoints."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from memplan.errors import BadInputError, MemplanError
from memplan.registry import runs_code
from memplan.training.checkpoint import (
    LAST,
    Checkpoint,
    UnsavedError,
    save_checkpoint,
    strip_checkpoint,
)
from memplan.training.details import Details
from memplan.training.epoch import IN_ANOTHER, EpochRunner
from memplan.training.guard import NoRoomError, OutOfMemory, attempt, persisted
from memplan.training.position import EpochPosition, Wishes, position_of
from memplan.training.progress import Progress
from memplan.training.random_states import capture_random_states, restore_random_states
from memplan.training.records import Announce, Records, metric_columns
from memplan.training.relief import Relief
from memplan.training.rescue import drop_rescued, rescue
from memplan.training.run_folder import RunFolder
from memplan.training.saving import Standing, checkpoint_of, is_host_short
from memplan.training.setup import Setup
from memplan.training.stopping import StoppedError, StopRequest
from memplan.training.summary import RunSummary
from memplan.training.validation import validate, validation_batch_size
from memplan.workload import Evaluator

_T = TypeVar("_T")


@dataclass
class _Session:
    """What this session alone counts."""

    images: int = 0
    training_seconds: float = 0.0
    last_save: float = field(default_factory=time.monotonic)
    epoch_started: float = 0.0
    """On the monotonic clock, moved back by what earlier sessions spent on the epoch."""


_MORE_EVALUATIONS = 2
_STEPS_TO_TRY = 100  # of the optimizer, between tries of a micro-batch that did not fit once


def _persisted(work: Callable[[], _T]) -> _T:
    what = "Looking at the weights, or saving them, finds no room"
    return persisted(work, what, "Close other programs.")


class Run:
    """One session of a run, fresh or resumed, in one of the processes that train together.

    Args:
        setup: ready to start, restored where resumed.
        folder: where records go.
        progress: where people look.
        announce: told every event, by name and facts.
        checkpoint: what is continued, None for a fresh run.
        stop: whether somebody asked to stop; None never asks.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        progress: Progress,
        announce: Announce,
        checkpoint: Checkpoint | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.setup = setup
        self.options = setup.options
        self.ranks = setup.ranks
        self.folder = folder
        self.progress = progress
        self.records = Records(setup, folder, progress, announce)
        self.announce = announce
        self.standing = Standing.of(checkpoint)
        self.stop = stop or StopRequest()
        size = checkpoint.micro_batch_size if checkpoint else setup.micro_batch_size
        self.runner = EpochRunner(
            setup,
            size,
            on_step=self._after_step,
            on_back_off=self._back_off_training,
            on_relief=self._relieved,
            wishes=self._wishes,
        )
        self.relief = Relief(setup, self.runner, self.records)
        saved = checkpoint.validation_size if checkpoint else None
        self.validation_size = saved or validation_batch_size(setup, size)
        self._checkpoint = checkpoint
        self._session = _Session()
        self._details = Details(setup, folder, self.records.warn)
        self._latest: tuple[int, Evaluator] | None = None
        self._unsaved: set[str] = set()  # checkpoints that could not be written at the last try
        self._is_resumed = checkpoint is not None
        self._rescued: Path | None = None  # of the newest state, where the run folder took none

    def go(self) -> RunSummary:
        """Train to the end and return what came of it.

        Raises:
            DeviceOutOfMemoryError: not even one image fits.
            MemplanError: the weights became useless (not finite).
            BadInputError: the last checkpoint cannot be written.
            StoppedError: the run was asked to stop, and saved first.
        """
        started = time.monotonic()
        if self._checkpoint is None:
            self.ranks.alone(self._details.draw_data)
        position = self._go_on()
        if self.options.epochs == 0:
            self._evaluate_only()
        stopped_early = False
        while self.standing.epochs_done < self.options.epochs and not stopped_early:
            stopped_early = self._one_epoch(self.standing.epochs_done, position)
            position = EpochPosition()
        summary = self._summary(time.monotonic() - started, stopped_early=stopped_early)
        facts = {**asdict(summary), "run_folder": str(summary.run_folder)}
        del facts["details"]
        self.announce("finished", facts)
        details = self._details_of_best()
        self._strip_best()
        return replace(summary, details=details)

    def _strip_best(self) -> None:
        """Make `best.pt`, which nothing resumes any more, as small as its weights are."""
        best = self.folder.weights / "best.pt"
        if not (self.ranks.is_first and self.options.epochs and best.exists()):
            return
        try:
            _persisted(lambda: strip_checkpoint(best))
        except (BadInputError, NoRoomError) as error:
            self.records.warn(f"best.pt stays as large as it is: {error}")

    def _details_of_best(self) -> str:
        """Return the best epoch's details as text, which rank 0 writes while the others wait."""

        def work() -> str:
            if self._latest is None:
                return ""
            epoch, evaluator = self._latest
            return self._details.of_best(
                evaluator,
                self.validation_size,
                lambda: bool(self.stop.asked),
                is_latest_best=epoch == self.standing.best_epoch,
            )

        return self.ranks.alone(work)

    def _go_on(self) -> EpochPosition:
        """Return where in its epoch the run goes on, the random states as they were there."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return EpochPosition()
        # The last thing before training, since anything before may have drawn from them.
        states = [checkpoint.random_states, *checkpoint.other_random_states]
        try:
            _persisted(lambda: restore_random_states(states[self.ranks.rank]))
        except NoRoomError:
            raise
        except Exception as error:  # noqa: BLE001 - generators raise anything
            reason = " ".join(str(error).split())[:100]
            raise BadInputError(
                f"The checkpoint's random states cannot be used ({type(error).__name__}: "
                f"{reason}). To train on from its weights, start a new run with --weights."
            ) from None
        if checkpoint.position is None:
            return EpochPosition()
        self._session.epoch_started = -float(checkpoint.position["seconds"])
        return position_of(checkpoint.position)

    def _one_epoch(self, epoch: int, position: EpochPosition) -> bool:
        """Train, evaluate, record and save; return whether patience ends the run here."""
        self._stop_if_asked()
        session, standing = self._session, self.standing
        started = time.monotonic()
        session.epoch_started += started
        self.progress.start_epoch(self.setup.data.num_training_images, position.images_seen)
        result = self.runner.run(epoch, position)
        training_seconds = time.monotonic() - started
        session.training_seconds += training_seconds
        session.images += result.num_images
        self._check_finite(epoch, result.losses)
        self.records.tell_of_others()
        self.records.end_training(self.runner, standing.steps)
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
        seconds = time.monotonic() - session.epoch_started
        self.records.add_epoch(
            self.runner, result, metrics, seconds=seconds, training_seconds=training_seconds
        )
        session.epoch_started = 0.0
        self._save_epoch(is_best=is_best, finished=is_last or stops)
        return stops

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """Return the metrics, which rank 0 computes and all ranks then know."""

        def evaluate(*, on_host: bool) -> tuple[dict[str, float] | None, int]:
            evaluator = self.setup.data.evaluator()
            self._latest = epoch, evaluator
            return validate(
                self.setup,
                self.validation_size,
                self._back_off_validation,
                is_asked_to_stop=lambda: bool(self.stop.asked),
                evaluator=evaluator,
                on_host=on_host,
            )

        def work() -> tuple[dict[str, float] | None, int]:
            if not self.options.guard:
                return evaluate(on_host=False)
            found = attempt(lambda: evaluate(on_host=False))
            for _ in range(_MORE_EVALUATIONS):
                if not isinstance(found, OutOfMemory):
                    return found
                self.records.warn(
                    f"The evaluation found no room ({found.message}); it is made again, its "
                    "predictions on the host."
                )
                found = attempt(lambda: evaluate(on_host=True))
            if isinstance(found, OutOfMemory):
                raise NoRoomError(
                    f"The evaluation finds no room ({found.message}). Lower --val-batch or --img."
                )
            return found

        metrics, self.validation_size = self.ranks.alone(work)
        if metrics is None:
            self._stop()
        self.records.add_memory(self.runner, "validation", self.standing.steps)
        self.standing.add(epoch, metrics)
        return dict(metrics)

    def _evaluate_only(self) -> None:
        started = time.monotonic()
        metrics = self._evaluate(0)
        row = {
            "epoch": 0,
            **metric_columns(metrics),
            "seconds": round(time.monotonic() - started, 3),
        }
        self.folder.add_result(row)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self.progress.note(f"evaluation: {shown}")

    def _check_finite(self, epoch: int, losses: Iterable[float]) -> None:
        """Stop where training diverged: every later step would be wasted."""
        if all(math.isfinite(loss) for loss in losses):
            return
        parameters = [*self.setup.step.model.parameters()]
        if _persisted(lambda: all(bool(one.isfinite().all()) for one in parameters)):
            self.records.warn(
                f"The loss of epoch {epoch + 1} is not finite, the weights still are."
            )
            return
        raise MemplanError(
            f"The weights are not finite any more in epoch {epoch + 1}. "
            f"{self.folder.weights / 'last.pt'} keeps what was saved before, if anything was. "
            "Lower lr0 in --hyp, or use --precision fp32."
        )

    def _wishes(self) -> Wishes:
        minutes = (time.monotonic() - self._session.last_save) / 60
        every = self.options.save_every
        is_due = self.ranks.is_first and 0 < every <= minutes and not self.options.nosave
        return Wishes(
            stop=bool(self.stop.asked),
            save=is_due,
            smaller=self.relief.wants_smaller,
            stays_small=self.relief.keeps_smaller,
            lighter=self.relief.wants_lighter,
            tell=self.records.has_untold,
        )

    def _after_step(self, runner: EpochRunner, wishes: Wishes) -> None:
        self.standing.steps += 1
        self.records.after_step(runner, self.standing.steps)
        self.relief.follow(self.standing.steps)
        if wishes.tell:
            self.records.tell_of_others()
        if wishes.lighter:
            self.relief.lighten()
        if wishes.smaller:
            self.relief.wants_smaller = False
            runner.lower()
            self.records.lower(runner)
        elif self._is_time_to_try(wishes) and runner.try_planned():
            self.records.try_again(runner)
        if wishes.stop:
            self._stop()
        if wishes.save:
            self._save_midway()

    def _is_time_to_try(self, wishes: Wishes) -> bool:
        """Return whether the planned micro-batch is due again, in all processes alike."""
        return not wishes.stays_small and self.standing.steps % _STEPS_TO_TRY == 0

    def _stop_if_asked(self) -> None:
        """Stop between epochs, where the last save still holds."""
        [is_asked] = self.ranks.agree([bool(self.stop.asked)])
        if is_asked:
            self._leave(is_saved=self.has_state)

    def _stop(self) -> NoReturn:
        """Save where the epoch stands and stop."""
        self._leave(is_saved=not self.options.nosave and self._save_midway())

    @property
    def has_state(self) -> bool:
        """Whether there is anything to go on from, in the run folder or in a second place."""
        is_somewhere = self._is_resumed or self._rescued is not None
        return is_somewhere or (self.folder.weights / LAST).exists()

    def resume_command(self) -> str:
        """Return what to type to go on; a workload that runs its own code must be typed again."""
        words = ["memplan", "train", "--resume", str(self.folder.path)]
        if runs_code(self.options.cfg):
            words += ["--workload", self.options.cfg]
        return shlex.join(words)

    def _leave(self, *, is_saved: bool) -> NoReturn:
        """Say how to go on and stop."""
        runner, done = self.runner, self.standing.epochs_done
        images = runner.images_seen if runner.epoch == done else 0
        facts = {"signal": self.stop.asked, "epoch": done, "images": images, "saved": is_saved}
        self.announce("interrupted", facts)
        why = self.stop.asked or "asked of another process"
        where = f"after {done} of {self.options.epochs} epochs"
        if images:
            total = self.setup.data.num_training_images
            where += f" and {images} of {total} images"
        if is_saved or self.has_state:
            rest = "" if is_saved else "; only what was saved before is kept"
            how = f"{rest}. Continue with: {self.resume_command()}"
        else:
            how = "; nothing was saved" + (", as --nosave asks." if self.options.nosave else ".")
        text = f"Stopped ({why}) {where}{how}"
        self.progress.note(text)
        raise StoppedError(text, self.stop.asked)

    def rescue(self) -> str:
        """Save the last finished step after memory ran out; return how to go on, a sentence."""
        if self.ranks.size == 1 and not self.options.nosave and self.options.epochs:
            with contextlib.suppress(MemplanError, OSError):
                self.runner.drop_step()
                if self._save_midway():
                    return f"Everything is saved. Continue with: {self.resume_command()}"
        if self.has_state:
            return f"What was saved before is kept. Continue with: {self.resume_command()}"
        return "Nothing was saved."

    def _back_off_training(self, message: str, micro_batch_size: int) -> None:
        steps = self.runner.parts_a_step
        if not self.ranks.is_first and message != IN_ANOTHER:
            facts = {"epoch": self.runner.epoch + 1, "phase": "training", "message": message}
            self.records.tell("out_of_memory", facts)
        self.validation_size = min(
            self.validation_size, validation_batch_size(self.setup, micro_batch_size)
        )
        self.records.back_off(self.runner, "training", message, micro_batch_size, steps)

    def _relieved(self, message: str, how: str) -> None:
        self.records.relieve(self.runner, message, how)

    def _back_off_validation(self, message: str, batch_size: int) -> None:
        self.records.back_off(self.runner, "validation", message, batch_size, None)

    def _save_midway(self) -> bool:
        """Write `last.pt` between two steps of an epoch; return whether that worked."""
        self._check_finite(self.runner.epoch, [math.nan] if self._is_diverging() else [])
        position = self.runner.position()
        seconds = time.monotonic() - self._session.epoch_started
        record = {**position.as_record(), "seconds": seconds}
        saved = self._write(["last.pt"], position=record, finished=False)
        return bool(saved) or self._rescued is not None or not self.ranks.is_first

    def _is_diverging(self) -> bool:
        return not all(math.isfinite(loss) for loss in self.runner.mean_losses())

    def _save_epoch(self, *, is_best: bool, finished: bool) -> None:
        """Write the epoch's checkpoints; only the run's last may not fail."""
        if self.options.nosave and not finished:
            return
        targets = ["last.pt"]
        # Until something is evaluated the latest weights are the best known.
        if is_best or self.standing.best_epoch < 0:
            targets.append("best.pt")
        done, period = self.standing.epochs_done, self.options.save_period
        if period > 0 and done % period == 0:
            targets.append(f"epoch{done}.pt")
        self._write(targets, position=None, finished=finished)

    def _write(
        self, names: Iterable[str], *, position: Mapping[str, object] | None, finished: bool
    ) -> list[str]:
        """Write the run's state under several names and return those that worked."""
        states = self.ranks.gather(_persisted(capture_random_states))
        self._session.last_save = time.monotonic()
        if states is None:
            return []
        make = partial(
            checkpoint_of,
            self.setup,
            self.standing,
            states,
            in_pieces=is_host_short(self.setup),
            micro_batch_size=self.runner.micro_batch_size,
            validation_size=self.validation_size,
            position=None if position is None else dict(position),
            finished=finished,
            spec=self.relief.spec_at_restart(),
        )
        found = attempt(make)
        if isinstance(found, OutOfMemory):
            found = _persisted(partial(make, in_pieces=True))
        checkpoint = found
        saved = []
        for name in names:
            try:
                _persisted(partial(save_checkpoint, self.folder.weights / name, checkpoint))
                saved.append(name)
                self._unsaved.discard(name)
            except UnsavedError as error:
                self._save_elsewhere(name, checkpoint, error)
        if LAST in saved:
            self._rescued = None
            drop_rescued(self.folder.path)
        facts: dict[str, object] = {"epoch": checkpoint.epoch, "files": saved}
        if position is not None:
            facts["images"] = position["images_seen"]
        self.announce("saved", facts)
        return saved

    def _save_elsewhere(self, name: str, checkpoint: Checkpoint, error: UnsavedError) -> None:
        """Save what found no room in the run folder in a second place, and say so once.

        Raises:
            BadInputError: the run is over and its weights are not in the run folder.
        """
        place = rescue(self.folder.path, checkpoint) if name == LAST else None
        if name == LAST:
            self._rescued = place
        where = "" if place is None else f" The state is saved in {place} instead."
        if checkpoint.finished and name == LAST:
            raise BadInputError(f"{error}{where} Make room, then continue with --resume.")
        # At each save the same would be said again.
        if name not in self._unsaved:
            self._unsaved.add(name)
            self.records.warn(f"{error}{where} Training goes on; make room.")

    def _summary(self, seconds: float, *, stopped_early: bool) -> RunSummary:
        standing, memory, session = self.standing, self.records.memory, self._session
        size = self.runner.micro_batch_size
        return RunSummary(
            draws=not self.setup.options.noplots,
            run_folder=Path(self.folder.path),
            epochs_done=standing.epochs_done,
            stopped_early=stopped_early,
            best_epoch=standing.best_epoch + 1,
            best_metrics=standing.best_metrics,
            metrics=standing.metrics,
            seconds=round(seconds, 3),
            images_per_second=round(session.images / max(session.training_seconds, 1e-9), 3),
            micro_batch_size=size,
            accumulation_steps=self.runner.parts_a_step,
            back_offs=self.records.back_offs,
            allocated_peak_bytes=memory.allocated_peak_bytes,
            reserved_peak_bytes=memory.reserved_peak_bytes,
            device_used_peak_bytes=memory.device_used_peak_bytes,
            host_resident_peak_bytes=memory.host_resident_peak_bytes,
        )
