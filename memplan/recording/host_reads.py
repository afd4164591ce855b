"""Values that the host reads from the card: how many came from the host, which a rule answered."""

from __future__ import annotations

from collections import Counter

import torch

from memplan.recording.sites import script_line
from memplan.recording.value_rules import ValueRules

# A line that reads so often between two steps waits for something.
_MOST_READS_A_STEP = 20_000


class HostReads:
    """Counts reads, and answers those whose value nobody computed.

    Args:
        rules: what is answered.
    """

    def __init__(self, rules: ValueRules) -> None:
        self._rules = rules
        self.num_from_host = 0
        self.by_rule: Counter[tuple[str, str]] = Counter()
        """Reads answered by rule, by line of the script and by what was answered."""
        self.told: set[str] = set()
        """Lines that read the value that the user gave them."""
        self._since_step: Counter[str] = Counter()
        self.last_by_rule = ""
        """The line of this step that read last what a rule answered, and the answer."""

    def number(
        self, dtype: torch.dtype, derived: float | None = None
    ) -> float | int | bool | complex:
        """Return what the current line reads as one number of a type.

        A truth is true: conditions on network outputs guard the work that takes memory.

        Args:
            dtype: of the number.
            derived: what follows from the rules for the values it was computed from, if anything.

        Raises:
            RuntimeError: the line has read without end.
        """
        line = script_line()
        if line in self._rules.at_line:
            value = self._rules.at_line[line]
            self.told.add(line)
        elif derived is not None:
            self._note(line, str(derived))
            return derived
        elif dtype is torch.bool:
            value = True
        else:
            value = self._rules.scalar(dtype)
        self._note(line, f"{value:g}")
        if dtype is torch.bool:
            return bool(value)
        return float(value) if dtype.is_floating_point else int(value)

    def count(self, answer: str, *, by_rule: bool) -> None:
        """Count a read of something known.

        Raises:
            RuntimeError: the line has read without end.
        """
        if by_rule:
            self._note(script_line(), answer)
        else:
            self.num_from_host += 1

    def end_step(self) -> None:
        """Begin to count anew how often each line reads."""
        self._since_step.clear()
        self.last_by_rule = ""

    def _note(self, line: str, answer: str) -> None:
        self.by_rule[line, answer] += 1
        self.last_by_rule = f"{line} read {answer}"
        self._since_step[line] += 1
        if self._since_step[line] > _MOST_READS_A_STEP:
            raise RuntimeError(
                f"{line} has read a value {_MOST_READS_A_STEP} times without a training step: a "
                "loop waits for what no card computes. Give the line its value with --read "
                f"{line}=VALUE."
            )
