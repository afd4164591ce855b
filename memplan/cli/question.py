"""From options as typed to a question for `memplan.advise`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from memplan.bounds import MOST_BATCHES, check_number
from memplan.errors import UsageError
from memplan.spec import spec_of
from memplan.units import parse_bytes

if TYPE_CHECKING:
    from memplan.advise import Question
_MOST_DIGITS = 18
# Arguments of workloads' factories, by the parameter that sets them.
_ARGUMENTS = {
    "blocks": "blocks",
    "img": "image_size",
    "val_batch": "validation_batch_size",
    "multi_scale": "multi_scale",
    "objects_per_image": "objects_per_image",
}


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


def question_from(values: dict[str, Any]) -> Question:
    """Return the question that common options ask, without what a data set says.

    Args:
        values: a command's parameters by name, as `memplan.cli.common` declares them.

    Raises:
        UsageError: options contradict each other.
    """
    from memplan.advise import Question
    from memplan.advise.inference import TRAIN
    from memplan.advise.subject import arguments_of_cfg, workload_name
    from memplan.registry import parse_settings

    if values.get("mode", TRAIN) != TRAIN and values["precision"] is None:
        values = {**values, "precision": "fp32"}  # as trained networks are run
    name = workload_name(values["cfg"], values["workload"])
    arguments = parse_settings(values["settings"]) | arguments_of_cfg(values["cfg"], name)
    for option, argument in _ARGUMENTS.items():
        if values[option] is not None and values[option] is not False:
            arguments[argument] = values[option]
    capacity = values["capacity"]
    return Question(
        workload=name,
        arguments=arguments,
        gpus=values["gpus"],
        capacity_bytes=None if capacity is None else parse_bytes(capacity),
        spec=spec_of(values),
        calibration=values["calibration"],
        devices=values["devices"],
        cuda_version=values.get("cuda_version"),
        cudnn_version=values.get("cudnn_version"),
    )


def warn(line: str) -> None:
    """Say on standard error what a user should know."""
    click.echo(f"Warning: {line}", err=True)
