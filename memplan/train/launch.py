"""One process a device, as `torchrun` starts them, from a single command such as --device 0,1."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

_POLL_SECONDS = 0.1
# What a process gets to save its last step in after another one failed.
_GRACE_SECONDS = 30.0


def launch(command: Sequence[str], count: int) -> int:
    """Run a command as `count` processes that find each other, and return the exit code.

    The first process writes where this one does. What the others write on standard error is shown
    when one of them fails; their standard output is dropped. Ctrl-C and SIGTERM reach all of them.

    Args:
        command: the program and its arguments.
        count: processes, >= 2.

    Source: the environment variables of torch.distributed.run (PyTorch 2.11).
    """
    logs = [tempfile.TemporaryFile() for _ in range(count - 1)]  # noqa: SIM115 - closed below
    port = str(_free_port())
    processes = [
        _start(command, rank, count, port, logs[rank - 1] if rank else None)
        for rank in range(count)
    ]

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        # A terminal's Ctrl-C reaches the whole group by itself.
        if number == signal.SIGTERM:
            _signal(processes, number)

    caught = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, pass_on) for number in caught}
    try:
        failed = _wait(processes)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if failed:
        log = logs[failed - 1]
        log.seek(0)
        sys.stderr.write(log.read().decode(errors="replace"))
    for log in logs:
        log.close()
    # The first one's message is on the terminal already.
    code = processes[failed or 0].returncode
    return 128 - code if code < 0 else code


def _start(
    command: Sequence[str], rank: int, count: int, port: str, log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {
        **os.environ,
        **{name: str(value) for name, value in place.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    # As torchrun: else every process takes all cores for itself.
    environment.setdefault("OMP_NUM_THREADS", "1")
    stdout = None if log is None else subprocess.DEVNULL
    # The command is this program, as the user typed it.
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=log)  # noqa: S603


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the first process that failed once all have ended; None where none did."""
    failed = None
    deadline = float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if failed is None and (bad := [rank for rank, code in enumerate(codes) if code]):
            # Of several at once the first process's message is the one already shown.
            failed = bad[0]
            deadline = time.monotonic() + _GRACE_SECONDS
            _signal(processes, signal.SIGTERM)
        if all(code is not None for code in codes):
            return failed
        if time.monotonic() > deadline:
            _signal(processes, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _signal(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
