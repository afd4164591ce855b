"""Out of memory raised at the n-th operator of tiny runs: who survives, and bit for bit?

    python -m benchmarks.guard_faults --faults 520 --output benchmarks/results/guard_faults.md

A run on a CPU is recorded operator by operator, each with the phase it is of (by the functions on
the stack). Then the same run is made again and again, and an error is raised in place of one of
its operators, by turns in the words of every library. A run survives where it ends as the run that
nothing hit or, where it took a smaller micro-batch, as the run that was hit at the first operator
of the same step: model, average, optimizer, random states and results, bit for bit.
"""

from __future__ import annotations

import argparse
import inspect
import io
import itertools
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import guard_capacities
from memplan.errors import MemplanError
from memplan.spec import StepSpec
from memplan.training import TrainOptions, train
from memplan.training.checkpoint import load_checkpoint
from memplan.workload import Workload, dealt

_IMAGES = 14
ERRORS = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("CUDA error: out of memory"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    lambda: RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    lambda: RuntimeError("GET was unable to find an engine to execute this computation"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    MemoryError,
)
# The innermost of these on the stack names the phase.
_PHASES = {
    "_accumulate": "forward",
    "_engine_backward": "backward",
    "to_device": "transfer",
    "_add_losses": "loss sums",
    "_sum_losses": "loss sums",
    "_means": "loss sums",
    "_sums": "loss sums",
    "_next": "training data",
    "apply_gradients": "optimizer step",
    "_copies": "guard's copies",
    "move_average": "average",
    "take": "guard's copies",
    "validation_batches": "validation data",
    "split": "validation split",
    "_predict": "validation predict",
    "update_evaluator": "evaluator",
    "compute_metrics": "evaluator",
    "checkpoint_of": "save",
    "save_checkpoint": "save",
    "capture_random_states": "random states",
    "prepare": "set-up",
    "_restore": "restore of a resumed run",
    "_go_on": "restore of a resumed run",
    "_check_finite": "look at the weights",
    "strip_checkpoint": "best.pt stripped",
    "load_latest": "resumed checkpoint read",
}


class _Evaluator:
    def __init__(self) -> None:
        self.errors: list[torch.Tensor] = []

    def update(self, predictions: Any, batch: Any) -> None:
        self.update_evaluator(predictions, batch)

    def update_evaluator(self, predictions: Any, batch: Any) -> None:
        self.errors.append((predictions.squeeze(1) - batch["targets"]).square())

    def compute(self) -> dict[str, float]:
        return self.compute_metrics()

    def compute_metrics(self) -> dict[str, float]:
        return {"fitness": 1 / (1 + float(torch.cat(self.errors).mean()))}


class _Data:
    num_classes = 1
    class_names = ("thing",)
    warnings = ()
    num_training_images = _IMAGES
    num_validation_images = 4
    objects_per_image = np.ones(_IMAGES, np.int64)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.rand(_IMAGES, 3, 8, 8, generator=generator)
        self.targets = self.images.mean((1, 2, 3))

    def _batch(self, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"images": self.images[chosen], "targets": self.targets[chosen]}

    def training_batches(
        self, *, micro_batch_size, epoch, augment_fully, first_image=0, rank=0, num_ranks=1
    ):
        del augment_fully
        order = np.random.default_rng([0, epoch]).permutation(_IMAGES)[first_image:]
        for part in dealt(len(order), micro_batch_size, rank, num_ranks):
            yield self._batch(torch.from_numpy(order[part.start : part.stop]))

    def num_batches(self, micro_batch_size):
        return -(-_IMAGES // micro_batch_size)

    def validation_batches(self, *, micro_batch_size):
        for start in range(0, 4, micro_batch_size):
            yield self._batch(torch.arange(start, min(4, start + micro_batch_size)))

    def evaluator(self):
        return _Evaluator()


class _Tiny(Workload):
    name = "tiny"
    image_size = 8
    nominal_batch_size = 7
    keeps_average = True
    clip_gradient_norm = 10.0
    loss_names = ("error",)
    hyperparameters: ClassVar = {"warmup_epochs": 0.0, "lr0": 0.001, "weight_decay": 0.01}

    def build_model(self):
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.SiLU(),
            torch.nn.Dropout(0.3), torch.nn.Flatten(), torch.nn.Linear(144, 1),
        )  # fmt: skip

    def make_batch(self, micro_batch_size):
        return {"images": torch.zeros(micro_batch_size, 3, 8, 8),
                "targets": torch.zeros(micro_batch_size)}  # fmt: skip

    def compute_loss(self, model, batch):
        errors = (model(batch["images"]).squeeze(1) - batch["targets"]).square()
        return errors.sum(), errors.detach().mean()[None]

    def open_data(self, options):
        del options
        return _Data()


class _Faults(TorchDispatchMode):
    """Counts operators, notes their phases, and raises in place of one."""

    def __init__(self, at: int = -1, error: Any = None, *, notes: bool = False) -> None:
        super().__init__()
        self.at = at
        self.error = error
        self.notes = notes
        self.phases: list[str] = []
        self.count = 0
        self.raised = 0.0
        self.recovered = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        place = self.count
        self.count += 1
        if self.notes:
            self.phases.append(_phase())
        if place == self.at:
            self.raised = time.perf_counter()
            raise self.error()
        return func(*args, **(kwargs or {}))


def _phase() -> str:
    frame: Any = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_name
        if name in _PHASES:
            return _PHASES[name]
        frame = frame.f_back
    return "other"


@dataclass
class _Row:
    tried: int = 0
    equal: int = 0
    differs: int = 0
    died: int = 0
    tracebacks: int = 0
    seconds: list[float] = field(default_factory=list)


class _Stopped(Exception):  # noqa: N818 - ends a run, and is no error
    """Ends a run where it has saved within an epoch."""


def _run(
    folder: Path,
    faults: _Faults,
    optimizer: str,
    started: Path | None = None,
    *,
    stops_midway: bool = False,
) -> tuple[Path | None, Any, bool]:
    """Return the run's folder, how it ended, and whether it took a smaller micro-batch.

    Args:
        folder: made here.
        faults: what happens to the run.
        optimizer: by name.
        started: a run stopped within its epoch, which a copy of goes on; None begins.
        stops_midway: whether the run ends after its first step, saved.
    """
    if started is not None:
        shutil.copytree(started, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").touch()
    options = TrainOptions(
        data=folder / "data.yaml", image_size=8, batch=7, epochs=1, device="cpu", workers=0,
        project=folder / "runs", name="r", noplots=True, spec=StepSpec(optimizer=optimizer),
        resume=None if started is None else folder / "runs/r", save_every=1e-9,
    )  # fmt: skip
    events: list[str] = []

    def note(name: str, facts: Any) -> None:
        events.append(f"{name} {facts.get('phase')}")
        if stops_midway and name == "saved" and "images" in facts:
            raise _Stopped

    try:
        with faults:
            summary = train(
                _Tiny(), options, stream=io.StringIO(),
                on_event=note,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - what is counted
        return None, error, False
    return summary.run_folder, None, "backed_off training" in events


def _state(folder: Path) -> dict[str, Any]:
    last = load_checkpoint(folder / "weights/last.pt")
    table = pd.read_csv(folder / "results.csv")
    kept = table.drop(columns=["seconds", "images_per_second", "micro_batch_size",
                               "accumulation_steps"])  # fmt: skip
    parts = ("model", "ema", "ema_updates", "optimizer", "random_states", "steps", "metrics")
    return {"results": kept.to_csv(), **{part: getattr(last, part) for part in parts}}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _step_start(phases: list[str], at: int) -> int:
    """Return the first forward operator of the step that an operator belongs to."""
    ends = [n for n in range(1, at) if phases[n - 1] == "average" and phases[n] != "average"]
    start = ends[-1] if ends else 0
    return next(n for n in range(start, len(phases)) if phases[n] == "forward")


class _Scene:
    """One run that faults happen to, in many copies.

    Args:
        root: for the copies' folders.
        optimizer: by name.
        resumes: whether the run goes on from within its epoch.
    """

    def __init__(self, root: Path, optimizer: str, *, resumes: bool) -> None:
        self._root, self._optimizer = root, optimizer
        self._number = itertools.count()
        self._started: Path | None = None
        if resumes:
            self._started = root / "started"
            stops = _Faults()
            _run(self._started, stops, optimizer, stops_midway=True)
        noting = _Faults(notes=True)
        clean, error, _ = self._again(noting)
        assert clean is not None, error
        self.phases = noting.phases
        self._expected = _state(clean)
        self._smaller: dict[int, Any] = {}
        started = time.perf_counter()
        self._again(_Faults())
        self._clean_seconds = time.perf_counter() - started

    def _again(self, faults: _Faults) -> tuple[Path | None, Any, bool]:
        folder = self._root / f"{next(self._number)}"
        return _run(folder, faults, self._optimizer, self._started)

    def hit(self, at: int, row: _Row) -> None:
        """Run with an error in place of an operator, and count how that ends."""
        row.tried += 1
        started = time.perf_counter()
        folder, error, backed = self._again(_Faults(at, ERRORS[at % len(ERRORS)]))
        row.seconds.append(max(time.perf_counter() - started - self._clean_seconds, 0))
        if folder is None:
            row.died += 1
            row.tracebacks += not isinstance(error, MemplanError)
            print(self.phases[at], at, type(error).__name__, error, file=sys.stderr)
            return
        is_equal = _equal(self._wanted(at) if backed else self._expected, _state(folder))
        row.equal += is_equal
        row.differs += not is_equal
        if not is_equal:
            print("differs", self.phases[at], at, backed, file=sys.stderr)
        shutil.rmtree(folder.parents[1])

    def _wanted(self, at: int) -> Any:
        """Return how a run ends that took the smaller micro-batch in the same step."""
        start = _step_start(self.phases, at)
        if start not in self._smaller:
            found, error, _ = self._again(_Faults(start, ERRORS[0]))
            assert found is not None, error
            self._smaller[start] = _state(found)
        return self._smaller[start]


def _spread(phases: list[str], count: int) -> list[int]:
    """Return so many operators, as many of each phase as there are, evenly within each."""
    places: dict[str, list[int]] = defaultdict(list)
    for at, phase in enumerate(phases):
        places[phase].append(at)
    chosen: list[int] = []
    left = sorted(places.values(), key=len)
    for number, one in enumerate(left):
        share = min(len(one), -(-(count - len(chosen)) // (len(left) - number)))
        chosen += [one[at] for at in np.linspace(0, len(one) - 1, share).astype(int)]
    return sorted(chosen)


def measure(num_faults: int) -> dict[str, _Row]:
    """Return a row for each phase, over faults spread evenly over the phases."""
    rows: dict[str, _Row] = defaultdict(_Row)
    scenes = (("SGD", False), ("AdamW", False), ("AdamW", True))
    for optimizer, resumes in scenes:
        with tempfile.TemporaryDirectory() as name:
            scene = _Scene(Path(name), optimizer, resumes=resumes)
            for at in _spread(scene.phases, -(-num_faults // len(scenes))):
                scene.hit(at, rows[scene.phases[at]])
    return rows


def table(rows: dict[str, _Row]) -> str:
    """Return the rows as a table in Markdown, with their sum."""
    names = (
        "phase",
        "tried",
        "survived bit-equal",
        "survived otherwise",
        "died in order",
        "died with a traceback",
        "seconds of recovery, median",
    )
    lines = [f"| {' | '.join(names)} |", f"|---{'|---:' * (len(names) - 1)}|"]
    total = _Row()
    for name, row in sorted(rows.items()):
        lines.append(_line(name, row))
        for one in ("tried", "equal", "differs", "died", "tracebacks"):
            setattr(total, one, getattr(total, one) + getattr(row, one))
        total.seconds += row.seconds
    return "\n".join([*lines, _line("**all**", total)]) + "\n"


def _line(name: str, row: _Row) -> str:
    ordered = row.died - row.tracebacks
    return (
        f"| {name} | {row.tried} | {row.equal} | {row.differs} | {ordered} | {row.tracebacks} | "
        f"{np.median(row.seconds):.3f} |"
    )


def main() -> None:
    """Inject the faults and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=520)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = _TEXT.format(faults=table(measure(arguments.faults)), capacities=_capacities())
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


def _capacities() -> str:
    return guard_capacities.table(guard_capacities.measure(_CAPACITIES_MIB))


_CAPACITIES_MIB = [*range(32, 200, 6)]
_TEXT = """# What a run survives

Made by `benchmarks/guard_faults.py` with `--faults 540`.

What other people's remedies do with faults of this kind is in [guard_others.md](guard_others.md)
(`benchmarks/guard_others.py`).

## Out of memory at the n-th operator

A run on a CPU, SGD and AdamW, and a resumed one with AdamW; an error in the words of nine libraries
by turns in place of one operator. Bit-equal: model, average, optimizer, random states, steps and
results are those of the run that nothing hit or, where it took the smaller micro-batch, of the run
that took it in the same step. Seconds are beyond those of a run that nothing hit.

{faults}
## PyTorch's own errors on a phantom card

A run of two epochs of two optimizer steps (2048 images each, 1024 at once, AdamW, 4.5 million
parameters) on cards of so much memory. PyTorch's allocator and errors are real; the card computes
nothing, so that steps and events are compared, not values. A run that ends has said why in one line
and, where it had begun, saved its last finished step.

{capacities}"""


if __name__ == "__main__":
    main()
