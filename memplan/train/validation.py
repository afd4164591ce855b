"""The validation set through the averaged model, smaller where memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from memplan.errors import DeviceOutOfMemoryError
from memplan.train.guard import OutOfMemory, attempt, num_images, split
from memplan.train.setup import Setup
from memplan.workload import Batch, Evaluator


def validation_batch_size(setup: Setup, micro_batch_size: int) -> int:
    """Return the images validated at once: `--val-batch`, else as the workload has it."""
    if setup.options.val_batch is not None:
        return setup.options.val_batch
    batch = setup.workload.make_validation_batch(micro_batch_size)
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
    for batch in setup.data.validation_batches(micro_batch_size=batch_size):
        if is_asked_to_stop():
            return None, batch_size
        queue = deque(split([batch], batch_size))
        while queue:
            part = queue.popleft()
            predictions = attempt(lambda part=part: _predict(setup, part))  # type: ignore[misc]
            if not isinstance(predictions, OutOfMemory):
                evaluator.update(_to_host(predictions) if on_host else predictions, part)
                continue
            if batch_size == 1 or not setup.options.guard:
                raise DeviceOutOfMemoryError(
                    f"Validation at {batch_size} image(s) finds no room ({predictions.message}). "
                    "Lower --val-batch or --img.",
                    0,
                )
            batch_size //= 2
            on_back_off(predictions.message, batch_size)
            queue = deque(split([part, *queue], batch_size))
    metrics = {name: float(value) for name, value in evaluator.compute().items()}
    return metrics, batch_size


def _to_host(value: Any) -> Any:
    """Return predictions with their tensors on the host."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _to_host(one) for key, one in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_to_host(one) for one in value)
    return value


def _predict(setup: Setup, batch: Batch) -> Any:
    return setup.step.predict(setup.step.to_device(batch))
