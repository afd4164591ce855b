"""Processes that train together: the group they form, and what they agree on.

Each process (rank) has its own device and its part of every step's images. Gradients are summed
over the ranks once a step, after all of its micro-batches. The official recipe reaches the same sum
by multiplying the loss by the number of ranks under DistributedDataParallel, which averages.

Gradients are summed here rather than inside backward, as DistributedDataParallel does, because then
a rank that runs out of memory can say so before anybody waits for its gradients: all ranks repeat
the step smaller. The price is that the exchange does not overlap with backward.

Limits: the path over NCCL has not run on cards yet; gloo on CPUs is what the tests run.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from memplan.errors import BadInputError, MemplanError
from memplan.units import MIB

# As DistributedDataParallel's buckets: large enough that a transfer's start does not count.
_BUCKET_BYTES = 25 * MIB
# Rank 0 evaluates alone meanwhile, which may take long; a rank that dies ends the run at once.
_PATIENCE = timedelta(hours=12)


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

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the records."""
        return self.rank == 0

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether any rank raised it."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        with _told():
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def share(self, value: Any) -> Any:
        """Return rank 0's value."""
        if self.size == 1:
            return value
        values = [value]
        with _told():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any] | None:
        """Return every rank's value, by rank; None on all ranks but 0."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        with _told():
            dist.gather_object(value, values, dst=0)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the ranks, where it was; each gives the same shape."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        with _told():
            dist.all_reduce(total)
        return total

    def send_model(self, model: torch.nn.Module) -> None:
        """Give all ranks rank 0's parameters and buffers, in place."""
        if self.size == 1:
            return
        with _told():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their sum over the ranks.

        A parameter that has a gradient on some ranks only counts as zero on the others, which had
        no image in this step; one that has none anywhere keeps none.
        """
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        wanted = self.agree([parameter.grad is not None for parameter in trained])
        gradients = []
        for parameter, is_wanted in zip(trained, wanted, strict=True):
            if is_wanted and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with _told():
                dist.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield tensors of one type in groups of about `_BUCKET_BYTES`, in order."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


@contextmanager
def _told() -> Iterator[None]:
    """Say in one line that another process is gone, which is what a failed exchange means."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise MemplanError(
            f"Another process of this run is gone ({reason}). Its own message says why; then "
            "continue with --resume."
        ) from None


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


def join(device: torch.device) -> Ranks:
    """Return this process's place, in a group with the others once they have come too.

    Args:
        device: where this process trains.

    Raises:
        BadInputError: the others cannot be reached.

    Source: the environment that torchrun sets (torch.distributed.run, PyTorch 2.11).
    """
    if not is_one_of_several():
        return Ranks()
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
            dist.init_process_group(backend, timeout=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInputError(
                f"The processes of this run cannot reach each other: {reason}. Start them with "
                "torchrun --nproc-per-node N -m memplan train ..."
            ) from None
    return Ranks(rank=dist.get_rank(), size=dist.get_world_size(), local_rank=place_in_machine()[0])


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
