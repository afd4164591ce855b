"""Reads the training command of `memplan plan --fit` with the options of `memplan train`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from memplan.advise.command_options import ultralytics_options, whole_options
from memplan.advise.command_words import Words, words_of
from memplan.advise.subject import arguments_of_cfg, workload_name
from memplan.advise.training_command import TrainingCommand
from memplan.capabilities import reader_of_data
from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.registry import make_workload, takes
from memplan.spec import LEVER, LEVERS, Split, spec_of
from memplan.training.command_line import read_train_options
from memplan.workload import DataOptions

# PyTorch 2.9 and later read the new name of the first as well.
_SPELLINGS = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}
_ASSUMED_OBJECTS = 20
_LEVERS = [one.name for one in LEVERS if {"plan", "train"} <= one.commands]
# What the command says itself, by parameter of `memplan plan`.
_SAID_BY_COMMAND = {
    "cfg": "--cfg", "workload": "--workload", "img": "--img", "val_batch": "--val-batch",
    "multi_scale": "--multi-scale", "data": "--data", "effective_batch": "--effective-batch",
    "devices": "--devices", "spec": "spec",
} | {name: LEVER[name].option for name in _LEVERS}  # fmt: skip
_REASONS = {
    "auto_batch": "plans its batch itself. Give a number in --batch, or plan without --fit",
    "plan_file": "follows a plan, which fits by itself. Leave out --plan, or plan without --fit",
    "compiled": "runs under torch.compile, whose memory is not predicted. Leave out --compile",
    "quad": "makes images of four, which plans do not know. Leave out --quad, or probe it",
}


def read_command(text: str) -> TrainingCommand:
    """Return a command as it was typed, read.

    Raises:
        UsageError: it is no training command, or none with a batch of its own.
    """
    words = words_of(text)
    assumptions = [f"{one!r} is left out of the reading." for one in words.left_out]
    if words.is_ultralytics:
        options = ultralytics_options(words.options, assumptions)
    else:
        options = whole_options(words.options)
    values = _values(options)
    _check(values)
    devices = _devices(values, words)
    batch = _on_each(values, devices)
    name = workload_name(values["cfg"], values["workload"])
    data = _data(values, name, assumptions)
    assumptions += _assumed(values)
    at_once = batch * devices
    nominal = 0
    if not values["accumulate"]:
        nominal = values["effective_batch"] or make_workload(name).nominal_batch_size
    steps = values["accumulate"] or max(1, round(nominal / at_once))
    assumptions += _what_the_script_cannot(words, values)
    if values["recompute"] == "auto":
        raise UsageError("--fit: --recompute auto is chosen by a plan. Give none, all or paths.")
    levers = {lever: values[lever] for lever in _LEVERS} | _in_environment(words.variables)
    return TrainingCommand(
        text=text,
        variables=words.variables,
        program=words.program,
        options=options,
        is_official=words.program[-1].endswith(".py"),
        workload=name,
        arguments=_arguments(values, name),
        data=data,
        split=Split(micro_batch_size=batch, accumulation_steps=steps, devices=devices),
        nominal=nominal,
        spec=spec_of(levers),
        validation_batch=values["val_batch"],
        assumptions=tuple(assumptions),
    )


def refuse_said_twice(given: Collection[str]) -> None:
    """Refuse what is given beside a command that says it itself.

    Args:
        given: parameters of `memplan plan`, or of `memplan.plan`, by name.

    Raises:
        UsageError: the command says one of them.
    """
    for name, option in _SAID_BY_COMMAND.items():
        if name in given:
            raise UsageError(
                f"{option} stands beside --fit, whose command says it. Put {option} into the "
                "command, or leave it out."
            )


def _values(options: tuple[str, ...]) -> dict[str, Any]:
    """Return every option of `memplan train` by name."""
    try:
        return read_train_options(options)
    except click.ClickException as error:
        raise UsageError(
            f"--fit cannot read the command: {error.format_message()} Correct it; "
            "`memplan train --help` lists what it takes."
        ) from None
    except MemplanError as error:
        raise UsageError(f"--fit: {error}") from None


def _check(values: dict[str, Any]) -> None:
    """Refuse commands that have no batch on one GPU to check."""
    values["auto_batch"] = values["auto_batch"] or values["batch"] == -1
    for name, reason in _REASONS.items():
        if values[name]:
            raise UsageError(f"--fit: the command {reason}.")
    if values["resume"] is not None:
        raise UsageError("--fit: --resume takes the options of its run. Give that run's command.")
    if values["device"].lower() == "cpu":
        raise UsageError("--fit: --device cpu needs no GPU memory. Give --device 0.")
    if not values["cfg"] and not values["workload"]:
        raise UsageError("--fit: the command has no --cfg. Add it, such as --cfg yolov9-s.")


def _devices(values: dict[str, Any], words: Words) -> int:
    """Return on how many devices a command trains.

    Raises:
        UsageError: launcher and `--device` say different numbers.
    """
    named = len([one for one in values["device"].split(",") if one.strip()])
    if 1 < words.processes != named > 1:
        raise UsageError(
            f"--fit: {words.processes} processes are started for the {named} devices of --device "
            f"{values['device']}. Give as many of each."
        )
    return max(words.processes, named, 1)


def _on_each(values: dict[str, Any], devices: int) -> int:
    """Return the images at once on each device, whose total `--batch` is.

    Raises:
        UsageError: there is none, or it does not divide.
    """
    if values["batch_per_device"]:
        return int(values["batch_per_device"])
    batch: int = values["batch"]
    if batch < 1:
        raise UsageError(f"--fit: --batch {batch} is below 1. Give the images at once.")
    if batch % devices:
        raise UsageError(
            f"--fit: --batch {batch} is the total of {devices} devices and does not divide by "
            f"{devices}. Nearest: {max(1, round(batch / devices)) * devices}."
        )
    return batch // devices


def _what_the_script_cannot(words: Words, values: dict[str, Any]) -> list[str]:
    """Return a sentence where the official script stops at the command's configuration.

    Source: README of the official repository: `train_dual.py` for networks with an auxiliary head
    (`yolov9-*`), `train.py` for those with one head (`gelan-*`).
    """
    script = Path(words.program[-1]).name
    name = Path(values["cfg"] or "").stem
    heads = {"yolov9": "train_dual.py", "gelan": "train.py"}
    needed = heads.get(name.partition("-")[0])
    if needed is None or script not in heads.values() or script == needed:
        return []
    return [f"{script} cannot train {name}, and stops at its first loss: {needed} does."]


def _arguments(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the keyword arguments that make the workload of a command."""
    arguments: dict[str, Any] = {"num_classes": 1} if values["single_cls"] else {}
    arguments |= arguments_of_cfg(values["cfg"], name)
    if takes(name, "image_size"):  # else training takes the workload's own
        arguments["image_size"] = values["img"]
    if values["val_batch"] is not None:
        arguments["validation_batch_size"] = values["val_batch"]
    for option in ("multi_scale", "blocks"):
        if values[option]:
            arguments[option] = values[option]
    return arguments


def _data(values: dict[str, Any], name: str, assumptions: list[str]) -> Path | None:
    """Return the data set's description where it can be read on this machine."""
    data: Path | None = values["data"]
    if data is not None and data.is_file() and _opens(data, name):
        return data
    what = "No --data is given" if data is None else f"{data} cannot be read on this machine"
    assumptions.append(f"{what}: {_ASSUMED_OBJECTS} objects an image are assumed.")
    return None


def _assumed(values: dict[str, Any]) -> list[str]:
    """Return what is taken for granted of the command's options, a sentence each."""
    assumptions = []
    if values["freeze"] != (0,):
        assumptions.append("Frozen layers are counted as trained: an upper bound.")
    if values["rect"]:
        assumptions.append("--rect: images are taken as square, the largest they can be.")
    return assumptions


def _in_environment(variables: tuple[str, ...]) -> dict[str, str]:
    """Return the levers that a command sets in its environment."""
    named = {lever.variable: lever.name for lever in LEVERS if lever.variable}
    pairs = [one.partition("=")[::2] for one in variables]
    spelt = [(_SPELLINGS.get(name, name), value) for name, value in pairs]
    return {named[name]: value for name, value in spelt if name in named}


def _opens(data: Path, name: str) -> bool:
    """Return whether the data set can be read here."""
    made = make_workload(name)
    try:
        reader_of_data(made, data).open_data(DataOptions(path=data, image_size=made.image_size))
    except BadInputError:
        return False
    return True
