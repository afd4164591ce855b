"""The trainers of `benchmarks.guard_others`: three epochs of eight batches, as in their manuals.

Each function trains with a fault and leaves what came of it in the log; it raises what kills it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.guard_others_faults import (
    BATCH,
    EPOCHS,
    KINDS,
    NOTHING,
    SAMPLES,
    Kind,
    Log,
    Outcome,
    loss_of,
    network,
    samples,
)
from memplan.workload import Workload, dealt


def _loader(batch_size: int = BATCH) -> Any:
    return DataLoader(TensorDataset(*samples()), batch_size=batch_size)


def plain(log: Log) -> torch.nn.Module:
    """Train with a loop of one's own and nothing around it."""
    net = network()
    optimizer = log.make_optimizer(torch.optim.AdamW)(net.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        for x, y in _loader():
            optimizer.zero_grad()
            loss_of(log, net, x, y).backward()
            optimizer.step()
        with torch.no_grad():
            for x, _ in _loader():
                log.validation(len(x))
    return net


def accelerate(log: Log) -> torch.nn.Module:
    """Train inside `find_executable_batch_size`, all made within it as its manual asks."""
    from accelerate.utils import find_executable_batch_size

    @find_executable_batch_size(starting_batch_size=BATCH)
    def train(batch_size: int) -> torch.nn.Module:
        net = network()
        optimizer = log.make_optimizer(torch.optim.AdamW)(net.parameters(), lr=0.01)
        for _ in range(EPOCHS):
            for x, y in _loader(batch_size):
                optimizer.zero_grad()
                loss_of(log, net, x, y).backward()
                optimizer.step()
            with torch.no_grad():
                for x, _ in _loader(batch_size):
                    log.validation(len(x))
        return net

    net: torch.nn.Module = train()
    return net


def guarded(log: Log) -> torch.nn.Module:
    """Train with a loop of one's own inside `memplan.guard`."""
    import memplan

    net = network()
    optimizer = log.make_optimizer(torch.optim.AdamW)(net.parameters(), lr=0.01)
    guard = memplan.guard(net, loss="mean", retry_after=4)
    for _ in range(EPOCHS):
        for x, y in _loader():
            optimizer.zero_grad()
            guard(lambda batch: loss_of(log, net, *batch), (x, y))
            guard.step(optimizer)
        for x, _ in _loader():
            guard.evaluate(lambda piece: log.validation(len(piece)), x)
    return net


def lightning_finder(log: Log) -> torch.nn.Module:
    """Train with Lightning's `BatchSizeFinder`, which tries 2, 4 and the batch that is wanted."""
    from lightning.pytorch.callbacks import BatchSizeFinder

    return _lightning(log, BatchSizeFinder(max_trials=3))


def lightning_guarded(log: Log) -> torch.nn.Module:
    """Train with Lightning and memplan's callback."""
    from memplan.trainers.lightning import MemoryGuard

    return _lightning(log, MemoryGuard(retry_after=4, optimizer_step=True))


def _lightning(log: Log, callback: Any) -> torch.nn.Module:
    import lightning

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.batch_size = BATCH

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return loss_of(log, self.net, *batch)

        def validation_step(self, batch: Any, _index: int) -> None:
            log.validation(len(batch[0]))

        def configure_optimizers(self) -> Any:
            return log.make_optimizer(torch.optim.AdamW)(self.net.parameters(), lr=0.01)

        def train_dataloader(self) -> Any:
            return _loader(self.batch_size)

        val_dataloader = train_dataloader

    net = Net()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", callbacks=[callback], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(net)
    return net.net


def ultralytics(log: Log) -> torch.nn.Module:
    """Train Ultralytics' YOLOv8n on pictures, with its own retry."""
    return _ultralytics(log, lambda _: None)


def ultralytics_guarded(log: Log) -> torch.nn.Module:
    """Train Ultralytics' YOLOv8n with memplan's callback."""
    from memplan.trainers.ultralytics import MemoryGuard

    return _ultralytics(log, MemoryGuard(retry_after=4, optimizer_step=True).attach)


def _ultralytics(log: Log, attach: Callable[[Any], Any]) -> torch.nn.Module:
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, trained = YOLO("yolov8n.yaml"), []
        model.add_callback("on_train_start", functools.partial(_hit_ultralytics, log, trained))
        attach(model)
        model.train(
            data=str(_pictures(folder)), imgsz=32, epochs=EPOCHS, batch=BATCH, nbs=BATCH,
            device="cpu", plots=False, project=str(folder / "runs"), verbose=False, workers=0,
            warmup_epochs=0, amp=False, mosaic=0, optimizer="SGD", lr0=0.001, close_mosaic=0,
        )  # fmt: skip
    [net] = trained[:1]
    return net


def _hit_ultralytics(log: Log, trained: list[Any], trainer: Any) -> None:
    original, validate = trainer.model.forward, trainer.validator.preprocess
    trained.append(trainer.model)

    @functools.wraps(original)
    def forward(batch: Any, *others: Any, **names: Any) -> Any:
        if not isinstance(batch, dict) or not trainer.model.training:
            return original(batch, *others, **names)
        log.forward(batch["im_file"])
        loss, items = original(batch, *others, **names)
        return log.loss(loss, len(batch["img"])), items

    def preprocess(batch: Any) -> Any:
        log.validation(len(batch["img"]))
        return validate(batch)

    vars(trainer.model)["forward"] = forward
    trainer.validator.preprocess = preprocess
    trainer.optimizer.__class__ = log.make_optimizer(type(trainer.optimizer))
    vars(trainer.optimizer).pop("step", None)  # the scheduler's, which calls the former class's


def _pictures(folder: Path) -> Path:
    """Return the `data.yaml` of as many pictures as there are samples, a box each."""
    import cv2

    numbers = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    for index in range(SAMPLES):
        picture = numbers.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images/train" / f"{index}.jpg"), picture)
        x, y = numbers.uniform(0.3, 0.7, 2)
        (folder / "labels/train" / f"{index}.txt").write_text(f"0 {x:.3f} {y:.3f} 0.4 0.4\n")
    path = folder / "data.yaml"
    path.write_text(f"path: {folder}\ntrain: images/train\nval: images/train\nnames: [a]\n")
    return path


class _Data:
    num_classes = 1
    class_names = ("thing",)
    warnings = ()
    num_training_images = num_validation_images = SAMPLES
    objects_per_image = np.ones(SAMPLES, np.int64)

    def __init__(self) -> None:
        self.inputs, self.targets = samples()

    def training_batches(
        self, *, micro_batch_size, epoch, augment_fully, first_image=0, rank=0, num_ranks=1
    ):
        del epoch, augment_fully
        for part in dealt(SAMPLES - first_image, micro_batch_size, rank, num_ranks):
            where = slice(first_image + part.start, first_image + part.stop)
            yield {"images": self.inputs[where], "targets": self.targets[where]}

    def num_batches(self, micro_batch_size):
        return -(-SAMPLES // micro_batch_size)

    def validation_batches(self, *, micro_batch_size):
        for start in range(0, SAMPLES, micro_batch_size):
            where = slice(start, start + micro_batch_size)
            yield {"images": self.inputs[where], "targets": self.targets[where]}

    def evaluator(self):
        return _Evaluator()


class _Evaluator:
    def update(self, predictions: Any, batch: Any) -> None:
        del predictions, batch

    def compute(self) -> dict[str, float]:
        return {"fitness": 1.0}


class _Task(Workload):
    name = "others"
    image_size = 8
    nominal_batch_size = BATCH
    loss_names = ("error",)
    hyperparameters: ClassVar = {"warmup_epochs": 0.0, "lr0": 0.01, "weight_decay": 0.0}

    def __init__(self, log: Log) -> None:
        self._log = log
        self.net = network()

    def build_model(self):
        return self.net

    def make_batch(self, micro_batch_size):
        return {"images": torch.zeros(micro_batch_size, 4),
                "targets": torch.zeros(micro_batch_size, 2)}  # fmt: skip

    def compute_loss(self, model, batch):
        count = len(batch["images"])
        loss = loss_of(self._log, model, batch["images"], batch["targets"]) * count / BATCH
        return loss, loss.detach()[None] / count

    def predict(self, model, batch):
        self._log.validation(len(batch["images"]))
        return model(batch["images"])

    def make_optimizer(self, model, settings):
        return self._log.make_optimizer(torch.optim.AdamW)(
            [{"params": list(model.parameters()), "kind": "weight"}], lr=settings.learning_rate
        )

    def open_data(self, options):
        del options
        return _Data()


def trained(log: Log) -> torch.nn.Module:
    """Train with memplan's own run, checkpoints and average included."""
    from memplan.spec import StepSpec
    from memplan.training import TrainOptions, train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data.yaml").touch()
        task = _Task(log)
        options = TrainOptions(
            data=folder / "data.yaml", image_size=8, batch=BATCH, epochs=EPOCHS, device="cpu",
            workers=0, project=folder, name="r", noplots=True, spec=StepSpec(optimizer="AdamW"),
        )  # fmt: skip
        train(task, options, stream=io.StringIO())
    return task.net


def composer(log: Log) -> torch.nn.Module:
    """Train with Composer's automatic micro-batching, which wants a card: a phantom one."""
    from composer import ComposerModel, Evaluator, Trainer

    class Net(ComposerModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, batch: Any) -> Any:
            x, _ = batch
            if self.training:
                log.forward(next(count) for _ in range(len(x)))
            else:
                log.validation(len(x))
            return self.net(x)

        def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
            return self.forward(batch) if outputs is None else outputs

        def loss(self, outputs: Any, batch: Any, *_others: Any, **_names: Any) -> Any:
            return log.loss(outputs.square().mean(), len(batch[0]))

        def get_metrics(self, is_train: bool = False) -> dict[str, Any]:
            del is_train
            return {}

        def update_metric(self, batch: Any, outputs: Any, metric: Any) -> None:
            pass

    # Numbers of its own: what is read from a card that computes nothing says nothing.
    net, count = Net(), itertools.count()
    loader = _loader()
    evaluator = Evaluator(
        label="eval", dataloader=loader, metric_names=[], device_eval_microbatch_size="auto"
    )
    Trainer(
        model=net, train_dataloader=loader, eval_dataloader=evaluator, max_duration=f"{EPOCHS}ep",
        optimizers=log.make_optimizer(torch.optim.AdamW)(net.parameters(), lr=0.01), device="gpu",
        device_train_microbatch_size="auto", progress_bar=False, precision="fp32",
    ).fit()  # fmt: skip
    return net


COMPOSER = "Composer, automatic micro-batching"
RUNS: dict[str, Callable[[Log], torch.nn.Module]] = {
    "a loop with nothing around it": plain,
    "Lightning, BatchSizeFinder": lightning_finder,
    "Accelerate, find_executable_batch_size": accelerate,
    "Ultralytics, its own retry": ultralytics,
    COMPOSER: composer,
    "memplan.guard around that loop": guarded,
    "Lightning, memplan's callback": lightning_guarded,
    "Ultralytics, memplan's callback": ultralytics_guarded,
    "memplan train": trained,
}


def run(kind: Kind, name: str) -> Outcome:
    """Return what a trainer made of a fault; without what it prints."""
    log = Log(kind)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                net, died = RUNS[name](log), ""
            except ImportError:  # says nothing of the trainer
                raise
            except Exception as error:  # noqa: BLE001 - whatever a trainer dies of is the answer
                net, died = None, type(error).__name__
    weights = [] if net is None else [one.detach().cpu() for one in net.parameters()]
    return Outcome(log, died, weights)


def run_on_card(number: int) -> dict[str, Any]:
    """Return of Composer's run with the fault of a number, -1 for none, what can be printed."""
    outcome = run(KINDS[number] if number >= 0 else NOTHING, COMPOSER)
    return {"died": outcome.died, **{name: getattr(outcome.log, name) for name in _SENT}} | {
        "steps": [sorted(step) for step in outcome.log.steps]
    }


_SENT = ("times", "raised", "raised_at")


if __name__ == "__main__":  # on the card of whoever started this
    print(json.dumps(run_on_card(int(sys.argv[1]))))
