"""Other people's batch finders on the same card, model and budget; each only where importable.

They try batches until one fails, so they run under the same limit on the allocator as our own
verdicts. None of their code is part of memplan.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.job import Job
from memplan.step.optimizers import optimizer_of
from memplan.step.run import TrainingStep
from memplan.trace.measure import Batches, run_life

_MODULES = {
    "accelerate": "accelerate.utils",
    "lightning": "pytorch_lightning.tuner",
    "memtracker": "torch.distributed._tools.mem_tracker",
    "ultralytics": "ultralytics.utils.autobatch",
}
# Finders that lower a batch begin here: above what the budgets hold.
_START = 256


def ask(peer: str, job: Job, limit_bytes: int, *, largest: int) -> dict[str, Any]:
    """Return what a finder chose, or that it is not present.

    Args:
        peer: one of `cases.PEERS`.
        job: gives model, image size and device.
        limit_bytes: what the allocator may hold.
        largest: the batch that memplan says is the largest, for those that only judge one.
    """
    if peer == "official":
        official = job.case.arguments.get("official")
        if official is None:
            return {"present": False, "reason": "no checkout was given with --official"}
        with _on_path(official):
            return _present("utils.autobatch", job, limit_bytes, peer, largest)
    return _present(_MODULES[peer], job, limit_bytes, peer, largest)


def _present(module: str, job: Job, limit_bytes: int, peer: str, largest: int) -> dict[str, Any]:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return {"present": False, "reason": str(error).splitlines()[0]}
    device = torch.device(job.device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
    elif peer != "accelerate":
        return {"present": True, "reason": "needs a card"}
    finder = {
        "accelerate": _accelerate,
        "lightning": _lightning,
        "memtracker": _memtracker,
        "official": _official,
        "ultralytics": _ultralytics,
    }[peer]
    version = getattr(importlib.import_module(module.partition(".")[0]), "__version__", "")
    return {"present": True, "version": version, **finder(found, job, device, largest)}


@contextlib.contextmanager
def _on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _try(job: Job, device: torch.device, batch: int) -> None:
    """Run two steps of our own at a batch."""
    question = job.case.question(job.card)
    step = TrainingStep(question.made, question.step_spec, device)
    batches = Batches(training=Batches.of(question.made, batch).training, validation=None)
    run_life(step, batches, num_steps=2)


def _accelerate(module: Any, job: Job, device: torch.device, largest: int) -> dict[str, Any]:
    # On a CPU nothing runs out, so it is only shown that the finder finds its start.
    start = _START if device.type == "cuda" else min(2, largest)

    @module.find_executable_batch_size(starting_batch_size=start)  # type: ignore[untyped-decorator]
    def attempt(batch_size: int) -> int:
        _try(job, device, batch_size)
        return batch_size

    return {"chosen_batch": int(attempt())}


def _lightning(module: Any, job: Job, device: torch.device, largest: int) -> dict[str, Any]:
    del largest
    lightning = importlib.import_module("pytorch_lightning")
    question = job.case.question(job.card)
    workload, settings = question.made, question.step_spec

    class Wrapped(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 1
            self.net = workload.build_model()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return workload.compute_loss(self.net, workload.prepare(batch))[0]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(workload, self.net, settings.optimizer)

        def train_dataloader(self) -> Any:
            batch = Batches.of(workload, self.batch_size).training
            batches: Any = [batch] * 4
            return torch.utils.data.DataLoader(batches, batch_size=None)

    model = Wrapped()
    trainer = lightning.Trainer(
        accelerator="gpu", devices=[device.index or 0], max_epochs=1, logger=False,
        precision="16-mixed" if job.case.precision == "amp-fp16" else 32,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    tuner = module.Tuner(trainer)
    chosen = tuner.scale_batch_size(model, mode="binsearch", init_val=1, steps_per_trial=3)
    del model, trainer, tuner
    gc.collect()
    return {"chosen_batch": int(chosen or 0)}


def _ultralytics(module: Any, job: Job, device: torch.device, largest: int) -> dict[str, Any]:
    del largest
    name = f"{job.case.workload.replace('-', '')}.yaml"
    model = importlib.import_module("ultralytics").YOLO(name).model.to(device)
    amp = job.case.precision != "fp32"
    return {"chosen_batch": int(module.check_train_batch_size(model, job.case.image_size, amp))}


def _official(module: Any, job: Job, device: torch.device, largest: int) -> dict[str, Any]:
    del largest
    yolo = importlib.import_module("models.yolo")
    folder = job.case.arguments["official"]
    model = yolo.Model(f"{folder}/models/detect/{job.case.workload}.yaml", ch=3, nc=80).to(device)
    return {"chosen_batch": int(module.check_train_batch_size(model, job.case.image_size))}


def _memtracker(module: Any, job: Job, device: torch.device, largest: int) -> dict[str, Any]:
    """Return the peak that the tracker foretells for the batch memplan calls the largest."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    question = job.case.question(job.card)
    workload, settings = question.made, question.step_spec
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        model = workload.build_model()
        optimizer = optimizer_of(workload, model, settings.optimizer)
        batch = {name: value.to(device) for name, value in workload.make_batch(largest).items()}
        tracker = module.MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for number in range(2):
                dtype = torch.float16 if settings.precision == "amp-fp16" else None
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    loss, _ = workload.compute_loss(model, workload.prepare(batch))
                torch.autograd.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if number == 0:
                    tracker.reset_mod_stats()
        peak = tracker.get_tracker_snapshot("peak")[device]["Total"]
    return {"micro_batch_size": largest, "peak_bytes": int(peak), "chosen_batch": None}
