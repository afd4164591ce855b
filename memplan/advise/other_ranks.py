"""Answers what the ranks beside rank 0 take."""

from __future__ import annotations

from memplan.advise.question import Question
from memplan.answers import RankPeaks
from memplan.device.distributed import of_other_rank
from memplan.device.life import Life
from memplan.device.replay import Simulator
from memplan.evaluation.evaluate import evaluate
from memplan.tape import Tape


def other_ranks(
    question: Question, simulator: Simulator, tape: Tape, *, accumulates: bool = False
) -> RankPeaks | None:
    """Return the peaks of a rank other than 0 at a tape's micro-batch size; None of one device.

    Args:
        question: tells the objects in the fullest images.
        simulator: the card.
        tape: of rank 0.
        accumulates: whether gradients of several micro-batches are summed before a step.
    """
    if question.devices == 1:
        return None
    about = tape.description
    other = of_other_rank(tape)
    life = Life(accumulates=accumulates, validates=False)
    peaks = evaluate(other, life, simulator, question.objects(about.micro_batch_size)).peaks
    return RankPeaks(
        micro_batch_size=about.micro_batch_size,
        allocated_peak_bytes=peaks.allocated_peak_bytes,
        reserved_peak_bytes=peaks.reserved_peak_bytes,
        device_used_peak_bytes=peaks.device_used_peak_bytes,
        bucket_bytes=sum(one.num_bytes for one in question.model_tensors.parameters),
    )
