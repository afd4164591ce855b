"""From options as typed to a question for `memplan.api`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memplan.bounds import MOST_BATCHES, check_number
from memplan.capabilities import reader_of_data
from memplan.errors import UsageError
from memplan.spec import spec_of
from memplan.units import parse_bytes

if TYPE_CHECKING:
    from memplan.api import Question
    from memplan.workload import TrainingData


_MOST_DIGITS = 18


def parse_batches(texts: tuple[str, ...]) -> list[int]:
    """Return micro-batch sizes from `--batch 16` or `--batch 1:64`, ascending, each once.

    Raises:
        UsageError: a text is neither a number nor FIRST:LAST, or is below 1.
    """
    batches: set[int] = set()
    for text in texts:
        first, colon, last = text.partition(":")
        # Not isdigit: superscripts are digits too.
        if not first.isdecimal() or (colon and not last.isdecimal()):
            raise UsageError(f"--batch {text!r} is neither a number nor FIRST:LAST, such as 1:64.")
        if max(len(first), len(last)) > _MOST_DIGITS:
            raise UsageError(f"--batch is a number of {len(text)} digits. Give one such as 16.")
        low, high = int(first), int(last or first)
        if low < 1:
            raise UsageError(f"--batch {text} is below 1. Give at least one image.")
        if high < low:
            raise UsageError(f"--batch {text} ends before it begins. Write {high}:{low}.")
        check_number("--batch", high)
        if high - low >= MOST_BATCHES:
            raise UsageError(
                f"--batch {text} is {high - low + 1} sizes; {MOST_BATCHES} at once are the most."
            )
        batches.update(range(low, high + 1))
    return sorted(batches)


# A family of workloads whose model is chosen by --cfg as well.
_TAKES_CFG = "official:"


def workload_name(cfg: str | None, workload: str | None) -> str:
    """Return the workload that `--cfg` or `--workload` names.

    Raises:
        UsageError: both are given, and the workload takes no configuration.
    """
    from memplan.api import DEFAULT_WORKLOAD

    if workload is not None and workload.startswith(_TAKES_CFG):
        return workload
    if cfg is not None and workload is not None:
        raise UsageError(f"--cfg {cfg} and --workload {workload} both name a model. Give one.")
    given = cfg if cfg is not None else workload
    return DEFAULT_WORKLOAD if given is None else given


def _add_data(data: Path, workload: str, arguments: dict[str, Any]) -> TrainingData:
    """Return the data set, what it says of itself added to the workload's arguments."""
    from memplan.planner.crowd import Crowd
    from memplan.registry import make_workload, takes
    from memplan.workload import DataOptions

    made = make_workload(workload, arguments)
    opened = reader_of_data(made, data).open_data(
        DataOptions(path=data, image_size=made.image_size)
    )
    crowd = Crowd.of_data(made, opened.objects_per_image)
    said = {
        "objects_per_image": max(1, round(crowd.mean)),
        "num_classes": opened.num_classes,
    }
    for argument, value in said.items():
        if takes(workload, argument):
            arguments.setdefault(argument, value)
    return opened


def question_from(values: dict[str, Any]) -> tuple[Question, int | None]:
    """Return the question that common options ask, and the training images if data is given.

    Args:
        values: a command's parameters by name, as `memplan.cli.common` declares them.

    Raises:
        UsageError: options contradict each other.
    """
    from memplan.api import Question
    from memplan.device.calibration import load
    from memplan.registry import parse_settings

    name = workload_name(values["cfg"], values["workload"])
    arguments = parse_settings(values["settings"])
    if values["cfg"] is not None and name.startswith(_TAKES_CFG):
        arguments["cfg"] = values["cfg"]
    if values["img"] is not None:
        arguments["image_size"] = values["img"]
    if values["val_batch"] is not None:
        arguments["validation_batch_size"] = values["val_batch"]
    if values["multi_scale"]:
        arguments["multi_scale"] = True
    if values["objects_per_image"] is not None:
        arguments["objects_per_image"] = values["objects_per_image"]
    num_images, counts = None, None
    if values["data_path"] is not None:
        states_objects = "objects_per_image" in arguments
        data = _add_data(values["data_path"], name, arguments)
        num_images = data.num_training_images
        counts = None if states_objects else data.objects_per_image
    capacity = values["capacity"]
    question = Question(
        workload=name,
        arguments=arguments,
        gpus=values["gpus"],
        capacity_bytes=None if capacity is None else parse_bytes(capacity),
        spec=spec_of(values),
        calibration=values["calibration"],
        devices=values["devices"],
        cuda_version=values.get("cuda_version"),
        cudnn_version=values.get("cudnn_version"),
        object_counts=counts,
    )
    warn_of_calibrations(question)
    if isinstance(question.calibration, Path):
        # It has been found to be of one of the cards; the others may be asked about alone.
        question = replace(question, calibration=load(question.calibration))
    return question, num_images


def warn_of_calibrations(question: Question) -> None:
    """Say on standard error under which other libraries the cards were calibrated.

    Raises:
        MemplanError: there is no such card, or its calibration cannot be used.
    """
    for line in question.calibration_warnings():
        click.echo(f"Warning: {line}", err=True)
