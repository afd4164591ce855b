"""The folder a run leaves behind: options, results an epoch, memory a few steps, events.

A disk that is full, or gone for a while, costs records but not the run: what cannot be written is
said once, and the next write tries again.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memplan.errors import BadInputError
from memplan.files import Source, write_text
from memplan.files.structures import sealed
from memplan.files.writing import numbered_folder

if TYPE_CHECKING:
    from memplan.answers import PlanAnswer
    from memplan.training.options import TrainOptions

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
_RECORDS = (
    "results.csv",
    "memory.csv",
    "per_class.csv",
    "events.jsonl",
    "plan.json",
    "args.yaml",
    "hyp.yaml",
)
_OF_OTHERS = "memory_rank*.csv"
_LOCK = ".lock"


class RunFolder:
    """Writes a run's records; every file is whole, or whole but for its last line, at any moment.

    Args:
        path: the folder, which exists.
        writes: False in processes that leave the records to another.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.last_step = -1
        """The step of the newest row of training in `memory.csv`; -1 where there is none."""
        self.complain: Callable[[str], None] = lambda _: None
        """Told, once for each file, that it cannot be written."""
        self.on_result: Callable[[Mapping[str, Any]], None] = lambda _: None
        """Told each row of `results.csv`."""
        self.on_memory: Callable[[Mapping[str, Any]], None] = lambda _: None
        """Told each row of `memory.csv`."""
        self.notes: list[str] = []
        """What was found wrong with earlier records, a sentence each."""
        self._writes = writes
        self._results: list[dict[str, Any]] = []
        self._troubled: set[str] = set()
        self._lock: int | None = None

    @property
    def weights(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "weights"

    def lock(self) -> None:
        """Keep other runs out of the folder until `release`, or until this process is gone.

        Raises:
            BadInputError: another run is at work in it, or it cannot be written.
        """
        path = self.path / _LOCK
        while self._lock is None:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                handle = os.open(path, flags, 0o666)
            except OSError as error:
                raise _unwritable(self.path, error) from None
            try:
                # Not flock, which loader processes would inherit and outlive this one with.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                os.close(handle)
                raise BadInputError(
                    f"Another run is at work in {self.path}. Wait for it, or give another --name."
                ) from None
            except OSError:
                pass  # a file system without locks
            # The run that held it may have removed the file just then.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
                self._lock = handle
            else:
                os.close(handle)

    def check_files(self) -> None:
        """Check that a folder which may come from somebody else leads nowhere else.

        Raises:
            BadInputError: it holds links or pipes, which a run does not make and would write to.
        """
        for place, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                path = Path(place, name)
                mode = path.lstat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    kind = "link" if stat.S_ISLNK(mode) else "pipe, a socket or a device"
                    raise BadInputError(
                        f"{path} is a {kind}, which a run does not make. Remove it, or put the "
                        "file that it leads to there, and resume again."
                    )

    def release(self) -> None:
        """Let other runs into the folder."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.path / _LOCK).unlink()
            os.close(self._lock)
            self._lock = None

    def write_settings(
        self,
        options: TrainOptions,
        workload: str,
        hyperparameters: Mapping[str, float],
        plan: PlanAnswer | None,
    ) -> None:
        """Write `args.yaml`, `hyp.yaml` and, with a plan, `plan.json`.

        Raises:
            BadInputError: the folder cannot be written.
        """
        import yaml

        if not self._writes:
            return
        # The hyperparameters have a file of their own.
        record = {"workload": workload, **options.as_record(), "hyperparameters": None}
        try:
            write_text(self.path / "args.yaml", yaml.safe_dump(record, sort_keys=False))
            write_text(
                self.path / "hyp.yaml", yaml.safe_dump(dict(hyperparameters), sort_keys=False)
            )
            if plan is not None:
                write_text(
                    self.path / "plan.json", json.dumps(sealed(plan.to_json()), indent=1) + "\n"
                )
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def add_result(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row to `results.csv`; columns may join in later epochs."""
        import pandas as pd

        self._results.append(dict(row))
        text = pd.DataFrame(self._results).to_csv(index=False)
        self._try("results.csv", lambda path: write_text(path, text))
        self.on_result(row)

    def add_memory(self, row: Mapping[str, Any], rank: int = 0) -> None:
        """Append a row to `memory.csv`; None becomes an empty field.

        Args:
            row: by `MEMORY_COLUMNS`.
            rank: whose it is; of another process than the first it goes to `memory_rankN.csv`.
        """
        name = f"memory_rank{rank}.csv" if rank else "memory.csv"
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, MEMORY_COLUMNS, lineterminator="\n")
        if not (self.path / name).exists():
            writer.writeheader()
        writer.writerow(dict(row))
        self._try(name, lambda path: _append(path, text.getvalue()))
        if rank:
            return
        if row["phase"] == "train":
            self.last_step = row["step"]
        self.on_memory(row)

    def add_event(self, name: str, facts: Mapping[str, Any]) -> None:
        """Append an event to `events.jsonl` and make it durable."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": name, **facts})
        self._try("events.jsonl", lambda path: _append(path, f"{line}\n", durable=True))

    def rewind(self, epoch: int, step: int | None = None) -> None:
        """Drop what was recorded after a checkpoint, which will be recorded again.

        Events stay, for they tell what happened; a line that a crash left half-written goes.

        Args:
            epoch: epochs done.
            step: steps of the optimizer done, also those of the epoch under way; None where the
                checkpoint is between epochs.

        Raises:
            BadInputError: the folder cannot be written.
        """
        if not self._writes:
            return
        try:
            self._rewind_results(epoch)
            self._rewind_memory(epoch, step)
            self._keep_lines("events.jsonl", _is_json)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def _rewind_results(self, epoch: int) -> None:
        import pandas as pd

        path = self.path / "results.csv"
        if not path.exists():
            return
        try:
            table = pd.read_csv(io.StringIO(_records(path).text()))
            table = table[table["epoch"] <= epoch]
        except (BadInputError, ValueError, KeyError, TypeError):
            self._set_aside(path)
            return
        self._results = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
        write_text(path, table.to_csv(index=False))

    def _rewind_memory(self, epoch: int, step: int | None) -> None:
        def is_wanted(line: str) -> bool:
            values = line.split(",")
            if len(values) != len(MEMORY_COLUMNS):
                return False
            if values == list(MEMORY_COLUMNS):
                return True
            if not (_is_count(values[0]) and _is_count(values[1])):
                return False
            if int(values[0]) <= epoch:
                return True
            # Of the epoch under way, what its steps recorded up to the checkpoint.
            if step is None or values[2] != "train" or int(values[1]) > step:
                return False
            self.last_step = int(values[1])
            return True

        self._keep_lines("memory.csv", is_wanted)
        last = self.last_step
        for path in sorted(self.path.glob(_OF_OTHERS)):
            self._keep_lines(path.name, is_wanted)
        self.last_step = last

    def _keep_lines(self, name: str, wanted: Callable[[str], bool]) -> None:
        path = self.path / name
        if not path.exists():
            return
        try:
            lines = _records(path).text().splitlines()
        except BadInputError:
            self._set_aside(path)
            return
        write_text(path, "".join(f"{line}\n" for line in lines if wanted(line)))

    def _set_aside(self, path: Path) -> None:
        """Keep damaged records for people to look at; the run goes on without them."""
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        self.notes.append(f"{path} cannot be read; it is kept as {aside.name} and begun anew.")

    def _try(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a record, or say once that it cannot be written."""
        if not self._writes:
            return
        try:
            write(self.path / name)
        except OSError as error:
            if name not in self._troubled:
                self._troubled.add(name)
                self.complain(
                    f"{self.path / name} cannot be written: {error.strerror}. Training goes on; "
                    "make room for its records."
                )
            return
        self._troubled.discard(name)


def create_run_folder(project: Path, name: str, *, exist_ok: bool) -> RunFolder:
    """Return a fresh, locked run folder `project/name`, or `name2`, `name3`... where that exists.

    Args:
        project: made when missing.
        name: of the folder.
        exist_ok: take `project/name` even so, and replace its records.

    Raises:
        BadInputError: the folder cannot be made or written, or another run is at work in it.
    """
    folder = RunFolder(numbered_folder(project, name, exist_ok=exist_ok))
    folder.lock()
    try:
        others = (path.name for path in folder.path.glob(_OF_OTHERS))
        for record in (*_RECORDS, *others):
            (folder.path / record).unlink(missing_ok=True)
        folder.weights.mkdir(exist_ok=True)
    except OSError as error:
        folder.release()
        raise _unwritable(folder.path, error) from None
    return folder


def _unwritable(path: Path, error: OSError) -> BadInputError:
    return BadInputError(
        f"{path} cannot be written: {error.strerror}. Make room or give another --project."
    )


def _append(path: Path, text: str, *, durable: bool = False) -> None:
    """Append whole lines, or nothing where there is no room for them."""
    content = text.encode()
    # A folder may come from somebody else: a link in it is no file of the run.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(path, flags, 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(handle, content[written:])
            if durable:
                os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def _records(path: Path) -> Source:
    return Source(path=path, what="a run's records", most_bytes=_MOST_RECORDED_BYTES)


_MOST_RECORDED_BYTES = 1 << 30  # of a step's row each, ten million steps


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
