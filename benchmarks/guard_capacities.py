"""Real out-of-memory errors of PyTorch's own allocator: one run on cards of many capacities.

    python -m benchmarks.guard_capacities 40 80 120

The phantom card computes nothing, so values are no matter here; host code, allocator, errors and
retries are PyTorch's own. A run loses nothing where it takes all its steps over all its images, or
ends in one line with its last step saved.
"""

from __future__ import annotations

import ctypes
import io
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from memplan.device import catalogue
from memplan.phantom.child import PhantomChild
from memplan.spec import StepSpec
from memplan.training import TrainOptions, train
from memplan.workload import Workload, dealt

_IMAGES, _WIDTH, _BATCH, _EPOCHS = 4096, 256, 1024, 2
_CARD_BYTES = 1 << 30
_PATIENCE = 120.0  # for one run, which takes a second or two
_ROOT = str(Path(__file__).parents[1])


class _Evaluator:
    def __init__(self) -> None:
        self.errors: list[torch.Tensor] = []

    def update(self, predictions: Any, batch: Any) -> None:
        self.errors.append((predictions - batch["targets"].to(predictions.device)).square())

    def compute(self) -> dict[str, float]:
        return {"fitness": 1 / (1 + float(torch.cat(self.errors).mean()))}


class _Data:
    num_classes = 1
    class_names = ("thing",)
    warnings = ()
    num_training_images = _IMAGES
    num_validation_images = _BATCH
    objects_per_image = np.ones(_IMAGES, np.int64)

    def _batch(self, count: int) -> dict[str, torch.Tensor]:
        return {"images": torch.zeros(count, _WIDTH), "targets": torch.zeros(count)}

    def training_batches(
        self, *, micro_batch_size, epoch, augment_fully, first_image=0, rank=0, num_ranks=1
    ):
        del epoch, augment_fully
        for part in dealt(_IMAGES - first_image, micro_batch_size, rank, num_ranks):
            yield self._batch(len(part))

    def num_batches(self, micro_batch_size):
        return -(-_IMAGES // micro_batch_size)

    def validation_batches(self, *, micro_batch_size):
        for start in range(0, _BATCH, micro_batch_size):
            yield self._batch(min(micro_batch_size, _BATCH - start))

    def evaluator(self):
        return _Evaluator()


class _Deep(Workload):
    name = "deep"
    image_size = 8
    nominal_batch_size = 2 * _BATCH
    keeps_average = True
    clip_gradient_norm = 10.0
    loss_names = ("error",)
    hyperparameters: ClassVar = {"warmup_epochs": 0.0}

    def build_model(self):
        layers = [torch.nn.Linear(_WIDTH, 1024), torch.nn.SiLU()]
        for _ in range(4):
            layers += [torch.nn.Linear(1024, 1024), torch.nn.BatchNorm1d(1024), torch.nn.SiLU()]
        return torch.nn.Sequential(*layers, torch.nn.Linear(1024, 1))

    def make_batch(self, micro_batch_size):
        return {"images": torch.zeros(micro_batch_size, _WIDTH),
                "targets": torch.zeros(micro_batch_size)}  # fmt: skip

    def compute_loss(self, model, batch):
        errors = (model(batch["images"]).squeeze(1) - batch["targets"]).square()
        return errors.sum(), errors.detach().mean()[None]

    def predict(self, model, batch):
        return model(batch["images"]).squeeze(1)

    def open_data(self, options):
        del options
        return _Data()


def run(capacity_mib: int) -> dict[str, Any]:
    """Return how a run on the card of this process ended, all but so much of it taken by others.

    Called in a child on a phantom card.
    """
    taken = ctypes.c_void_p()
    size = _CARD_BYTES - (capacity_mib << 20)
    assert ctypes.CDLL(None).cudaMalloc(ctypes.byref(taken), ctypes.c_size_t(size)) == 0
    folder = Path(tempfile.mkdtemp(prefix="guard-capacities-"))
    (folder / "data.yaml").touch()
    options = TrainOptions(
        data=folder / "data.yaml", image_size=8, batch=_BATCH, epochs=_EPOCHS, device="0",
        workers=0, project=folder / "runs", name="r", noplots=True,
        spec=StepSpec(optimizer="AdamW", precision="fp32"),
    )  # fmt: skip
    ended, events = "finished", []
    try:
        train(
            _Deep(), options, stream=io.StringIO(),
            on_event=lambda name, facts: events.append((name, dict(facts))),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - what is counted
        own = type(error).__module__.startswith("memplan.") and "\n" not in str(error)
        ended = "ended in one line" if own else f"traceback: {type(error).__name__}: {error}"
        if own and "saved" not in str(error).lower() and "whatever the batch" not in str(error):
            ended = f"ended, state unknown: {error}"
    steps = []
    if (folder / "runs/r/results.csv").exists():
        rows = (folder / "runs/r/results.csv").read_text().splitlines()
        at = rows[0].split(",").index("steps")
        steps = [int(row.split(",")[at]) for row in rows[1:]]
    refused = Counter(
        facts.get("phase", "end") for name, facts in events if name == "out_of_memory"
    )
    told = Counter(name for name, _ in events)
    shutil.rmtree(folder)
    return {"ended": ended, "steps": steps, "refused": refused, "told": told}


def measure(capacities_mib: list[int]) -> list[tuple[int, dict[str, Any]]]:
    """Return how the run ends on a card of each capacity."""
    from benchmarks.guard_capacities import run as called  # by its name where this is a program

    with PhantomChild(
        catalogue.card("rtx-3090"), capacity_bytes=_CARD_BYTES, other_bytes=0,
        variables={"PYTHONPATH": _ROOT}, imports=("torch", "benchmarks.guard_capacities"),
    ) as child:  # fmt: skip
        return [
            (mib, child.call(called, {"capacity_mib": mib}, seconds=_PATIENCE))
            for mib in capacities_mib
        ]


def table(found: list[tuple[int, dict[str, Any]]]) -> str:
    """Return neighbours that ended alike as one row of a table in Markdown."""
    lines = [
        "| capacity, MiB | ended | optimizer steps of 4 "
        "| out of memory in training | in validation | at the end |",
        "|---|---|---:|---:|---:|---:|",
    ]
    rows: list[tuple[list[int], tuple[str, ...]]] = []
    for mib, one in found:
        refused = [str(one["refused"].get(name, 0)) for name in ("training", "validation", "end")]
        facts = (one["ended"], str(sum(one["steps"])), *refused)
        if rows and rows[-1][1] == facts:
            rows[-1][0].append(mib)
        else:
            rows.append(([mib], facts))
    for sizes, facts in rows:
        span = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        lines.append(f"| {span} | {' | '.join(facts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(measure([*map(int, sys.argv[1:])])))
