"""The folder a run leaves behind: options, results an epoch, memory a few steps, events."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import BadInputError

if TYPE_CHECKING:
    from memplan.answers import PlanAnswer
    from memplan.train.options import TrainOptions

MEMORY_COLUMNS = (
    "epoch",
    "step",
    "phase",
    "micro_batch_size",
    "predicted_allocated_bytes",
    "predicted_reserved_bytes",
    "predicted_device_used_bytes",
    "live_allocated_bytes",
    "live_reserved_bytes",
    "live_device_used_bytes",
    "host_resident_bytes",
)
_RECORDS = ("results.csv", "memory.csv", "events.jsonl", "plan.json", "args.yaml", "hyp.yaml")


class RunFolder:
    """Writes a run's records; every file is whole, or whole but for its last line, at any moment.

    Args:
        path: the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: list[dict[str, Any]] = []

    @property
    def weights(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "weights"

    def write_settings(
        self,
        options: TrainOptions,
        workload: str,
        hyperparameters: Mapping[str, float],
        plan: PlanAnswer | None,
    ) -> None:
        """Write `args.yaml`, `hyp.yaml` and, with a plan, `plan.json`."""
        import yaml

        # The hyperparameters have a file of their own.
        record = {"workload": workload, **options.as_record(), "hyperparameters": None}
        _replace(self.path / "args.yaml", yaml.safe_dump(record, sort_keys=False))
        _replace(self.path / "hyp.yaml", yaml.safe_dump(dict(hyperparameters), sort_keys=False))
        if plan is not None:
            _replace(self.path / "plan.json", json.dumps(plan.to_json(), indent=1) + "\n")

    def add_result(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row to `results.csv`; columns may join in later epochs."""
        import pandas as pd

        self._results.append(dict(row))
        table = pd.DataFrame(self._results)
        _replace(self.path / "results.csv", table.to_csv(index=False))

    def add_memory(self, row: Mapping[str, Any]) -> None:
        """Append a row to `memory.csv`; None becomes an empty field."""
        path = self.path / "memory.csv"
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, MEMORY_COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(dict(row))

    def add_event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Append an event to `events.jsonl` and make it durable."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": name, **facts})
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def rewind(self, epoch: int) -> None:
        """Drop what was recorded of an epoch (0-based) and later ones, which will run again.

        A line that a crash left half-written is dropped too.
        """
        import pandas as pd

        results = self.path / "results.csv"
        if results.exists():
            table = pd.read_csv(results)
            table = table[table["epoch"] <= epoch]
            self._results = [
                {str(k): v for k, v in row.items()} for row in table.to_dict("records")
            ]
            _replace(results, table.to_csv(index=False))
        _keep_lines(self.path / "memory.csv", lambda line: _is_memory_row(line, epoch))
        _keep_lines(self.path / "events.jsonl", _is_json)


def create_run_folder(project: Path, name: str, *, exist_ok: bool) -> RunFolder:
    """Return a fresh run folder `project/name`, or `name2`, `name3`... where that exists.

    Args:
        project: made when missing.
        name: of the folder.
        exist_ok: take `project/name` even so, and replace its records.

    Raises:
        BadInputError: the folder cannot be made.
    """
    number = 1
    while True:
        path = project / (name if number == 1 else f"{name}{number}")
        try:
            path.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            if exist_ok:
                raise BadInputError(f"{path} is a file. Give another --name.") from None
            number += 1
            continue
        except OSError as error:
            raise BadInputError(f"{path} cannot be made: {error.strerror}.") from None
        break
    for record in _RECORDS:
        (path / record).unlink(missing_ok=True)
    (path / "weights").mkdir(exist_ok=True)
    return RunFolder(path)


def _replace(path: Path, text: str) -> None:
    """Write a small file so that readers see the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _keep_lines(path: Path, wanted: Any) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        _replace(path, "".join(f"{line}\n" for line in lines if wanted(line)))


def _is_memory_row(line: str, epoch: int) -> bool:
    values = line.split(",")
    if len(values) != len(MEMORY_COLUMNS):
        return False
    return not values[0].isdigit() or int(values[0]) <= epoch


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
