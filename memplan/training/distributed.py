"""Processes that train together: the group they form, and what they agree on.

Each process (rank) has its own device and its part of every step's images; `exchange` sums the
gradients. What is agreed on here travels between CPUs. A rank that ends closes its connections,
which the others notice in their next exchange; one that only stands still is given `patience`.

Limits: the path over NCCL has not run on cards yet; gloo on CPUs is what the tests run.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from memplan.errors import BadInputError, MemplanError

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together; alone by default.

    Every method but the properties must be called by all ranks, in the same order.
    """

    rank: int = 0
    """Place among all, 0-based; rank 0 alone evaluates, saves and prints."""
    size: int = 1
    """Processes, on all machines."""
    local_rank: int = 0
    """Place among those of this machine."""

    patience: timedelta = timedelta(minutes=10)
    """How long another process may be late to an exchange."""

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the records."""
        return self.rank == 0

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether any rank raised it."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        with other_is_gone():
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def share(self, value: Any) -> Any:
        """Return rank 0's value."""
        if self.size == 1:
            return value
        values = [value]
        with other_is_gone():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's value, by rank; None on all ranks but 0."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        with other_is_gone():
            dist.gather_object(value, values, dst=0)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the ranks, where it was; each gives the same shape."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        with other_is_gone():
            dist.all_reduce(total)
        return total

    def send_model(self, model: torch.nn.Module) -> None:
        """Give all ranks rank 0's parameters and buffers, in place."""
        if self.size == 1:
            return
        with other_is_gone():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def alone(self, work: Callable[[], _T]) -> _T:
        """Return on all ranks what rank 0's work returns, however long that takes.

        The others wait in rounds of a part of the time-out each, so that a rank that is lost
        meanwhile ends the run as soon as ever.
        """
        if self.size == 1:
            return work()
        if self.is_first:
            with self._keeping_others():
                value = work()
            self.share(False)
            return cast("_T", self.share(value))
        while self.share(None):
            pass
        return cast("_T", self.share(None))

    @contextmanager
    def _keeping_others(self) -> Iterator[None]:
        """Tell the others now and then to wait on, from a thread, while rank 0 is at work."""
        done = threading.Event()
        lost: list[RankLostError] = []

        def tell() -> None:
            while not done.wait(self.patience.total_seconds() / 4):
                try:
                    self.share(True)
                except RankLostError as error:
                    lost.append(error)
                    return

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if lost:
            raise lost[0]


class RankLostError(MemplanError):
    """Another process of the run ended, or did not answer within the time-out."""


@contextmanager
def other_is_gone() -> Iterator[None]:
    """Say in one line that another process is gone, which is what a failed exchange means.

    Raises:
        RankLostError: it is.
    """
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error)
        # The exchange's own words; a model's errors are others.
        if not isinstance(error, dist.DistError) and not re.search("gloo|NCCL|TCPStore", text):
            raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = text.strip().splitlines()[0] if text else type(error).__name__
        reason = re.sub(r"^\[[^\]]*\]\s*", "", reason)  # the place in the library
        lasts = re.search(r"time(d )?-?out", reason, re.IGNORECASE)
        what = "did not answer in time" if lasts else "is gone"
        advice = (
            "Where it was only slow, give more minutes in --rank-timeout; else its own message "
            "says why"
            if lasts
            else "Its own message, where it left one, says why"
        )
        raise RankLostError(
            f"Another process of this run {what} ({reason[:_LONGEST_REASON]}). {advice}; then "
            "continue with --resume."
        ) from None


_LONGEST_REASON = 160


def is_one_of_several(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether this process was started beside others, as torchrun does."""
    found = os.environ if environment is None else environment
    return int(found.get("WORLD_SIZE") or 1) > 1


def place_in_machine() -> tuple[int, int]:
    """Return this process's place among those of its machine, and how many they are."""
    if not is_one_of_several():
        return 0, 1
    size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"]
    return int(os.environ.get("LOCAL_RANK") or 0), int(size)


def join(device: torch.device, minutes: float = 10.0) -> Ranks:
    """Return this process's place, in a group with the others once they have come too.

    Args:
        device: where this process trains.
        minutes: that another process may be late to an exchange.

    Raises:
        BadInputError: the others cannot be reached.

    Source: the environment that torchrun sets (torch.distributed.run, PyTorch 2.11).
    """
    if not is_one_of_several():
        return Ranks()
    patience = timedelta(minutes=minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Its functions have the group of the time of their import as a default argument. Imported
        # later by some module, they would keep the group's threads alive beyond `leave`, into the
        # interpreter's end, where such a thread aborts the process ("terminate called without an
        # active exception") after a run that went well.
        importlib.import_module("torch.distributed.nn.functional")
        # Flags and states travel between CPUs, so that asking does not wait for the device.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            store, rank, size = next(rendezvous("env://", timeout=patience))
            store.set_timeout(patience)
            # The agent's store outlives a restart, and so do the addresses that ended processes
            # left in it: a process that came first would try to reach those.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
            store = distributed_c10d.PrefixStore(f"memplan/{attempt}", store)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=patience
            )
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(
                f"The processes of this run cannot reach each other: {reason}. Start them with "
                "torchrun --nproc-per-node N -m memplan train ..."
            ) from None
    return Ranks(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=place_in_machine()[0],
        patience=patience,
    )


def leave() -> None:
    """Leave the group, if this process is in one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def synchronise_norms(
    model: torch.nn.Module, device: torch.device, ranks: Ranks
) -> torch.nn.Module:
    """Return the model with batch norm over all ranks' images, its parameters the same objects.

    Raises:
        BadInputError: on a CPU, where PyTorch's SyncBatchNorm does not run.
    """
    if ranks.size == 1:
        return model
    if device.type != "cuda":
        raise BadInputError(
            "--sync-bn needs GPUs: PyTorch's SyncBatchNorm does not run on a CPU. Leave it out."
        )
    convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    converted: torch.nn.Module = convert(model)
    return converted
