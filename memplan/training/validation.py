"""The validation set through the averaged model, smaller where memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from memplan.capabilities import validation_batch
from memplan.errors import DeviceOutOfMemoryError
from memplan.training.guard import OutOfMemory, attempt, num_images, split
from memplan.training.setup import Setup
from memplan.workload import Batch, Evaluator


def validation_batch_size(setup: Setup, micro_batch_size: int) -> int:
    """Return the images validated at once: `--val-batch`, else as the workload has it."""
    if setup.options.val_batch is not None:
        return setup.options.val_batch
    batch = validation_batch(setup.workload, micro_batch_size)
    return micro_batch_size if batch is None else num_images(batch)


def validate(
    setup: Setup,
    batch_size: int,
    on_back_off: Callable[[str, int], None],
    is_asked_to_stop: Callable[[], bool] = lambda: False,
    evaluator: Evaluator | None = None,
    *,
    on_host: bool = False,
) -> tuple[dict[str, float] | None, int]:
    """Return the metrics, None where it was stopped, and the batch size that fitted in the end.

    Args:
        setup: whose averaged weights (else weights) predict.
        batch_size: images at once, >= 1; halved when memory runs out.
        on_back_off: called with the message and the new size.
        is_asked_to_stop: asked before each batch.
        on_host: whether predictions leave the device before they are evaluated.
        evaluator: fresh, to be asked more afterwards; None makes one.

    Raises:
        DeviceOutOfMemoryError: not even one image fits.
    """
    if evaluator is None:
        evaluator = setup.data.evaluator()
    with setup.step.evaluating():
        return _validate(
            setup, batch_size, on_back_off, is_asked_to_stop, evaluator, on_host=on_host
        )


def _validate(
    setup: Setup,
    batch_size: int,
    on_back_off: Callable[[str, int], None],
    is_asked_to_stop: Callable[[], bool],
    evaluator: Evaluator,
    *,
    on_host: bool,
) -> tuple[dict[str, float] | None, int]:
    losses = _Losses()
    for batch in setup.data.validation_batches(micro_batch_size=batch_size):
        if is_asked_to_stop():
            return None, batch_size
        queue = deque(split([batch], batch_size))
        while queue:
            part = queue.popleft()
            answer = attempt(lambda part=part: _evaluate(setup, part))  # type: ignore[misc]
            if not isinstance(answer, OutOfMemory):
                predictions, parts = answer
                evaluator.update(_to_host(predictions) if on_host else predictions, part)
                losses.add(parts, num_images(part))
                continue
            if batch_size == 1 or not setup.options.guard:
                raise DeviceOutOfMemoryError(
                    f"Validation at {batch_size} image(s) finds no room ({answer.message}). "
                    "Lower --val-batch or --img.",
                    0,
                )
            batch_size //= 2
            on_back_off(answer.message, batch_size)
            queue = deque(split([part, *queue], batch_size))
    metrics = {name: float(value) for name, value in evaluator.compute().items()}
    return {**metrics, **losses.means(setup.loss_names)}, batch_size


def _to_host(value: Any) -> Any:
    """Return predictions with their tensors on the host."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _to_host(one) for key, one in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_to_host(one) for one in value)
    return value


class _Losses:
    """The parts of the loss over the validation set, a mean of its images."""

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._images = 0

    def add(self, parts: torch.Tensor | None, images: int) -> None:
        """Add a batch's parts, means over its images; None where there are none."""
        if parts is not None:
            weighted = parts.double().cpu() * images
            self._sums = weighted if self._sums is None else self._sums + weighted
            self._images += images

    def means(self, names: tuple[str, ...] | None) -> dict[str, float]:
        """Return each part as `val/NAME`; empty where validation has no loss."""
        if self._sums is None:
            return {}
        values = (self._sums / self._images).tolist()
        if names is None or len(names) != len(values):
            names = tuple(f"loss_{part}" for part in range(len(values)))
        return {f"val/{name}": value for name, value in zip(names, values, strict=True)}


def _evaluate(setup: Setup, batch: Batch) -> tuple[Any, torch.Tensor | None]:
    return setup.step.evaluate(setup.step.to_device(batch))
