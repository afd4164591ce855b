"""Answers how fast images can be read: what the input pipeline limits training to."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memplan.answers import InputPipeline, PlanAnswer
from memplan.capabilities import reader_of_data
from memplan.errors import UsageError
from memplan.workload import Batch, DataOptions, Workload

# Images of one measurement: the first batch warms up, the others are timed.
_BATCH = 8
_NUM_BATCHES = 5
_MOST_SECONDS = 4.0


def input_pipeline(
    workload: Workload,
    data: Path | None,
    num_workers: int | None,
    worker_rate: float | None,
    clock: Callable[[], float] = time.perf_counter,
) -> InputPipeline | None:
    """Return what loader processes can read; None where neither their number nor data is known.

    Args:
        workload: opens and augments the data.
        data: the data set's description.
        num_workers: loader processes; None leaves the question out.
        worker_rate: images a second of one of them; None measures it here, on a few batches read
            in this process.
        clock: tells seconds.

    Raises:
        UsageError: workers or rate below what makes sense, or nothing to measure with.

    Limits: measured on this machine's disk and processor, and workers are taken not to slow each
    other down, which holds while there are as many cores.
    """
    if num_workers is None:
        if worker_rate is not None:
            raise UsageError(f"--worker-rate {worker_rate:g} is of one worker. Add --workers N.")
        return None
    if num_workers < 0:
        raise UsageError(f"--workers {num_workers} is below 0. Give 0 to load without them.")
    if worker_rate is not None and not worker_rate > 0:
        raise UsageError(f"--worker-rate {worker_rate:g} is not above 0 images a second.")
    is_measured = worker_rate is None
    if worker_rate is None:
        if data is None:
            raise UsageError(
                f"--workers {num_workers} limits images a second, which takes data to measure or "
                "a rate. Add --data data.yaml, or --worker-rate IMAGES."
            )
        worker_rate = _measured(workload, data, clock)
    return InputPipeline(
        num_workers=num_workers,
        images_per_second_per_worker=worker_rate,
        images_per_second=worker_rate * max(1, num_workers),
        origin="measured" if is_measured else "given",
    )


def _measured(workload: Workload, data: Path, clock: Callable[[], float]) -> float:
    """Return the images a second that one process reads and augments."""
    opened = reader_of_data(workload, data).open_data(
        DataOptions(path=data, image_size=workload.image_size)
    )
    batches = iter(opened.training_batches(micro_batch_size=_BATCH, epoch=0, augment_fully=True))
    first = next(batches)
    images = _num_images(first)
    began = clock()
    if opened.num_training_images > _BATCH:
        images = 0
        for batch in itertools.islice(batches, _NUM_BATCHES - 1):
            images += _num_images(batch)
            if clock() - began > _MOST_SECONDS:
                break
    else:
        again = opened.training_batches(micro_batch_size=_BATCH, epoch=1, augment_fully=True)
        images = sum(_num_images(batch) for batch in again)
    return images / max(clock() - began, 1e-9)


def _num_images(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def limited(answer: PlanAnswer, pipeline: InputPipeline | None) -> PlanAnswer:
    """Return a plan whose epoch takes as long as the slower of card and input pipeline."""
    if pipeline is None:
        return answer
    predicted = answer.predicted
    if predicted.epoch_seconds is None or (
        predicted.images_per_second <= pipeline.images_per_second
    ):
        return replace(answer, input_pipeline=pipeline)
    longer = predicted.epoch_seconds * predicted.images_per_second / pipeline.images_per_second
    return replace(
        answer,
        input_pipeline=pipeline,
        predicted=replace(predicted, epoch_seconds=longer),
    )
