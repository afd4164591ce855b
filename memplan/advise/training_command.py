"""A training command as somebody typed it: its batch, and how it reads with other options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.spec import FLAG, LEVERS, Split, StepSpec
from memplan.spec_changes import changed_options

_FLAGS = {name for one in LEVERS if one.kind == FLAG for name in (one.option, one.negative) if name}
# Where an option has several spellings, those that it stands in place of.
_SPELLINGS = {"--batch": ("--batch", "--batch-size")} | {
    name: (one.option, one.negative) for one in LEVERS for name in (one.option, one.negative)
}


@dataclass(frozen=True, kw_only=True)
class TrainingCommand:
    """A command, read."""

    text: str
    """As typed."""
    variables: tuple[str, ...]
    """What it sets in the environment, each `NAME=VALUE`."""
    program: tuple[str, ...]
    """Words up to the options."""
    options: tuple[str, ...]
    """Words after the program."""
    is_official: bool
    """Whether it runs the official script and not `memplan train`."""
    workload: str
    """What it trains."""
    arguments: Mapping[str, Any]
    """Keyword arguments of that workload's factory."""
    data: Path | None
    """The data set's description; None where it cannot be read on this machine."""
    split: Split
    nominal: int
    """Images a step from which accumulation follows; 0 where accumulation was given."""
    spec: StepSpec
    validation_batch: int | None
    """Images validated at once; None where that follows from the batch."""
    assumptions: tuple[str, ...] = ()
    """What was taken for granted, a sentence each."""

    def accumulation_at(self, batch: int) -> int:
        """Return the micro-batches a step if `--batch`, the total, alone were another."""
        if not self.nominal:
            return self.split.accumulation_steps
        return max(1, round(self.nominal / batch))

    def changes(self, spec: StepSpec, split: Split) -> dict[str, str]:
        """Return the options that make the command run another way, each with its value."""
        known = {one.option for one in LEVERS if "train" in one.commands}
        known |= {one.negative for one in LEVERS if one.negative}
        options = {
            option: value
            for option, value in changed_options(spec, self.spec).items()
            if option in known
        }
        if split != self.split:
            options["--batch"] = str(split.images_at_once)
            if self.accumulation_at(split.images_at_once) != split.accumulation_steps:
                options["--accumulate"] = str(split.accumulation_steps)
        return options

    def changed_variables(self, spec: StepSpec | None) -> list[str]:
        """Return what the environment must set to run another way; None is as typed."""
        if spec is None:
            return []
        known = self.spec.variables("train")
        return [one for one in spec.variables("train") if one not in known]

    def spelt(self, options: Mapping[str, str], spec: StepSpec | None = None) -> str:
        """Return changes as they are typed."""
        words = [f"{name} {value}".rstrip() for name, value in options.items()]
        return " ".join([*self.changed_variables(spec), *words])

    def revised(self, options: Mapping[str, str], spec: StepSpec | None = None) -> str:
        """Return the command with options in place of those typed.

        Options of memplan's own turn the official script into `memplan train`.
        """
        dropped = {name for option in options for name in _SPELLINGS.get(option, (option,))}
        kept: list[str] = []
        skips = False
        for word in self.options:
            if skips:
                skips = False
                continue
            name = word.partition("=")[0]
            if name in dropped:
                skips = "=" not in word and name not in _FLAGS
                continue
            kept.append(word)
        for name, value in options.items():
            kept += [name, *shlex.split(value)]
        own = self.is_official and not set(options) <= {"--batch"}
        program = ("memplan", "train") if own else self.program
        words = [*self.variables, *self.changed_variables(spec)]
        return " ".join([*words, shlex.join([*program, *kept])])
