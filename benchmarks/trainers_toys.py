"""Tiny runs of Lightning, Transformers and Ultralytics on a CPU, with an error in their middle.

Each run trains a few steps of the real trainer and reports what came of it. The error is of memory
and is raised where a batch of more than some samples comes, in forward pass, backward pass or
optimizer's step, as a card too small for such a batch would.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

PLACES = ("forward", "backward", "optimizer step")


@dataclass
class Outcome:
    """What a run came to."""

    weights: dict[str, torch.Tensor]
    num_steps: int
    """Of the optimizer."""
    batch_size: int
    """In the trainer's settings, at the end."""
    num_events: int = 0
    losses: list[float] = field(default_factory=list)


@dataclass
class Hit:
    """Where memory runs out, and for how many samples.

    Args:
        where: of `PLACES`; None for nowhere.
        most: samples that find room.
    """

    where: str | None = None
    most: int = 3

    def forward(self, samples: int) -> None:
        """Find no room in the forward pass."""
        if self.where == "forward" and samples > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def backward(self, loss: torch.Tensor, samples: int) -> torch.Tensor:
        """Return a loss whose backward pass finds no room."""
        is_hit = self.where == "backward" and samples > self.most
        return _NoRoom.apply(loss) if is_hit else loss

    def optimizer(self, kind: Any) -> Any:
        """Return a class of optimizers whose first step spoils its weights and finds no room."""
        return _spoiling(kind) if self.where == "optimizer step" else kind


class _NoRoom(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(_ctx, _gradient):
        raise RuntimeError("CUDA error: out of memory")


def _spoiling(kind: Any) -> Any:
    class Spoiling(kind):
        hits = 1

        def step(self, closure=None):
            loss = None if closure is None else torch.enable_grad()(closure)()
            if self.hits:
                self.hits -= 1
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.data.mul_(1 if parameter.grad is None else 3)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            kind.step(self)
            return loss

    return Spoiling


def lightning_run(hit: Hit, *, guarded: bool, accumulate: int = 1, **options: Any) -> Outcome:
    """Train nine batches of seven samples with Lightning."""
    import lightning
    import torchmetrics

    from memplan.trainers.lightning import MemoryGuard

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
            )
            self.labels = torchmetrics.SumMetric()

        def training_step(self, batch, _index):
            x, y = batch
            self.labels.update(y)
            loss = torch.nn.functional.mse_loss(self.net(x), y)
            self.log("loss", loss, on_step=True, on_epoch=True)
            hit.forward(len(x))
            return {"loss": hit.backward(loss, len(x)), "labels": y}

        def configure_optimizers(self):
            return hit.optimizer(torch.optim.AdamW)(self.parameters(), lr=0.01)

    numbers = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(
        torch.randn(21, 4, generator=numbers), torch.randn(21, 1, generator=numbers)
    )
    guard = MemoryGuard(retry_after=4, optimizer_step=True, **options)
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[guard] if guarded else [],
        accumulate_grad_batches=accumulate,
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = Net()
    loader = torch.utils.data.DataLoader(data, batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(net, loader)
    losses = [float(trainer.callback_metrics["loss_epoch"]), float(net.labels.compute())]
    weights = _weights(net)
    return Outcome(weights, trainer.global_step, loader.batch_size, len(guard.events), losses)


def huggingface_run(
    hit: Hit, folder: Path, *, guarded: bool, accumulate: int = 1, kind: str = "gpt"
) -> Outcome:
    """Train six batches of seven samples with Transformers' `Trainer`.

    Args:
        hit: where memory runs out.
        folder: for what the trainer writes.
        guarded: whether the callback is there.
        accumulate: micro-batches to an optimizer step.
        kind: `gpt`, whose loss is told the items of a step, or `tokens`, whose loss leaves them.
    """
    from transformers import Trainer, TrainingArguments

    from memplan.trainers.huggingface import MemoryGuard

    model = _language_model(kind)
    _hit_forward(model, hit)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=7,
        gradient_accumulation_steps=accumulate,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="epoch",
        disable_tqdm=True,
        learning_rate=1e-3,
    )
    optimizer = hit.optimizer(torch.optim.AdamW)(model.parameters(), lr=1e-3)
    trainer = Trainer(model, arguments, train_dataset=_texts(kind), optimizers=(optimizer, None))
    guard = MemoryGuard(trainer, retry_after=4, optimizer_step=True)
    if guarded:
        trainer.add_callback(guard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    batch_size = arguments.per_device_train_batch_size
    return Outcome(
        _weights(model), trainer.state.global_step, batch_size, len(guard.events), losses
    )


def _language_model(kind: str) -> torch.nn.Module:
    from transformers import BertConfig, BertForTokenClassification, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if kind == "tokens":
        config = BertConfig(
            num_labels=3,
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return BertForTokenClassification(config)
    config = GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def _texts(kind: str) -> list[dict[str, torch.Tensor]]:
    """Return 21 texts of eight tokens, of which different numbers count in the loss."""
    numbers = torch.Generator().manual_seed(1)
    texts = []
    for index in range(21):
        tokens = torch.randint(0, 50, (8,), generator=numbers)
        labels = tokens % 3 if kind == "tokens" else tokens.clone()
        labels[: index % 6] = -100
        texts.append({"input_ids": tokens, "labels": labels})
    return texts


def _hit_forward(model: Any, hit: Hit) -> None:
    original = model.forward

    @functools.wraps(original)
    def forward(*others: Any, **names: Any) -> Any:
        samples = len(names["input_ids"])
        hit.forward(samples)
        output = original(*others, **names)
        output.loss = hit.backward(output.loss, samples)
        return output

    model.forward = forward


def ultralytics_run(hit: Hit, folder: Path, *, guarded: bool) -> Outcome:
    """Train six batches of four images with Ultralytics' YOLOv8n, from random weights.

    Ultralytics has no hook for an optimizer of one's own, so the trainer's is made to fail.
    """
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ.setdefault("YOLO_CONFIG_DIR", str(folder))
    os.environ["YOLO_AUTOINSTALL"] = "false"
    from ultralytics import YOLO

    from memplan.trainers.ultralytics import MemoryGuard

    model, trainers = YOLO("yolov8n.yaml"), []
    outcome = Outcome({}, 0, 0)
    model.add_callback("on_train_start", functools.partial(_hit_trainer, hit, trainers))
    guard = MemoryGuard(retry_after=4, optimizer_step=True)
    if guarded:
        guard.attach(model)
    model.add_callback("on_train_epoch_end", functools.partial(_note, outcome))
    model.train(
        data=str(_pictures(folder)),
        imgsz=64,
        epochs=2,
        batch=4,
        nbs=4,
        device="cpu",
        plots=False,
        val=False,
        project=str(folder / "runs"),
        exist_ok=True,
        verbose=False,
        warmup_epochs=0,
        amp=False,
        mosaic=0,
        optimizer="SGD",
        lr0=0.001,
    )
    outcome.num_events = len(guard.events)
    return outcome


def _hit_trainer(hit: Hit, trainers: list[Any], trainer: Any) -> None:
    original, optimizer = trainer.model.forward, trainer.optimizer
    trainers.append(trainer)

    @functools.wraps(original)
    def forward(batch: Any, *others: Any, **names: Any) -> Any:
        if not isinstance(batch, dict):
            return original(batch, *others, **names)
        hit.forward(len(batch["img"]))
        loss, items = original(batch, *others, **names)
        return hit.backward(loss, len(batch["img"])), items

    vars(trainer.model)["forward"] = forward
    if hit.where == "optimizer step":
        optimizer.__class__ = _spoiling(type(optimizer))
        vars(optimizer).pop("step", None)  # the scheduler's, which calls the former class's


def _note(outcome: Outcome, trainer: Any) -> None:
    outcome.weights = _weights(trainer.model)
    outcome.batch_size = trainer.batch_size
    outcome.num_steps += len(trainer.train_loader)
    outcome.losses.append(sum(float(one) for one in trainer.tloss.values()))


def _pictures(folder: Path) -> Path:
    """Return the `data.yaml` of 12 pictures with one to three boxes each."""
    import cv2

    path = folder / "set" / "data.yaml"
    if path.exists():
        return path
    numbers = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 2)):
        for kind in ("images", "labels"):
            (path.parent / kind / part).mkdir(parents=True)
        for index in range(count):
            picture = numbers.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(path.parent / "images" / part / f"{index}.jpg"), picture)
            lines = [
                f"{numbers.integers(2)} {x:.3f} {y:.3f} 0.4 0.4\n"
                for x, y in numbers.uniform(0.25, 0.75, (1 + index % 3, 2))
            ]
            (path.parent / "labels" / part / f"{index}.txt").write_text("".join(lines))
    path.write_text(f"path: {path.parent}\ntrain: images/train\nval: images/val\nnames: [a, b]\n")
    return path


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def difference(one: Outcome, other: Outcome) -> float:
    """Return the largest difference of a weight."""
    pairs: Callable[[str], torch.Tensor] = lambda name: one.weights[name] - other.weights[name]  # noqa: E731
    return max(float(pairs(name).abs().max()) for name in one.weights)
