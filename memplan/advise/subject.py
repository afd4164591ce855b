"""From what names a training to a question about it: workload, configuration and data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from memplan.advise.question import DEFAULT_WORKLOAD, Question
from memplan.capabilities import reader_of_data
from memplan.errors import UsageError
from memplan.planner.crowd import Crowd
from memplan.registry import takes
from memplan.workload import DataOptions

# A family of workloads whose model is chosen by --cfg as well.
_TAKES_CFG = "official:"


def workload_name(cfg: str | None, workload: str | None) -> str:
    """Return the workload that `--cfg` or `--workload` names.

    Raises:
        UsageError: both are given, and the workload takes no configuration.
    """
    if workload is not None and workload.startswith(_TAKES_CFG):
        return workload
    if cfg is not None and workload is not None:
        raise UsageError(f"--cfg {cfg} and --workload {workload} both name a model. Give one.")
    given = cfg if cfg is not None else workload
    return DEFAULT_WORKLOAD if given is None else given


def arguments_of_cfg(cfg: str | None, name: str) -> dict[str, Any]:
    """Return the arguments that a configuration adds where it does not name the workload."""
    return {"cfg": cfg} if cfg is not None and name.startswith(_TAKES_CFG) else {}


def with_data(question: Question, data: Path | None) -> tuple[Question, int | None]:
    """Return a question with what a data set says, and the training images in an epoch.

    Objects in an image and classes go to the workload where it takes them and they are not given.

    Args:
        question: about a workload that reads such data.
        data: the data set's description; None adds nothing.

    Raises:
        BadInputError: the data cannot be read.
    """
    if data is None:
        return question, None
    made, arguments = question.made, dict(question.arguments)
    opened = reader_of_data(made, data).open_data(
        DataOptions(path=data, image_size=made.image_size)
    )
    said = {
        "objects_per_image": max(1, round(Crowd.of_data(made, opened.objects_per_image).mean)),
        "num_classes": opened.num_classes,
    }
    if isinstance(question.workload, str):
        known = {name: value for name, value in said.items() if takes(question.workload, name)}
        arguments = known | arguments
    states_objects = "objects_per_image" in question.arguments
    counts = question.object_counts if states_objects else opened.objects_per_image
    return (
        replace(question, arguments=arguments, object_counts=counts),
        opened.num_training_images,
    )
