"""Reads the training command of `memplan plan --fit` with the options of `memplan train`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from memplan.api.typed import TypedCommand
from memplan.capabilities import reader_of_data
from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.spec import LEVER, LEVERS, Split, spec_of

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z_0-9]*=.*")
# PyTorch 2.9 and later read the new name of the first as well.
_SPELLINGS = {"PYTORCH_ALLOC_CONF": "PYTORCH_CUDA_ALLOC_CONF"}
_ASSUMED_OBJECTS = 20
_LEVERS = [one.name for one in LEVERS if {"plan", "train"} <= one.commands]
# What the command says itself, by parameter of `memplan plan`.
_SAID_BY_COMMAND = {
    "cfg": "--cfg", "workload": "--workload", "img": "--img", "val_batch": "--val-batch",
    "multi_scale": "--multi-scale", "data_path": "--data", "effective_batch": "--effective-batch",
} | {name: LEVER[name].option for name in _LEVERS}  # fmt: skip
_REASONS = {
    "auto_batch": "plans its batch itself. Give a number in --batch, or plan without --fit",
    "plan_file": "follows a plan, which fits by itself. Leave out --plan, or plan without --fit",
    "compiled": "runs under torch.compile, whose memory is not predicted. Leave out --compile",
    "quad": "makes images of four, which plans do not know. Leave out --quad, or probe it",
}


def read_command(text: str) -> tuple[TypedCommand, dict[str, Any]]:
    """Return a command as it was typed, and what it says by parameter of `memplan plan`.

    Raises:
        UsageError: it is no training command, or none of one GPU with a batch of its own.
    """
    variables, program, options = _parted(text)
    values = _values(options)
    _check(values)
    batch = values["batch_per_device"] or values["batch"]
    if batch < 1:
        raise UsageError(f"--fit: --batch {batch} is below 1. Give the images at once.")
    assumptions: list[str] = []
    asked = _asked(values, assumptions)
    asked |= _in_environment(variables)
    nominal = 0 if values["accumulate"] else values["effective_batch"] or _nominal(asked)
    steps = values["accumulate"] or max(1, round(nominal / batch))
    if values["recompute"] == "auto":
        raise UsageError("--fit: --recompute auto is chosen by a plan. Give none, all or paths.")
    typed = TypedCommand(
        text=text,
        variables=variables,
        program=program,
        options=options,
        is_official=program[-1].endswith(".py"),
        split=Split(micro_batch_size=batch, accumulation_steps=steps),
        nominal=nominal,
        spec=spec_of(asked),
        validation_batch=values["val_batch"],
        assumptions=tuple(assumptions),
    )
    return typed, asked | {"effective_batch": batch * steps}


def refuse_said_twice(context: click.Context) -> None:
    """Refuse options of `memplan plan` that the command of `--fit` says itself.

    Raises:
        UsageError: one of them was given.
    """
    for name, option in _SAID_BY_COMMAND.items():
        source = context.get_parameter_source(name)
        if source not in {None, click.core.ParameterSource.DEFAULT}:
            raise UsageError(
                f"{option} stands beside --fit, whose command says it. Put {option} into the "
                "command, or leave it out."
            )


def _parted(text: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return variables, program and options of a command."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--fit {text!r} cannot be read: {error}. Check its quotes.") from None
    start = 0
    while start < len(words) and _VARIABLE.fullmatch(words[start]):
        start += 1
    variables, words = words[:start], words[start:]
    end = next((i for i, word in enumerate(words) if word.startswith("-") and word != "-m"), None)
    program = words[:end]
    launched = {"torchrun", "torch.distributed.launch", "torch.distributed.run"} & set(words)
    if launched:
        raise UsageError(
            f"--fit: {launched.pop()} starts several processes, and --fit is about one GPU. Give "
            "the command of one, with its own --batch, or use memplan plan --devices N."
        )
    is_own = program[-2:] == ["memplan", "train"]
    name = Path(program[-1]).name if program else ""
    if not is_own and not (name.startswith("train") and name.endswith(".py")):
        raise UsageError(
            f"--fit {text!r} is no training command. Give one that begins with train_dual.py or "
            "memplan train, in quotes."
        )
    return tuple(variables), tuple(program), tuple(words[len(program) :])


def _values(options: tuple[str, ...]) -> dict[str, Any]:
    """Return every option of `memplan train` by name."""
    from memplan.cli.train import command

    try:
        context = command.make_context("train", list(options))
    except click.ClickException as error:
        raise UsageError(
            f"--fit cannot read the command: {error.format_message()} Correct it; "
            "`memplan train --help` lists what it takes."
        ) from None
    except MemplanError as error:
        raise UsageError(f"--fit: {error}") from None
    return dict(context.params)


def _check(values: dict[str, Any]) -> None:
    """Refuse commands that have no batch on one GPU to check."""
    values["auto_batch"] = values["auto_batch"] or values["batch"] == -1
    for name, reason in _REASONS.items():
        if values[name]:
            raise UsageError(f"--fit: the command {reason}.")
    if values["resume"] is not None:
        raise UsageError("--fit: --resume takes the options of its run. Give that run's command.")
    device = values["device"]
    if "," in device:
        raise UsageError(
            f"--fit: --device {device} trains on {device.count(',') + 1} GPUs, and --fit is about "
            "one. Give --device 0 and one GPU's part of the batch, or use memplan plan --devices N."
        )
    if device.lower() == "cpu":
        raise UsageError("--fit: --device cpu needs no GPU memory. Give --device 0.")
    if not values["cfg"] and not values["workload"]:
        raise UsageError("--fit: the command has no --cfg. Add it, such as --cfg yolov9-s.")


def _asked(values: dict[str, Any], assumptions: list[str]) -> dict[str, Any]:
    """Return what the command says, by parameter of `memplan plan`."""
    from memplan.cli.question import workload_name
    from memplan.registry import takes

    asked: dict[str, Any] = {
        name: values[name] for name in ("cfg", "workload", "img", "val_batch", "multi_scale")
    }
    asked |= {name: values[name] for name in _LEVERS}
    if not takes(workload_name(values["cfg"], values["workload"]), "image_size"):
        asked["img"] = None  # training takes the workload's own
    asked["settings"] = ("num_classes=1",) if values["single_cls"] else ()
    asked["data_path"] = None
    data = values["data"]
    if data is not None and data.is_file() and _opens(data, asked):
        asked["data_path"] = data
    else:
        what = "No --data is given" if data is None else f"{data} cannot be read on this machine"
        assumptions.append(f"{what}: {_ASSUMED_OBJECTS} objects an image are assumed.")
    if values["freeze"] != (0,):
        assumptions.append("Frozen layers are counted as trained: an upper bound.")
    if values["rect"]:
        assumptions.append("--rect: images are taken as square, the largest they can be.")
    return asked


def _in_environment(variables: tuple[str, ...]) -> dict[str, str]:
    """Return the levers that a command sets in its environment."""
    named = {lever.variable: lever.name for lever in LEVERS if lever.variable}
    pairs = [one.partition("=")[::2] for one in variables]
    spelt = [(_SPELLINGS.get(name, name), value) for name, value in pairs]
    return {named[name]: value for name, value in spelt if name in named}


def _opens(data: Path, asked: dict[str, Any]) -> bool:
    """Return whether the data set can be read here."""
    from memplan.cli.question import workload_name
    from memplan.registry import make_workload
    from memplan.workload import DataOptions

    made = make_workload(workload_name(asked["cfg"], asked["workload"]))
    try:
        reader_of_data(made, data).open_data(DataOptions(path=data, image_size=made.image_size))
    except BadInputError:
        return False
    return True


def _nominal(asked: dict[str, Any]) -> int:
    from memplan.cli.question import workload_name
    from memplan.registry import make_workload

    return make_workload(workload_name(asked["cfg"], asked["workload"])).nominal_batch_size
