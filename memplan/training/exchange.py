"""Gradients summed over the ranks by DistributedDataParallel, without a rank ever waiting for ever.

DDP sums inside backward, bucket by bucket, so a rank that runs out of memory there leaves the
others in a collective. Three rules keep all ranks in step:

- Micro-batches but the last of a step run under `no_sync`: nothing is exchanged, each rank may fail
  on its own.
- After the last one's forward, and again after its backward, all ranks say (over CPUs) whether
  they found room. If one did not, all drop the step.
- A rank that fails within backward has started some of the buckets' sums. It starts the others
  itself, with what the buckets hold, which nobody will use; the others' backward then ends. The
  buckets' order and memory are known from passes over all parameters that come before training, so
  this needs no memory either. DDP's reducer cannot go on after half a backward, and a forward
  without its backward would make it sum under `no_sync`: after a dropped step all ranks make a new
  one.

Those passes cost next to nothing (a loss of zero times every parameter). They also have DDP make
its buckets anew where nothing else is alive, and not in the second step's forward, where one rank
out of memory would leave the others in a broadcast.

The hook sums, where DDP by itself averages: the official recipe multiplies its loss by the number
of ranks to the same end.

What cannot live under DDP, and why:

- Broadcast buffers: a collective in forward, before which a rank may have given up. Of batch norm
  nothing is lost, since training does not read the statistics and rank 0's are the ones that are
  saved.
- The guard with SyncBatchNorm, whose forward and backward wait for all ranks in every layer: no
  rank can be left out of those. Running out of memory then ends the run.

Source: torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp, PyTorch 2.11.

Limits: over NCCL this has not run on cards; gloo on CPUs is what the tests run.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from memplan.device.distributed import DataParallel
from memplan.errors import BadInputError
from memplan.step.run import TrainingStep
from memplan.training.distributed import RankLostError, other_is_gone
from memplan.workload import Batch, Workload

Losses = tuple[torch.Tensor, torch.Tensor]


class _Loss(torch.nn.Module):
    """A workload's loss as the module that DDP wraps, so that any way to use the model counts."""

    def __init__(self, workload: Workload, model: torch.nn.Module, *, touches_all: bool) -> None:
        super().__init__()
        self.model = model
        self._workload = workload
        self._touches_all = touches_all

    def forward(self, batch: Batch | None) -> Losses:
        """Return loss and parts; without images a zero that gives parameters zero gradients."""
        if batch is not None:
            return self._workload.compute_loss(self.model, batch)
        trained = [one for one in self.model.parameters() if one.requires_grad]
        zeros = [one.sum() * 0 for one in (trained if self._touches_all else trained[:1])]
        total = zeros[0]
        for zero in zeros[1:]:
            total = total + zero
        return total, total.detach()[None]


class _Sums:
    """The buckets' sums over the ranks: the communication hook, and what it has started."""

    def __init__(self, num_parameters: int, device: torch.device, *, sums_used: bool) -> None:
        self.buckets: list[torch.Tensor] = []
        """Every bucket's memory, in the order in which they are summed."""
        self.started: list[dist.Work] = []
        # With unused parameters looked for, the last bucket is followed by the map of used ones.
        self._used = (
            torch.zeros(num_parameters, dtype=torch.int32, device=device) if sums_used else None
        )

    def start(self, bucket: torch.Tensor) -> dist.Work:
        """Start the sum of the next bucket."""
        if len(self.started) == len(self.buckets):
            self.buckets.append(bucket)
        work: dist.Work = dist.all_reduce(bucket, async_op=True)
        self.started.append(work)
        return work

    def complete(self) -> bool:
        """Start what this rank left out of a backward, and return whether that was anything."""
        left_out = self.buckets[len(self.started) :]
        with other_is_gone():
            for bucket in left_out:
                self.start(bucket)
            if left_out and self._used is not None:
                self.started.append(dist.all_reduce(self._used, async_op=True))
            for work in self.started if left_out else []:
                work.wait()
        return bool(left_out)


def _sum_bucket(sums: _Sums, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    future = sums.start(bucket.buffer()).get_future()
    done: torch.futures.Future[torch.Tensor] = future.then(lambda one: one.value()[0])
    return done


# DDP compares annotations with its types, and here they are text.
_sum_bucket.__annotations__ = {}


class GradientExchange:
    """A training step's model under DDP.

    Every method must be called by all ranks, in the same order, but for `local`.

    Args:
        step: of this rank; its loss is DDP's from here on.
        policy: how DDP is set up.

    Raises:
        BadInputError: nothing is trained.
    """

    def __init__(self, step: TrainingStep, policy: DataParallel) -> None:
        self._step = step
        self.policy = policy
        self._ddp: DistributedDataParallel | None = None
        self._sums: _Sums | None = None
        self.open()

    def open(self, *, finds_unused: bool = False) -> None:
        """Make DDP anew, and its buckets for good, after a dropped step.

        Args:
            finds_unused: look for parameters without gradients from here on.
        """
        step = self._step
        self.close()
        if finds_unused:
            self.policy = replace(self.policy, find_unused_parameters=True)
        keeps = not self.policy.find_unused_parameters
        trained = [one for one in step.model.parameters() if one.requires_grad]
        if not trained:
            raise BadInputError("--freeze leaves no layer to train. Freeze fewer.")
        loss = _Loss(step.workload, step.model, touches_all=keeps)
        sums = self._sums = _Sums(len(trained), step.device, sums_used=not keeps)
        with other_is_gone():
            self._ddp = DistributedDataParallel(loss, **self.policy.arguments())
            hook: Any = _sum_bucket
            self._ddp.register_comm_hook(sums, hook)
            for _ in range(2):  # of the first, DDP learns the buckets that the second one has
                sums.buckets.clear()
                sums.started.clear()
                self._ddp(None)[0].backward()
        step.compute_loss = self._ddp
        # Gradients stay where they are, in the buckets. One that no rank has must stay away, since
        # the optimizer would decay its weight.
        step.keeps_gradients = keeps
        step.release_gradients()

    def close(self) -> None:
        """Take DDP away.

        Its reducer must be gone at once, whose hooks would sum beside those of a new one, and which
        keeps the group's threads alive; so the collector of cycles is not waited for.
        """
        if self._ddp is None:
            return
        self._step.optimizer.zero_grad(set_to_none=True)
        self._step.reset_loss()
        self._step.keeps_gradients = False
        self._ddp = None
        self._sums = None
        gc.collect()

    @contextlib.contextmanager
    def local(self) -> Iterator[None]:
        """Exchange nothing inside, as gradients are gathered."""
        assert self._ddp is not None
        with self._ddp.no_sync():
            yield

    def backward(self, loss: torch.Tensor) -> bool:
        """Differentiate a step's last loss, summing over the ranks; return whether DDP could.

        It could not where a parameter has no gradient: `open(finds_unused=True)` is for that.
        """
        assert self._sums is not None
        self._sums.started.clear()
        try:
            with other_is_gone():
                self._step.backward(loss)
        except RankLostError:
            raise
        except Exception:
            # Whatever it is, the others wait for this rank's part.
            self._sums.complete()
            raise
        return not self._sums.complete()
