"""A callback for Hugging Face's `Trainer`: steps that find no room are repeated in pieces."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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

_ITEMS = "num_items_in_batch"
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


class MemoryGuard(TrainerGuard, TrainerCallback):  # type: ignore[misc]
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
        watch: whether memory is looked at after each pass, which resets the allocator's peaks.

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
        watch: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(trainer, Trainer):
            raise UsageError(
                f"MemoryGuard is given the trainer, not a {type(trainer).__name__}: "
                "trainer.add_callback(MemoryGuard(trainer))."
            )
        self._trainer = trainer
        self._hold(loss, retry_after, split, optimizer_step, watch)

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


class _LossSort:
    """Whether a loss that is told the items of all accumulated batches is a sum over them.

    A model may take the number and leave it: then its loss is a mean. One sample's loss is asked
    for with one number and with twice it.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self.is_mean: bool | None = None

    def find(self, loss: Callable[..., torch.Tensor], batch: Any, names: dict[str, Any]) -> None:
        """Find it out from one sample of a batch."""
        start, (_, piece) = self._passes.start(), self._passes.split(batch, len(batch["labels"]))[0]
        losses = []
        for factor in (1, 2):
            with torch.no_grad():
                more = {**names, _ITEMS: names[_ITEMS] * factor}
                losses.append(float(loss(batches.copied(piece), **more)))
            start.restore()
        self.is_mean = not math.isclose(losses[0], 2 * losses[1], rel_tol=0.01)


def _guarded(passes: Passes, trainer: Trainer) -> Any:
    original, sort = trainer.compute_loss, _LossSort(passes)

    @functools.wraps(original)
    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, **names: Any) -> Any:
        if return_outputs or not torch.is_grad_enabled():
            return original(model, inputs, return_outputs=return_outputs, **names)

        def run(piece: Any) -> tuple[torch.Tensor, None]:
            return original(model, piece, **names), None

        def is_mean() -> bool:
            if sort.is_mean is None:
                sort.find(functools.partial(original, model), inputs, names)
            return bool(sort.is_mean)

        return deferred(
            passes, run, inputs, is_mean=is_mean if names.get(_ITEMS) is not None else None
        )[0]

    return compute_loss
