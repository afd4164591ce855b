"""Checks that two processes make together, in one start of them, for the tests of their training.

Run by torch.distributed.run; rank 0 writes each check's findings to the file that is named.
"""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import sys
import time
from argparse import Namespace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from memplan_models.yolov9.workload import YoloV9
from train_toy import Toy, toy_options

from memplan.device.distributed import ModelTensors, settled_buckets, training_policy
from memplan.spec import StepSpec
from memplan.step.run import TrainingStep
from memplan.training.distributed import Ranks, join, leave
from memplan.training.epoch import EpochRunner
from memplan.training.exchange import GradientExchange
from memplan.training.loop import Run
from memplan.training.progress import Progress
from memplan.training.run_folder import RunFolder, create_run_folder
from memplan.training.setup import prepare
from memplan.training.watch import Cause, Finding

ON_CARDS = os.environ.get("RANK_CHECKS") == "cuda"
DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if ON_CARDS else torch.device("cpu")
_WIDTH = 2600  # a layer's weights are one of DDP's buckets


class _Trip(torch.autograd.Function):
    """The identity, in whose backward memory runs out."""

    @staticmethod
    def forward(_, x):
        """Return the input."""
        return x.view_as(x)

    @staticmethod
    def backward(*_):
        """Find no room."""
        raise torch.OutOfMemoryError("Tried to allocate 1 GiB in backward.")


class Wide(Toy):
    """Three wide layers, so that there are several buckets; memory runs out where it is told to."""

    def __init__(self, *, trips_at=None, call=1, lacks=False):
        super().__init__(hyperparameters={"weight_decay": 0.1})
        self.trips_at = trips_at
        self.call = call
        self.lacks = lacks
        self.calls = 0

    def build_model(self):
        """Return the layers, and one that no image passes where `lacks`."""
        sizes = [192, _WIDTH, _WIDTH, _WIDTH, 1]
        layers = [torch.nn.Linear(one, two) for one, two in pairwise(sizes)]
        if self.lacks:
            layers.append(torch.nn.Linear(3, 3))
        return torch.nn.ModuleList(layers)

    def compute_loss(self, model, batch):
        """Return the squared error; at the chosen call, memory runs out."""
        self.calls += 1
        trips_at = self.trips_at if self.calls == self.call else None
        if trips_at == "forward":
            raise torch.OutOfMemoryError("Tried to allocate 1 GiB in forward.")
        x = batch["images"].flatten(1)
        for number in range(4):
            x = model[number](x)
            x = torch.tanh(_Trip.apply(x) if trips_at == number else x)
        errors = (x.squeeze(1) - batch["targets"]).square()
        return errors.sum(), errors.detach().mean()[None]


def _epoch(folder, ranks, **given):
    """Return a runner that trained one epoch, and what it told."""
    on_second = given if ranks.rank == 1 else {"lacks": given.get("lacks", False)}
    options = toy_options(
        folder, batch=4, effective_batch=8, precision="fp32", device="0,1" if ON_CARDS else "cpu"
    )
    setup = prepare(Wide(**on_second), options)
    told = []
    runner = EpochRunner(
        setup,
        setup.micro_batch_size,
        on_step=lambda *_: None,
        on_back_off=lambda message, size: told.append((message, size)),
    )
    result = runner.run(0)
    return runner, told, result


def _weights(runner):
    return torch.cat([one.detach().flatten() for one in runner.step.model.parameters()])


def _weights_before(runner):
    options = runner.setup.options
    return _weights(Namespace(step=prepare(Wide(), options).step))


def _is_same_everywhere(ranks, weights):
    largest = weights.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return not any(ranks.agree([not torch.equal(largest, weights)]))


def check_out_of_memory(folder, ranks):
    """Memory runs out on rank 1, in a step's first micro-batch, its last, or the next step's only.

    In the last one's backward before any bucket's sum was started, after one, after two.
    """
    plain, _, _ = _epoch(folder, ranks)
    expected = _weights(plain)
    moved = (expected - _weights_before(plain)).norm()
    found = []
    for trips_at, call in (
        ("forward", 1), ("forward", 2), (3, 2), (2, 2), (1, 2), (1, 3)
    ):  # fmt: skip
        runner, told, result = _epoch(folder, ranks, trips_at=trips_at, call=call)
        weights = _weights(runner)
        found.append(
            {
                "where": f"{trips_at} of {call}",
                "told": told,
                "images": result.num_images,
                "same": _is_same_everywhere(ranks, weights),
                "distance": float((weights - expected).norm() / moved),
            }
        )
    # As the run does between two steps, at the same one in all processes.
    again = [runner.try_planned(), runner.micro_batch_size, runner.run(1).num_images, len(told)]
    again.append(_is_same_everywhere(ranks, _weights(runner)))
    sizes = [one.nbytes for one in plain._exchange._sums.buckets]
    tensors = ModelTensors.of(plain.step.model)
    return {
        "found": found,
        "again": again,
        "buckets": sizes,
        "predicted": settled_buckets(tensors, training_policy(2)),
        "in_buckets": all(
            any(_shares(one.grad, bucket) for bucket in plain._exchange._sums.buckets)
            for one in plain.step.model.parameters()
        ),
    }


def _shares(tensor, bucket):
    return tensor.untyped_storage().data_ptr() == bucket.untyped_storage().data_ptr()


def check_unused(folder, ranks):
    """A layer has no gradient: it is looked for from then on, and its weights do not decay."""
    plain, _, _ = _epoch(folder, ranks)
    runner, told, result = _epoch(folder, ranks, lacks=True, trips_at=2, call=5)
    layers = runner.step.model
    before = prepare(Wide(lacks=True), runner.setup.options).step.model
    expected = _weights(plain)
    weights = _weights(runner)
    return {
        "told": told,
        "steps": result.num_steps,
        "same": _is_same_everywhere(ranks, weights),
        "finds": runner._exchange.policy.find_unused_parameters,
        "stays": torch.equal(layers[4].weight, before[4].weight),
        "distance": float(
            (weights[: len(expected)] - expected).norm()
            / (expected - _weights_before(plain)).norm()
        ),
    }


def check_lean(folder, ranks):
    """Lean blocks and recomputation give the gradients of one process with the same images."""
    del folder
    found = {}
    for name, chooses in (("plain", {}), ("recompute", {"lean": True})):
        workload = YoloV9("yolov9-t", image_size=64, num_classes=3, objects_per_image=3)
        torch.manual_seed(0)
        model = workload.build_model()
        if name == "recompute":
            chooses["recompute"] = tuple(workload.recompute_blocks(model))
        settings = StepSpec(precision="fp32", **chooses)
        parts = [_images(workload, 10 * number) for number in range(4)]
        alone = TrainingStep(workload, settings, DEVICE, model=copy.deepcopy(model))
        for part in parts:
            alone.accumulate(alone.training_batch(part))
        ours = TrainingStep(workload, settings, DEVICE, model=model)
        exchange = GradientExchange(ours, training_policy(2))
        first, last = (ours.training_batch(one) for one in parts[ranks.rank :: 2])
        with exchange.local():
            ours.accumulate(first)
        loss, _ = ours.forward(last)
        done = exchange.backward(loss)
        one, other = (
            torch.cat([p.grad.flatten() for p in step.model.parameters() if p.requires_grad])
            for step in (alone, ours)
        )
        found[name] = {"done": done, "distance": float((one - other).norm() / one.norm())}
    return found


def _images(workload, seed):
    torch.manual_seed(seed)
    batch = workload.make_batch(1)
    return {**batch, "images": torch.randint_like(batch["images"], 0, 255)}


def check_notices(folder, ranks):
    """Rank 1 finds memory leaking at its last image: both keep less, and rank 0 tells of it."""
    options = toy_options(
        folder, batch=2, effective_batch=2, epochs=1, precision="fp32", project=folder / "notices",
        device="0,1" if ON_CARDS else "cpu",
    )  # fmt: skip
    told, notes = [], io.StringIO()
    place = create_run_folder(options.project, "a", exist_ok=False) if ranks.is_first else None
    shared = Path(ranks.share(None if place is None else str(place.path)))
    run = Run(
        prepare(Toy(), options),
        place or RunFolder(shared, writes=False),
        Progress(1, 0, notes),
        lambda name, facts: told.append((name, dict(facts))),
    )
    finding = Finding(
        cause=Cause.LEAK, grown_bytes=1 << 30, bytes_a_step=1, steps_left=9, is_urgent=True
    )
    if ranks.rank == 1:
        run.relief.act(finding, 0)
    run.go()
    run.runner.close()
    leaks = [facts["rank"] for name, facts in told if name == "memory_watch"]
    return {
        "recompute": run.setup.step.spec.recompute,
        "leaks": leaks,
        "words": notes.getvalue().count("Process 1: Warning: Memory leaks"),
        "files": sorted(one.name for one in shared.glob("memory*.csv")),
        "rows": len((shared / "memory_rank1.csv").read_text().splitlines()),
    }


def check_waiting(folder, ranks):
    """Rank 0 works alone for longer than the time-out, and its value reaches all."""
    del folder
    started = time.monotonic()
    value = ranks.alone(lambda: time.sleep(2 * ranks.patience.total_seconds()) or "done")
    return {"value": value, "seconds": time.monotonic() - started}


def run(folder, names):
    """Run checks by name, all ranks alike, and write what they find."""
    ranks = join(DEVICE, 2)
    for name in names:
        mine = ranks
        if name == "waiting":
            leave()
            dist.init_process_group("gloo", timeout=timedelta(seconds=2))
            mine = Ranks(rank=ranks.rank, size=2, patience=timedelta(seconds=2))
        found = globals()[f"check_{name}"](folder, mine)
        (folder / f"{name}-{ranks.rank}.json").write_text(json.dumps(found))
        gc.collect()  # what still holds the group would keep its threads alive
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), sys.argv[2:])
