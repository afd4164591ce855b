"""One process a device from a single command such as --device 0,1, as `torchrun` starts them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(command: Sequence[str], count: int) -> int:
    """Run a command as `count` processes that find each other, and return the exit code.

    The first process writes where this one does. What the others write is shown when one of them
    fails first. Ctrl-C and SIGTERM reach all of them; where one ends badly the others get SIGTERM,
    and SIGKILL half a minute later.

    Args:
        command: the program and its arguments.
        count: processes, >= 2.

    Source: torch.distributed.run and torch.distributed.launcher.api (PyTorch 2.11), of whose agent
    this is the single-machine form (`torchrun --standalone`).
    """
    # As torchrun: else every process takes all cores for itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Its tables of failures say less than the failed process does.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # The agent leaves its handlers behind.
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in caught}
    try:
        return _launched(command, count)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _launched(command: Sequence[str], count: int) -> int:
    program, *arguments = command
    with tempfile.TemporaryDirectory(prefix="memplan-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(
                log_dir=logs,
                redirects={rank: Std.ALL if rank else Std.NONE for rank in range(count)},
            ),
        )
        try:
            elastic_launch(config, program)(*arguments)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            for log in Path(logs).glob(f"**/{rank}/stderr.log" if rank else "nothing"):
                sys.stderr.write(log.read_text(errors="replace"))
            code = int(failure.exitcode)
            return 128 - code if code < 0 else code
    return 0
