"""The functions behind the commands."""

from __future__ import annotations

from memplan.advise.also import (
    Also,
    CommandCheck,
    CompareCards,
    Headroom,
    MaxImageSize,
    SecondCard,
)
from memplan.advise.functions import plan, probe, record, replay
from memplan.advise.planning import plan_many, plan_one
from memplan.advise.probing import probe_many
from memplan.advise.question import DEFAULT_SAFETY, DEFAULT_WORKLOAD, Question, versions
from memplan.advise.regression import check
from memplan.advise.train_function import train
from memplan.advise.trained import export, predict, val
from memplan.device.known import gpus

__all__ = [
    "DEFAULT_SAFETY",
    "DEFAULT_WORKLOAD",
    "Also",
    "CommandCheck",
    "CompareCards",
    "Headroom",
    "MaxImageSize",
    "Question",
    "SecondCard",
    "check",
    "export",
    "gpus",
    "plan",
    "plan_many",
    "plan_one",
    "predict",
    "probe",
    "probe_many",
    "record",
    "replay",
    "train",
    "val",
    "versions",
]
