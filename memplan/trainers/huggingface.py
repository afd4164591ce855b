"""A callback for Hugging Face's `Trainer`: steps that find no room are repeated in pieces."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch

from memplan.errors import MemplanError, UsageError
from memplan.trainers import batches
from memplan.trainers.callback import TrainerGuard
from memplan.trainers.deferred import deferred
from memplan.trainers.passes import Passes, Split

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise MemplanError(
        f"memplan.trainers.huggingface needs Transformers ({error}): "
        "pip install 'transformers[torch]'."
    ) from None

_IGNORED = -100  # Source: PyTorch 2.11, torch.nn.CrossEntropyLoss, ignore_index


def split_by_labels(batch: Any, num_pieces: int) -> list[tuple[int, Any]]:
    """Return a batch in pieces, each with the number of labels that count in its loss.

    A mean over tokens is weighted so; where there is one label a sample, by samples. A piece
    without a label that counts is left out, unless no piece has one.
    """
    pieces = batches.split(batch, num_pieces)
    labels = [piece.get("labels") if hasattr(piece, "get") else None for _, piece in pieces]
    if not all(_are_tokens(one) for one in labels):
        return pieces
    counts = [int((one != _IGNORED).sum()) for one in labels if one is not None]
    counted = [
        (count, piece) for count, (_, piece) in zip(counts, pieces, strict=True) if count > 0
    ]
    return counted or pieces


def _are_tokens(labels: Any) -> bool:
    return isinstance(labels, torch.Tensor) and labels.ndim > 1 and not labels.is_floating_point()


class MemoryGuard(TrainerGuard, TrainerCallback):  # type: ignore[misc] - untyped where it is absent
    """Guards `compute_loss` and its backward pass: `trainer.add_callback(MemoryGuard(trainer))`.

    What finds no room is undone and repeated with the batch in 2, 4, ... pieces, within the same
    step: batches, accumulation, learning rates and step counts stay what they are. A loss that the
    trainer normalizes by `num_items_in_batch` is summed over the pieces, any other averaged over
    their labels.

    Limits: one process and one GPU. The transfer of a batch and evaluation are not guarded; leave
    `auto_find_batch_size` off, which begins training anew.

    Args:
        trainer: whose loss is guarded while it trains.
        loss: whether the loss is a mean or a sum where `num_items_in_batch` does not say.
        retry_after: passes after which the whole batch is tried again, >= 1.
        split: `split(batch, pieces)` returns `(weight, piece)` for layouts memplan does not know.
        optimizer_step: whether the optimizer's step is undone and repeated one parameter at a time
            too (not under fp16 mixed precision); each step then costs a copy of weights, gradients
            and optimizer state.

    Raises:
        UsageError: an argument is out of its range; when training begins, several processes or
            GPUs, or `auto_find_batch_size`.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        loss: Literal["mean", "sum"] = "mean",
        retry_after: int = 50,
        split: Split = split_by_labels,
        optimizer_step: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(trainer, Trainer):
            raise UsageError(
                f"MemoryGuard is given the trainer, not a {type(trainer).__name__}: "
                "trainer.add_callback(MemoryGuard(trainer))."
            )
        self._trainer = trainer
        self._hold(loss, retry_after, split, optimizer_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Guard the loss while training."""
        del state, control
        if args.world_size > 1 or args.n_gpu > 1:
            raise UsageError(
                "MemoryGuard guards one process on one GPU, and several train together. Set "
                "CUDA_VISIBLE_DEVICES to one, or leave the callback out."
            )
        if args.auto_find_batch_size:
            raise UsageError(
                "auto_find_batch_size begins training anew with a smaller batch. Leave it off "
                "with MemoryGuard."
            )
        passes = self._begin(self._trainer.model, [others["optimizer"]])
        self._replace(self._trainer, "compute_loss", _guarded(passes, self._trainer))

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Leave the trainer as it was."""
        del args, state, control, others
        self._leave()


def _guarded(passes: Passes, trainer: Trainer) -> Any:
    original = trainer.compute_loss

    @functools.wraps(original)
    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, **names: Any) -> Any:
        if return_outputs or not torch.is_grad_enabled():
            return original(model, inputs, return_outputs=return_outputs, **names)
        # Source: transformers 5.24, `Trainer.training_step`: losses of these are normalized by
        # the items of all accumulated batches already.
        is_sum = names.get("num_items_in_batch") is not None and (
            trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
        )
        is_mean = False if is_sum else None

        def run(piece: Any) -> tuple[torch.Tensor, None]:
            return original(model, piece, **names), None

        return deferred(passes, run, inputs, is_mean=is_mean)[0]

    return compute_loss
