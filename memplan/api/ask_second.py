"""Answers what a second card of the same kind buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memplan.api.asking import Planned
from memplan.api.planning import plan_one
from memplan.device.distributed import (
    DataParallel,
    ModelTensors,
    training_policy,
    with_data_parallel,
)
from memplan.errors import UsageError
from memplan.plan_answers import SecondCard
from memplan.planner.evaluate import Key, Recordings


def check_second(devices: int, effective_batch_size: int) -> None:
    """Refuse what two cards cannot share.

    Raises:
        UsageError: there are two or more already, or the images a step are odd.
    """
    if devices > 1:
        raise UsageError(
            f"--second-card compares one card with two, but --devices is {devices}. Leave it out."
        )
    if effective_batch_size % 2:
        raise UsageError(
            f"--second-card shares {effective_batch_size} images a step between two, which cannot "
            f"be done evenly. Give --effective-batch {effective_batch_size + 1}."
        )


class _OfRanks(Recordings):
    """Tapes of one rank, made of those of a device alone.

    Args:
        alone: what the tapes are made of; it keeps what is recorded.
        tensors: the model's.
        parallel: how the ranks train together.
    """

    def __init__(self, alone: Recordings, tensors: ModelTensors, parallel: DataParallel) -> None:
        super().__init__(alone.recorder_of)
        self._alone, self._tensors, self._parallel = alone, tensors, parallel

    def need(self, keys: Sequence[Key]) -> None:
        """Record what is missing, and make tapes of a rank of them."""
        self._alone.need(keys)
        for settings, batch in keys:
            if not self.has(settings, batch):
                tape = self._alone.tape(settings, batch)
                tape = with_data_parallel(tape, self._tensors, self._parallel)
                self.keep(settings, batch, tape)


def second_card(planned: Planned, num_images: int | None) -> SecondCard:
    """Return the plan of two cards, with the images a step of one.

    Args:
        planned: the plan of one card; its recordings serve both.
        num_images: training images in an epoch; None where the data is not known.

    Raises:
        UsageError: two cards cannot share the batch.
    """
    question = planned.question
    check_second(question.devices, planned.asked_batch_size)
    two = replace(question, devices=2)
    parallel = training_policy(2, sync_batch_norm=question.spec.sync_bn)

    planned.say("Planning for two cards")
    plan = plan_one(
        two,
        effective_batch_size=planned.asked_batch_size,
        safety_fraction=planned.budget.safety_fraction,
        num_images=num_images,
        free=planned.free,
        recordings=_OfRanks(planned.recordings, question.model_tensors, parallel),
        say=planned.say,
    )
    ranks = plan.other_ranks
    assert ranks is not None
    rate = plan.predicted.images_per_second
    return SecondCard(
        spec=plan.spec,
        split=plan.split,
        first_rank_peak_bytes=plan.predicted.device_used_peak_bytes,
        other_rank_peak_bytes=ranks.device_used_peak_bytes,
        bucket_bytes=ranks.bucket_bytes,
        images_per_second=rate,
        ratio=rate / planned.chosen.predicted.images_per_second,
        epoch_seconds=plan.predicted.epoch_seconds,
        epoch_seconds_alone=planned.chosen.predicted.epoch_seconds,
    )
