"""The largest batch at which a user's command runs on a phantom card, by running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from memplan.errors import BadInputError, MemplanError, UsageError
from memplan.recording.script import ScriptRequest, run_script
from memplan.script_answer import ScriptAnswer, Trial

_MOST_TRIALS = 16
_MOST_BATCH = 1 << 16


@dataclass(frozen=True)
class BatchOption:
    """The place in a command that holds the batch size.

    Args:
        name: as typed before the number: `--batch`, `-b`, or `batch` of `batch=16`.
        position: index of the argument that holds the number.
        prefix: what stands before the number in that argument, such as `batch=`.
        value: the number.
    """

    name: str
    position: int
    prefix: str
    value: int

    def set_to(self, command: tuple[str, ...], value: int) -> tuple[str, ...]:
        """Return the command with another batch size."""
        changed = list(command)
        changed[self.position] = f"{self.prefix}{value}"
        return tuple(changed)


def batch_option(command: tuple[str, ...], name: str) -> BatchOption:
    """Return where a command gives its batch size.

    Raises:
        UsageError: the command does not have the option, or no whole number after it.
    """
    for index, word in enumerate(command):
        if word.startswith(f"{name}="):
            return BatchOption(name, index, f"{name}=", _number(name, word.partition("=")[2]))
        if word == name and index + 1 < len(command):
            return BatchOption(name, index + 1, "", _number(name, command[index + 1]))
    raise UsageError(
        f"--find-batch {name}: the command has no {name} to change. Name the option that gives "
        "its batch size, and give it in the command, such as --batch 16."
    )


def _number(name: str, text: str) -> int:
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= _MOST_BATCH:
        return int(text)
    raise UsageError(f"{name} {text} is not a batch size from 1 to {_MOST_BATCH}.")


def find_batch(
    request: ScriptRequest, name: str, say: Callable[[str], None] = lambda _: None
) -> ScriptAnswer:
    """Return the answer at the largest batch that runs, with every trial.

    The command is run at batch after batch, guided by the line through the peaks seen, until one
    runs and the next does not.

    Args:
        request: its command has the option.
        name: of the option that gives the batch size.
        say: told what is being done.

    Raises:
        UsageError: the command does not have the option.
        BadInputError: the command fails for another reason than memory.
        MemplanError: not even one image fits.
    """
    option = batch_option(request.command, name)
    answers: dict[int, ScriptAnswer] = {}
    low, high = 0, _MOST_BATCH + 1
    batch = option.value
    while len(answers) < _MOST_TRIALS and high - low > 1:
        say(f"Running at {name} {batch}")
        command = option.set_to(request.command, batch)
        answer = answers[batch] = run_script(replace(request, command=command), say)
        if answer.error is not None:
            raise BadInputError(
                f"The command fails at {name} {batch}, and not for memory: {answer.error.kind}: "
                f"{answer.error.message}"
            )
        low, high = (batch, high) if answer.runs else (low, batch)
        batch = _next(answers, low, high)
    if not low:
        raise MemplanError(
            f"The command runs out of memory on {request.card.name} even at {name} {high}. Name a "
            "larger card, or make the network or its images smaller."
        )
    trials = [_trial(batch, answer) for batch, answer in sorted(answers.items())]
    return replace(answers[low], batch_option=name, largest_batch=low, trials=trials)


def _trial(batch: int, answer: ScriptAnswer) -> Trial:
    return Trial(
        batch=batch, runs=answer.runs, device_used_peak_bytes=answer.device_used_peak_bytes
    )


def _next(answers: dict[int, ScriptAnswer], low: int, high: int) -> int:
    """Return the batch to try next: where the line through what ran meets the capacity."""
    ran = sorted(batch for batch, answer in answers.items() if answer.runs)
    if not ran:
        return max(1, high // 2)
    is_bounded = high <= _MOST_BATCH
    if is_bounded and len(answers) % 2:
        # Near the edge the allocator empties its cache, and the line says nothing more.
        return (low + high) // 2
    used = [answers[batch].device_used_peak_bytes for batch in ran[-2:]]
    capacity = answers[ran[-1]].capacity_bytes
    if len(ran) == 1:
        guess = ran[-1] * capacity // max(1, used[-1])
    else:
        slope = (used[-1] - used[0]) / (ran[-1] - ran[-2])
        guess = ran[-1] + int((capacity - used[-1]) / slope) if slope > 0 else 2 * ran[-1]
    least = low + 1 if is_bounded else low + max(1, low // 32)
    return max(least, min(guess, high - 1, 4 * low))
