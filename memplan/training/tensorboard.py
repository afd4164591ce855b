"""The run's records as TensorBoard events too; an optional extra, and files only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from memplan.errors import BadInputError

if TYPE_CHECKING:
    from memplan.training.run_folder import RunFolder

# Where a column of results.csv is shown; the rest name their section.
_SECTIONS = {
    "micro_batch_size": "batch",
    "accumulation_steps": "batch",
    "steps": "batch",
    "seconds": "speed",
    "images_per_second": "speed",
}


def check_tensorboard() -> None:
    """Check that events can be written.

    Raises:
        BadInputError: the package is missing; the message names the extra that brings it.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401 - its import looks for the package
    except ImportError:
        raise BadInputError(
            "--tensorboard needs the package tensorboard, which is not installed. "
            "Install it with: pip install 'memplan[tensorboard]'"
        ) from None


class TensorBoardRecords:
    """Writes losses, metrics, rates, speed and peak memory an epoch, while it is entered.

    Events go to `tensorboard/` in the run folder; a resumed run goes on there, and what it repeats
    replaces what was there.

    Args:
        folder: whose rows are followed.
        epochs_done: of the run before this session.
    """

    def __init__(self, folder: RunFolder, epochs_done: int) -> None:
        self._folder = folder
        self._epochs_done = epochs_done
        self._writer: Any = None
        self._peaks: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Follow the folder's rows from here on."""
        from torch.utils.tensorboard import SummaryWriter

        where = str(self._folder.path / "tensorboard")
        self._writer = SummaryWriter(where, purge_step=self._epochs_done + 1)
        self._folder.on_result = self._add_result
        self._folder.on_memory = self._add_memory
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is left."""
        self._writer.close()

    def _add_memory(self, row: Mapping[str, Any]) -> None:
        """Keep the epoch's highest; rows are too many to be events each."""
        for name, value in row.items():
            if name.endswith("_bytes") and value is not None:
                self._peaks[name] = max(self._peaks.get(name, 0.0), float(value))

    def _add_result(self, row: Mapping[str, Any]) -> None:
        epoch = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch" and math.isfinite(value):
                tag = f"{_SECTIONS[name]}/{name}" if name in _SECTIONS else name
                self._writer.add_scalar(tag, value, epoch)
        for name, peak in self._peaks.items():
            self._writer.add_scalar(f"memory/{name}", peak, epoch)
        self._peaks.clear()
        self._writer.flush()
