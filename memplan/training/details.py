"""What a run leaves beside its rows: pictures of the data before it, details of the best after.

Both come from the workload, where it offers them: `PicturedData` and `DetailedEvaluator` of
`memplan.workload`. Whatever goes wrong in a picture is worth a warning, never a run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from memplan.errors import MemplanError
from memplan.training.checkpoint import load_checkpoint
from memplan.training.random_states import capture_random_states, restore_random_states
from memplan.training.validation import validate
from memplan.workload import DetailedEvaluator, Evaluator, PicturedData

if TYPE_CHECKING:
    from memplan.training.run_folder import RunFolder
    from memplan.training.setup import Setup


class Details:
    """Asks the workload for pictures and tables, in the process that keeps the records.

    Args:
        setup: what is trained.
        folder: the run's.
        warn: told what did not work.
    """

    def __init__(self, setup: Setup, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self._setup = setup
        self._folder = folder
        self._warn = warn

    def draw_data(self) -> None:
        """Draw what is about to be trained on, unless `--noplots` or `--epochs 0` is given."""
        options, data = self._setup.options, self._setup.data
        if options.noplots or not options.epochs or not isinstance(data, PicturedData):
            return
        plots = self._folder.path / "plots"
        states = capture_random_states()
        try:
            plots.mkdir(exist_ok=True)
            data.write_pictures(
                plots,
                micro_batch_size=self._setup.micro_batch_size,
                augment_fully=options.augments_fully(0),
            )
        except Exception as error:  # noqa: BLE001 - a picture is not worth a run
            self._warn(f"The data could not be drawn ({_reason(error)}).")
        finally:
            restore_random_states(states)

    def of_best(
        self,
        latest: Evaluator | None,
        validation_size: int,
        is_asked_to_stop: Callable[[], bool],
        *,
        is_latest_best: bool,
    ) -> str:
        """Write the best epoch's details and return their text, empty where there is none.

        Where the latest evaluation was not of the best epoch, `best.pt` is evaluated once more.

        Args:
            latest: of the last evaluation; None where there was none.
            validation_size: images at once.
            is_asked_to_stop: asked before each batch of another evaluation.
            is_latest_best: whether `latest` saw the best weights.
        """
        if not isinstance(latest, DetailedEvaluator):
            return ""
        try:
            # A run that goes on in another folder may have no better weights there.
            best = self._folder.weights / "best.pt"
            evaluator: DetailedEvaluator | None = latest
            if not is_latest_best and best.exists():
                evaluator = self._evaluate(best, validation_size, is_asked_to_stop)
            if evaluator is None:
                return ""
            draws = not self._setup.options.noplots
            return evaluator.write_details(self._folder.path, draws=draws)
        except Exception as error:  # noqa: BLE001 - the run is done and saved
            self._warn(f"The details of the evaluation could not be written ({_reason(error)}).")
            return ""

    def _evaluate(
        self, path: Path, size: int, is_asked_to_stop: Callable[[], bool]
    ) -> DetailedEvaluator | None:
        """Return what evaluated a checkpoint's weights, None where it was asked to stop."""
        step = self._setup.step
        best = load_checkpoint(path)
        evaluated = step.model if step.average is None else step.average.model
        evaluated.load_state_dict(best.model if best.ema is None else best.ema)
        evaluator = self._setup.data.evaluator()
        metrics, _ = validate(
            self._setup,
            size,
            lambda message, size: self._warn(f"Out of memory ({message}): now {size} at once."),
            is_asked_to_stop,
            evaluator,
        )
        return evaluator if metrics and isinstance(evaluator, DetailedEvaluator) else None


def _reason(error: Exception) -> str:
    """Return an error as a few words; memplan's own ones are a sentence already."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, MemplanError):
        text = f"{type(error).__name__}: {text}" if str(error) else text
    return text.rstrip(".")
