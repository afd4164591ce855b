"""Recordings that were asked for, and further ones that may fail without ending the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from memplan.errors import BadInputError, MemplanError, first_sentence
from memplan.host_memory import within_host_memory
from memplan.parallel import map_processes
from memplan.processes import num_cores
from memplan.tape import Tape

# What memplan records by itself, counted in operators so that it does not depend on the machine's
# speed: about 8,000 a second are recorded, and yolov9-e runs 17,000 in a life.
_MOST_OPERATORS = 40_000
_MOST_OPERATORS_IN_ALL = 400_000


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Failed:
    """A recording that could not be made, and why."""

    error: MemplanError


@dataclass(frozen=True)
class Attempt:
    """Records, and hands back what goes wrong instead of raising it.

    Args:
        record: returns the tape of a key, a micro-batch size or a configuration with one.
        asked: keys that were asked for; they are recorded without a bound on host memory.
        num_sharing: attempts made at the same time.
    """

    record: Callable[[Any], Tape]
    asked: frozenset[Any]
    num_sharing: int

    def __call__(self, key: Any) -> Tape | Failed:
        """Return the tape, or why there is none."""
        try:
            if key in self.asked:
                return self.record(key)
            with within_host_memory(self.num_sharing):
                return self.record(key)
        except MemplanError as error:
            return Failed(error)
        except MemoryError:
            return Failed(BadInputError("the host has not the memory to record this step"))
        except Exception as error:  # noqa: BLE001 - whatever a workload raises
            text = str(error).strip().partition("\n")[0].rstrip(".")
            return Failed(BadInputError(f"the step raises {type(error).__name__}: {text}"))


def attempted(
    record: Callable[[Any], Tape], keys: Sequence[Any], asked: Collection[Any]
) -> dict[Any, Tape | Failed]:
    """Return the tape of each key, or why there is none, several side by side.

    Args:
        record: returns the tape of a key.
        keys: each once.
        asked: keys that were asked for, of which a failure is raised.

    Raises:
        MemplanError: a key that was asked for cannot be recorded.
    """
    attempt = Attempt(record, frozenset(asked), min(num_cores(), max(1, len(keys))))
    made = dict(zip(keys, map_processes(attempt, keys, doing="recording steps"), strict=True))
    for key, one in made.items():
        if key in asked and isinstance(one, Failed):
            raise one.error
    return made


class Attempts:
    """The recordings of one configuration, by micro-batch size.

    Args:
        record: returns the tape at a micro-batch size.
        asked: sizes that were asked for; a failure of theirs is raised.
        say: told what is being recorded.
    """

    def __init__(
        self, record: Callable[[int], Tape], asked: Collection[int], say: Callable[[str], None]
    ) -> None:
        self._record = record
        self._asked = frozenset(asked)
        self._say = say
        self._spent = 0
        self.tapes: dict[int, Tape] = {}
        self.failures: dict[int, str] = {}
        """Why batches could not be recorded."""

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the terminal that is told."""
        return {**vars(self), "_say": _silent}

    def many(self, batches: Sequence[int]) -> dict[int, Tape]:
        """Return the tapes of those batches that can be recorded, recorded now if need be.

        Raises:
            MemplanError: one that was asked for cannot.
        """
        missing = [b for b in sorted(set(batches)) if b not in self.tapes | self.failures]
        for batch in missing:
            if reason := self._refusal(batch):
                self.failures[batch] = reason
        missing = [batch for batch in missing if batch not in self.failures]
        if missing:
            self._say(f"Recording a step at batch {', '.join(map(str, missing))}")
            for batch, one in attempted(self._record, missing, self._asked).items():
                if isinstance(one, Failed):
                    self.failures[batch] = first_sentence(one.error)
                else:
                    self.tapes[batch] = one
        return {batch: self.tapes[batch] for batch in batches if batch in self.tapes}

    def _refusal(self, batch: int) -> str:
        """Return why a batch that was not asked for is not even tried; empty where it is."""
        if batch <= max(self._asked):
            return ""
        operators = self._operators_at(batch)
        of_asked = max((len(tape.operators.name) for tape in self.tapes.values()), default=0)
        if operators > max(_MOST_OPERATORS, 2 * of_asked):
            return f"its step would run about {operators:,} operators"
        if self._spent + operators > _MOST_OPERATORS_IN_ALL:
            return f"steps of {self._spent:,} operators were recorded to find out"
        self._spent += operators
        return ""

    def _operators_at(self, batch: int) -> int:
        """Return the operators of a step by the line through the two largest batches recorded."""
        known = sorted(self.tapes)[-2:]
        if len(known) < 2:
            return max((len(tape.operators.name) for tape in self.tapes.values()), default=0)
        low, high = (len(self.tapes[one].operators.name) for one in known)
        return high + (high - low) * (batch - known[1]) // (known[1] - known[0])
