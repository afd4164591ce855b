"""What memplan makes of bad files and bad command lines: tracebacks, hangs, memory.

    python -m benchmarks.bad_input --files 2000 --commands 330

Each case runs in a worker process through the command line's own entry, with a time limit and a
memory limit; a worker that exceeds one is ended and counted. Nothing here needs a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.bad_input_cases import Case, command_cases, file_cases, laid
from benchmarks.bad_input_files import make_kinds
from memplan.host_memory import resident_peak_bytes

GIB = 1 << 30
TIME_LIMIT = 60.0  # seconds; what a slow machine needs for the slowest good answer, four times over
MEMORY_LIMIT = 2 * GIB


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    case: Case
    result: str
    """`answered`, `refused`, `traceback`, `hang` or `memory`."""
    seconds: float
    peak_bytes: int
    """Resident memory of the worker so far, at most."""
    detail: str = ""


def run_case(case: Case) -> tuple[str, str]:
    """Return what a command makes of a case, and the traceback where there is one."""
    from memplan.cli import exit_code

    said, errors = io.StringIO(), io.StringIO()
    arguments = [word.replace("{file}", case.place) for word in case.arguments]
    sys.argv = ["memplan", *arguments]
    try:
        with laid(case), contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = exit_code(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - what reaches a user as a traceback is what is counted
        return "traceback", traceback.format_exc()
    message = errors.getvalue()
    if "Traceback" in message:
        return "traceback", message
    if code and not message.strip() and not said.getvalue().strip():
        return "traceback", f"exit code {code} without a word"
    return ("refused" if code else "answered"), message.strip()[-300:]


def _work(pipe: Connection, folder: str) -> None:
    """Run cases as they come until there are no more."""
    os.chdir(folder)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        os.environ[name] = folder
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (case := pipe.recv()) is not None:
        start = time.monotonic()
        result, detail = run_case(case)
        peak = resident_peak_bytes()
        pipe.send((result, detail, time.monotonic() - start, peak))


class _Worker:
    """A process that runs cases, made anew when one ends it."""

    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, folder), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, case: Case) -> Outcome:
        """Return what came of a case within its limits."""
        start = time.monotonic()
        self.pipe.send(case)
        while not self.pipe.poll(0.2):
            seconds = time.monotonic() - start
            resident = _resident(self.process.pid)
            if seconds > TIME_LIMIT or resident > MEMORY_LIMIT:
                self.stop()
                what = "memory" if resident > MEMORY_LIMIT else "hang"
                return Outcome(case, what, seconds, resident)
            if not self.process.is_alive() and not self.pipe.poll(0.2):
                code = self.process.exitcode
                return Outcome(case, "traceback", seconds, resident, f"ended with {code}")
        result, detail, seconds, peak = self.pipe.recv()
        return Outcome(case, "memory" if peak > MEMORY_LIMIT else result, seconds, peak, detail)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()


def _resident(pid: int | None) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def run_all(cases: Sequence[Case], folder: str) -> Iterator[Outcome]:
    """Yield what came of each case."""
    worker = _Worker(folder)
    try:
        for case in cases:
            outcome = worker.run(case)
            if not worker.process.is_alive():
                worker.stop() if not worker.pipe.closed else None
                worker = _Worker(folder)
            yield outcome
    finally:
        worker.stop()


def make_cases(folder: Path, num_files: int, num_commands: int, seed: int) -> list[Case]:
    """Return the cases; good files are made in the folder, which is where they run."""
    kinds, bases = make_kinds(folder)
    return [
        *file_cases(kinds, num_files, seed),
        *command_cases(bases, seed, num_commands),
    ]


RESULTS = ("answered", "refused", "traceback", "hang", "memory")


def rows_of(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Return a row for each kind of case, and one for all."""
    kinds = sorted({one.case.kind for one in outcomes})
    rows = []
    for kind in [*kinds, ""]:
        chosen = [one for one in outcomes if kind in {"", one.case.kind}]
        counts = Counter(one.result for one in chosen)
        slowest = max(one.seconds for one in chosen)
        peak = max(one.peak_bytes for one in chosen) / GIB
        cells = [str(counts[result]) for result in RESULTS]
        rows.append((kind or "all", str(len(chosen)), *cells, f"{slowest:.1f}", f"{peak:.2f}"))
    return rows


def main() -> None:
    """Run the cases and publish the table; exit 1 where anything was not answered or refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, metavar="N")
    parser.add_argument("--commands", type=int, default=330, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--show", action="store_true", help="Print what every case said.")
    parser.add_argument("--draft", action="store_true", help="Do not write the table.")
    chosen = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder), chosen.files, chosen.commands, chosen.seed)
        for number, outcome in enumerate(run_all(cases, folder)):
            outcomes.append(outcome)
            if chosen.show or outcome.result not in {"answered", "refused"}:
                case, lines = outcome.case, outcome.detail.strip().splitlines()[-6:]
                what = (number, outcome.result, case.kind, case.change, case.arguments[-3:])
                print(*what, *lines, sep="\n    ", flush=True)
            if number % 100 == 0:
                print(f"{number} of {len(cases)}", file=sys.stderr, flush=True)
    _publish(outcomes, chosen)
    sys.exit(any(one.result not in {"answered", "refused"} for one in outcomes))


def _publish(outcomes: list[Outcome], chosen: argparse.Namespace) -> None:
    from benchmarks.common import publish
    from memplan.present.section import aligned as table

    header = ("Bad", "Cases", "Answered", "Refused", "Tracebacks", "Hangs", "Over 2 GiB",
              "Slowest s", "Peak GiB")  # fmt: skip
    rows = rows_of(outcomes)
    if chosen.draft:
        print(table(header, rows))
        return
    publish(
        "bad_input",
        "Bad files and bad command lines",
        header,
        rows,
        [
            "Refused: an error message and an exit code. Answered: the change did no harm.",
            f"A hang is a case of more than {TIME_LIMIT:.0f} s; peaks are of a worker that runs "
            "many cases, resident.",
            "Files: bits, bytes, numbers, types and structure changed by seed, checksums made "
            "right again where the format has them; and pipes, devices, folders in their place.",
        ],
        command=f"bad_input --files {chosen.files} --commands {chosen.commands} "
        f"--seed {chosen.seed}",
    )


if __name__ == "__main__":
    main()
