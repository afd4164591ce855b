"""The largest batch at which a user's command runs on a phantom card, by running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from memplan.errors import MemplanError, UsageError, first_sentence
from memplan.recording.script import ScriptRequest, run_script
from memplan.script_answer import ScriptAnswer, Trial
from memplan.units import format_bytes

MOST_TRIALS = 16
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


@dataclass
class BatchSearch:
    """Which batch to try next, from what was seen.

    A batch that runs bounds the largest from below, one that does not from above. Where one above
    the first fails for another reason than memory, the script may want its batch divisible: from
    then on multiples of the largest power of two in the first batch are tried.

    Args:
        first: batch to begin with.
        tolerance: stop when the batch that fails is at most this part above the one that runs.
    """

    first: int
    tolerance: float = 0.0
    capacity_bytes: int = 0
    trials: dict[int, Trial] = field(default_factory=dict)
    low: int = 0
    """The largest that ran; 0 where none did."""
    high: int = _MOST_BATCH + 1
    """The smallest that is known not to run."""
    unit: int = 1
    """Only multiples are tried."""

    def add(self, trial: Trial) -> None:
        """Take note of what came of a batch."""
        self.trials[trial.batch] = trial
        if trial.runs:
            self.low = max(self.low, trial.batch)
            return
        power = self.first & -self.first
        if trial.error and trial.batch > self.first and trial.batch % power:
            self.unit = power
            return
        self.high = min(self.high, trial.batch)

    def next(self) -> int | None:
        """Return the batch to try next; None when the largest is known well enough."""
        if not self.trials:
            return self.first
        if not self.low:
            # An error at the first batch is the command's own; smaller ones are no way out of it.
            smaller = self.high // 2 // self.unit * self.unit
            is_errors = all(trial.error for trial in self.trials.values())
            return None if is_errors or not smaller else self._untried(smaller)
        if self.high - self.low <= max(self.unit, int(self.tolerance * self.low)):
            return None
        guess = max(self.low + 1, min(self._guess(), self.high - 1))
        return self._untried(max(guess // self.unit * self.unit, self.low + self.unit))

    def _untried(self, batch: int) -> int | None:
        """Return a batch, or the nearest that was not tried; None where there is none."""
        inside = range(self.low // self.unit * self.unit + self.unit, self.high, self.unit)
        left = [one for one in inside if one not in self.trials]
        return min(left, key=lambda one: abs(one - batch), default=None)

    def _guess(self) -> int:
        """Return where the line through what ran meets the capacity."""
        is_bounded = self.high <= _MOST_BATCH
        if is_bounded and len(self.trials) % 2:
            # Near the edge the allocator empties its cache, and the line says nothing more.
            return (self.low + self.high) // 2
        ran = sorted(trial.batch for trial in self.trials.values() if trial.runs)
        used = [self.trials[batch].device_used_peak_bytes for batch in ran[-2:]]
        if len(ran) == 1:
            guess = ran[-1] * self.capacity_bytes // max(1, used[-1])
        else:
            slope = (used[-1] - used[0]) / (ran[-1] - ran[-2])
            beyond = int((self.capacity_bytes - used[-1]) / slope) if slope > 0 else ran[-1]
            guess = ran[-1] + beyond
        least = self.low + (1 if is_bounded else max(1, self.low // 32))
        return max(least, min(guess, 4 * self.low))


def find_batch(
    request: ScriptRequest,
    name: str,
    say: Callable[[str], None] = lambda _: None,
    tell: Callable[[str], None] = lambda _: None,
    *,
    tolerance: float = 0.0,
    most_trials: int = MOST_TRIALS,
) -> ScriptAnswer:
    """Return the answer at the largest batch that runs, with every trial.

    The command is run at batch after batch, guided by the line through the peaks seen, until one
    runs and the next does not. Where none runs the answer is of the smallest batch that was tried.

    Args:
        request: its command has the option; it reads no standard input, which only one could have.
        name: of the option that gives the batch size.
        say: told what is being done.
        tell: told what came of each trial.
        tolerance: part of a batch that its largest may be short, >= 0.
        most_trials: runs of the command, >= 1.

    Raises:
        UsageError: the command does not have the option.
        BadInputError: the command cannot be watched at all.
        MemplanError: the script did not end in time at its own batch.
    """
    option = batch_option(request.command, name)
    capacity = request.capacity_bytes or request.card.capacity_bytes
    search = BatchSearch(option.value, tolerance, capacity)
    answers: dict[int, ScriptAnswer] = {}
    while len(search.trials) < most_trials and (batch := search.next()) is not None:
        say(f"Running at {name} {batch}")
        command = option.set_to(request.command, batch)
        try:
            answers[batch] = run_script(replace(request, command=command, asks=False), say)
            trial = _trial(batch, answers[batch])
        except MemplanError as error:
            if not answers:
                raise
            trial = Trial(
                batch=batch, runs=False, device_used_peak_bytes=0, error=first_sentence(error)
            )
        search.add(trial)
        tell(f"{name} {batch}: {outcome(trial)}")
    trials = [trial for _, trial in sorted(search.trials.items())]
    chosen = answers[search.low or min(answers)]
    return replace(chosen, batch_option=name, largest_batch=search.low or None, trials=trials)


def outcome(trial: Trial) -> str:
    """Return in a few words what came of a batch."""
    if trial.runs:
        return f"runs, device-used {format_bytes(trial.device_used_peak_bytes)}"
    return trial.error or "runs out of memory"


def _trial(batch: int, answer: ScriptAnswer) -> Trial:
    error = answer.error
    place = f" ({answer.error_place})" if answer.error_place else ""
    return Trial(
        batch=batch,
        runs=answer.runs,
        device_used_peak_bytes=answer.device_used_peak_bytes,
        error="" if error is None else f"fails: {error.kind}: {error.message}{place}",
    )
