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
        self._since_step: Counter[str] = Counter()

    def number(self, dtype: torch.dtype) -> float | int | bool:
        """Return what the current line reads as one number of a type.

        A truth is true: conditions on network outputs guard the work that takes memory.

        Raises:
            RuntimeError: the line has read without end.
        """
        line = script_line()
        if line in self._rules.at_line:
            value = self._rules.at_line[line]
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

    def _note(self, line: str, answer: str) -> None:
        self.by_rule[line, answer] += 1
        self._since_step[line] += 1
        if self._since_step[line] > _MOST_READS_A_STEP:
            raise RuntimeError(
                f"{line} has read a value {_MOST_READS_A_STEP} times without a training step: a "
                "loop waits for what no card computes. Give the line its value with --read "
                f"{line}=VALUE."
            )
