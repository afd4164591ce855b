"""Runs a user's own command on a card that is not there, and tells what it took.

The command is started as it was typed, in its own interpreter, with the phantom runtime preloaded
and `start/sitecustomize.py` on its path; what it prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memplan.device.card import Card
from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.files import converted, replaced
from memplan.phantom.launch import environment
from memplan.recording.command_process import run_command
from memplan.recording.watch_settings import (
    ENVIRONMENT,
    HISTORY_NAME,
    RESULT_PATTERN,
    WatchSettings,
)
from memplan.script_answer import HostRead, OutOfMemory, ScriptAnswer, ScriptError, ScriptTimeline

_START = Path(__file__).parent / "start"
_MOST_MODULES = 40
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True, kw_only=True)
class ScriptRequest:
    """What is asked of a script."""

    command: tuple[str, ...]
    """As typed: an interpreter or a Python console script, and its arguments."""
    card: Card
    capacity_bytes: int | None = None
    num_devices: int = 1
    steps: int | None = None
    """Optimizer steps to watch; None until peaks are steady."""
    timeout_seconds: float = 900.0
    selected: float = 0.01
    number: float = 2.0
    at_line: dict[str, float] = field(default_factory=dict)
    prints: bool = True
    """Whether what the script prints is passed on."""
    asks: bool = False
    """Whether the script reads this process's standard input."""
    snapshot: Path | None = None
    """Where the allocator's history goes, as PyTorch writes it; None records no stacks."""


def without_variables(command: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables that a command sets before its program, as a shell or `env` would.

    `CUDA_VISIBLE_DEVICES=0 python train.py` and `env A=1 python train.py` are typed so.
    """
    words = list(command)
    if words and Path(words[0]).name == "env" and words[1:] and not words[1].startswith("-"):
        words.pop(0)
    variables = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, tuple(words)


def check_command(command: Sequence[str]) -> None:
    """Refuse what is not Python.

    Raises:
        UsageError: nothing was given.
        BadInputError: the command does not exist or does not start Python.
    """
    if not command:
        raise UsageError("No command to run. Give it after --, such as: -- python train.py")
    program = shutil.which(command[0])
    if program is None:
        raise BadInputError(
            f"{command[0]!r} is not a program that can be found. Give the command as you would "
            "type it, such as: -- python train.py"
        )
    if interpreter_of(command[0]) is None:
        raise BadInputError(
            f"{command[0]!r} does not start Python, so it cannot be watched. Give the Python "
            "command that trains, such as: -- python train.py or -- torchrun train.py"
        )


def interpreter_of(command: str) -> str | None:
    """Return the Python that a program is or is run by, None where it is none.

    A console script names it in its first line, behind `env` perhaps; where that line would be too
    long installers write a second one of shell.
    """
    program = shutil.which(command)
    if program is None:
        return None
    if Path(program).name.startswith("python"):
        return program
    with Path(program).open("rb") as file:
        first, second = (file.readline(1024).decode(errors="replace") for _ in range(2))
    if not first.startswith("#!"):
        return None
    words = [word.strip("\"'") for word in (first[2:] + " " + second).split()]
    named = (shutil.which(word) for word in words if Path(word).name.startswith("python"))
    return next((found for found in named if found is not None), None)


def run_script(request: ScriptRequest, say: Callable[[str], None] = lambda _: None) -> ScriptAnswer:
    """Return what a command took on a phantom card.

    Raises:
        UsageError: a value is out of its range.
        BadInputError: the command is not Python, or never used CUDA.
        MemplanError: the script did not end in time.
    """
    variables, command = without_variables(request.command)
    check_command(command)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="memplan-run-") as folder:
        settings = WatchSettings(
            folder=folder,
            steps=request.steps,
            selected=request.selected,
            number=request.number,
            at_line=request.at_line,
            keeps_history=request.snapshot is not None,
        )
        settings.save()
        say(f"Running on a phantom {request.card.title}")
        code = run_command(
            command,
            _environment(request, command[0], folder) | variables,
            folder=folder,
            timeout_seconds=request.timeout_seconds,
            prints=request.prints,
            asks=request.asks,
        )
        seen = [json.loads(path.read_text()) for path in Path(folder).glob(RESULT_PATTERN)]
        if request.snapshot is not None and any(one["used_cuda"] for one in seen):
            _keep_history(Path(folder) / HISTORY_NAME.format(pid=_largest(seen)["pid"]), request)
    return _answer(request, seen, code, time.monotonic() - begun)


def _keep_history(history: Path, request: ScriptRequest) -> None:
    """Move a process's history to where it was asked for.

    Raises:
        BadInputError: it cannot be written there.
    """
    assert request.snapshot is not None
    try:
        with history.open("rb") as source, replaced(request.snapshot) as target:
            shutil.copyfileobj(source, target)
    except OSError as error:
        raise BadInputError(f"{request.snapshot} cannot be written: {error.strerror}.") from None


def _largest(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the process that reserved most of those that used the card."""
    using = [one for one in seen if one["used_cuda"]]
    return min(using, key=lambda one: (-one["peaks"]["reserved_peak_bytes"], one["rank"]))


def _environment(request: ScriptRequest, program: str, folder: str) -> dict[str, str]:
    made = environment(
        request.card,
        capacity_bytes=request.capacity_bytes,
        num_devices=request.num_devices,
        interpreter=interpreter_of(program),
    )
    made[ENVIRONMENT] = folder
    paths = [str(_START), *filter(None, [made.get("PYTHONPATH", "")])]
    made["PYTHONPATH"] = os.pathsep.join(paths)
    return made


def _answer(
    request: ScriptRequest, seen: list[dict[str, Any]], code: int | None, seconds: float
) -> ScriptAnswer:
    using = [one for one in seen if one["used_cuda"]]
    if code is None and not using:
        raise MemplanError(
            f"The script had not ended after {request.timeout_seconds:g} s. Stop it earlier with "
            "--steps N, or give it longer with --timeout SECONDS."
        )
    if not using:
        raise BadInputError(_why_nothing(request, seen, code))
    one = _largest(seen)
    peaks, parts = one["peaks"], one["breakdown"]
    other = request.card.context_bytes
    error = one["error"]
    memory = one["out_of_memory"]
    if code and not error and (memory is None or memory["is_caught"]):
        error = _ended_by(code)
    left = one["validation_left_steps"]
    return ScriptAnswer(
        command=shlex.join(request.command),
        gpu=request.card.name,
        title=request.card.title,
        capacity_bytes=request.capacity_bytes or request.card.capacity_bytes,
        num_devices=request.num_devices,
        versions={"torch": one["torch"]},
        num_steps=len(one["steps"]),
        stopped=one["stopped"],
        num_evaluations=one["num_evaluations"],
        unseen_validation_steps=left if one["stopped"] and not one["num_evaluations"] else None,
        allocated_peak_bytes=peaks["allocated_peak_bytes"],
        reserved_peak_bytes=peaks["reserved_peak_bytes"],
        device_used_peak_bytes=one["device_peak_bytes"] + other,
        num_alloc_retries=peaks["num_alloc_retries"],
        peak_phase=parts["peak_phase"],
        peak_module=parts["peak_module"],
        categories_at_peak=parts["categories"],
        modules=_modules(parts["modules"]),
        growth=one["steps"],
        timeline=converted(parts["timeline"], ScriptTimeline),
        out_of_memory=None if memory is None else OutOfMemory(**memory),
        error=None if error is None else ScriptError(**error),
        from_host=one["host_reads"]["from_host"],
        by_rule=[HostRead(**read) for read in one["host_reads"]["by_rule"]],
        unmatched_reads=_unmatched(request, using),
        missing_calls=one["missing_calls"],
        num_processes=len(using),
        together_bytes=sum(each["device_peak_bytes"] + other for each in using),
        timed_out=code is None,
        seconds=seconds,
    )


def _unmatched(request: ScriptRequest, using: list[dict[str, Any]]) -> list[str]:
    """Return the lines that were given a value and never read one."""
    told = {line for one in using for line in one["host_reads"]["told"]}
    return sorted(set(request.at_line) - told)


def _modules(modules: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    largest = sorted(modules.items(), key=lambda item: -sum(item[1].values()))
    return [
        {"path": path, "bytes": sum(held.values()), **held}
        for path, held in largest[:_MOST_MODULES]
    ]


def _ended_by(code: int) -> dict[str, Any]:
    if code < 0:
        name = signal.Signals(-code).name
        return {"kind": name, "message": "the process was killed", "file": "", "line": 0}
    return {"kind": "exit", "message": f"ended with exit code {code}", "file": "", "line": 0}


def _hint(message: str) -> str:
    """Return a way out where an error is known to come of a card that is not there."""
    if "nvidia-smi" in message:
        return (
            " A phantom card has no nvidia-smi: ask torch.cuda or pynvml, which it answers, or "
            "leave that part of the script out."
        )
    return ""


def _why_nothing(request: ScriptRequest, seen: list[dict[str, Any]], code: int | None) -> str:
    """Say in one line why there is nothing to tell of."""
    command = shlex.join(request.command)
    for one in seen:
        if one["error"]:
            error = one["error"]
            place = f" ({Path(error['file']).name}:{error['line']})" if error["file"] else ""
            return (
                f"{command} failed before it used CUDA: {error['kind']}: {error['message']}{place}."
                f"{_hint(error['message'])}"
            )
    if not seen and code is not None and code < 0:
        return f"{command} was killed by {signal.Signals(-code).name}; see its output."
    if not seen and code:
        return (
            f"{command} ended with exit code {code} before it imported torch, or left by os._exit; "
            "see its output."
        )
    if not seen:
        return (
            f"{command} never imported torch, left by os._exit, or its Python was started without "
            "this environment (-I, -E, -S, env={}). Give the command that trains."
        )
    return (
        f"{command} never used CUDA. Give it the option that trains on a GPU, such as --device 0."
    )
