"""Callbacks for Ultralytics: steps that find no room are repeated in pieces.

Source: the public callbacks and attributes of Ultralytics 8.4 (`on_train_start`, `teardown`;
`trainer.model`, called with a batch's dictionary, returns the loss and its items), and its
documented batches: `img`, `[B, 3, H, W]`, and objects, `[n, ...]`, with `batch_idx`, `[n]`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch

from memplan.errors import MemplanError, UsageError
from memplan.trainers import batches
from memplan.trainers.callback import TrainerGuard
from memplan.trainers.deferred import deferred
from memplan.trainers.passes import Passes, Split

try:
    import ultralytics  # noqa: F401 - told here rather than in the middle of a run
except ImportError as error:
    raise MemplanError(
        f"memplan.trainers.ultralytics needs Ultralytics ({error}): pip install ultralytics."
    ) from None

_OF_OBJECTS = ("batch_idx", "cls", "bboxes", "keypoints", "segments", "obb")
# Source: Ultralytics 8.4: these tasks' losses are means over the batch; all others' are
# multiplied by its images.
_MEANS = ("classify", "semantic")


def split_images(batch: Any, num_pieces: int) -> list[tuple[int, Any]]:
    """Return a batch in pieces of nearly as many images, each with its objects.

    Objects' values go with the images that `batch_idx` names, which is numbered anew.

    Raises:
        BadInputError: it is no batch of Ultralytics'.
    """
    if "batch_idx" not in batch:
        return batches.split(batch, num_pieces)
    images, owners = len(batch["img"]), batch["batch_idx"]
    of_images = {name: one for name, one in batch.items() if not _is_of_objects(name, one, batch)}
    pieces, start = [], 0
    for count, piece in batches.split(of_images, num_pieces):
        chosen = (owners >= start) & (owners < start + count)
        for name in batch.keys() - of_images.keys():
            piece[name] = batch[name][chosen]
        piece["batch_idx"] = piece["batch_idx"] - start
        pieces.append((count, {name: piece[name] for name in batch}))
        start += count
    assert start == images
    return pieces


def _is_of_objects(name: str, value: Any, batch: Any) -> bool:
    if name in _OF_OBJECTS:
        return isinstance(value, torch.Tensor)
    is_like = isinstance(value, torch.Tensor) and len(value) == len(batch["batch_idx"])
    return name == "masks" and is_like and len(value) != len(batch["img"])


class MemoryGuard(TrainerGuard):
    """Guards the loss and its backward pass: `MemoryGuard().attach(YOLO("yolo11n.pt"))`.

    What finds no room is undone and repeated with the batch in 2, 4, ... pieces, within the same
    step, in any epoch: batches, accumulation, learning rates and warm-up stay what they are, and
    Ultralytics' own retry, which halves the batch of the run, is not reached.

    Limits: one process; a compiled model is refused. Detection losses are normalized by the
    batch's positive anchors, in pieces by those of each piece: gradients are close to the whole
    batch's, not equal. The transfer of a batch and validation are not guarded.

    Args:
        loss: whether the loss is a mean over images or grows with them; None tells by the task.
        retry_after: passes after which the whole batch is tried again, >= 1.
        split: `split(batch, pieces)` returns `(images, piece)` for layouts memplan does not know.
        optimizer_step: whether the optimizer's step is undone and repeated one parameter at a time
            too; each step then costs a copy of weights, gradients and optimizer state.
        watch: whether memory is looked at after each pass, which resets the allocator's peaks.

    Raises:
        UsageError: an argument is out of its range; when training begins, several processes or a
            compiled model.
    """

    def __init__(
        self,
        *,
        loss: Literal["mean", "sum"] | None = None,
        retry_after: int = 50,
        split: Split = split_images,
        optimizer_step: bool = False,
        watch: bool = True,
    ) -> None:
        self._hold(loss or "sum", retry_after, split, optimizer_step, watch)
        self._loss = loss

    def attach(self, model: Any) -> None:
        """Add the callbacks to a `YOLO` model, or to one of its trainers, before it trains."""
        if not hasattr(model, "add_callback"):
            raise UsageError(
                f"attach() is given a YOLO model or a trainer, not a {type(model).__name__}."
            )
        model.add_callback("on_train_start", self.on_train_start)
        model.add_callback("teardown", self.teardown)

    def on_train_start(self, trainer: Any) -> None:
        """Guard the model's loss while it trains."""
        if trainer.world_size > 1:
            raise UsageError(
                f"MemoryGuard guards one process, and {trainer.world_size} train together. Give "
                "one device, or leave the callback out."
            )
        if trainer.args.compile:
            raise UsageError(
                "MemoryGuard does not reach into a compiled model. Give compile=False."
            )
        passes = self._begin(trainer.model, [trainer.optimizer])
        is_mean = (trainer.args.task in _MEANS) if self._loss is None else self._loss == "mean"
        self._replace(trainer.model, "forward", _guarded(passes, trainer.model, is_mean=is_mean))

    def teardown(self, trainer: Any) -> None:
        """Leave the model as it was."""
        del trainer
        self._leave()


def _guarded(passes: Passes, model: Any, *, is_mean: bool) -> Callable[..., Any]:
    original = model.forward

    @functools.wraps(original)
    def forward(batch: Any, *others: Any, **names: Any) -> Any:
        if not (isinstance(batch, dict) and torch.is_grad_enabled() and model.training):
            return original(batch, *others, **names)

        def run(piece: Any) -> tuple[torch.Tensor, Any]:
            loss, items = original(piece, *others, **names)
            return loss, batches.detached(items)

        loss, items = deferred(passes, run, batch, is_mean=lambda: is_mean)
        return loss, batches.joined(items)

    return forward
