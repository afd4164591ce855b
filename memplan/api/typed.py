"""A training command as somebody typed it: its batch, and how it reads with other options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

# Where an official option has several spellings.
_SPELLINGS = {"--batch": ("--batch", "--batch-size"), "--lean": ("--lean", "--no-lean")}
_FLAGS = {"--lean", "--no-lean"}
_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"


@dataclass(frozen=True, kw_only=True)
class TypedCommand:
    """A command of one device, read."""

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
    batch: int
    """Images at once, >= 1."""
    accumulation: int
    """Micro-batches a step, >= 1."""
    nominal: int
    """Images a step from which accumulation follows; 0 where accumulation was given."""
    lean: bool
    recompute: tuple[str, ...]
    validation_batch: int | None
    """Images validated at once; None where that follows from the batch."""
    assumptions: tuple[str, ...] = ()
    """What was taken for granted, a sentence each."""

    def accumulation_at(self, batch: int) -> int:
        """Return the micro-batches a step if `--batch` alone were another."""
        if not self.nominal:
            return self.accumulation
        return max(1, round(self.nominal / batch))

    @staticmethod
    def spelt(options: Mapping[str, str], allocator: str = "") -> str:
        """Return changed options as they are typed."""
        words = [f"{name} {shlex.quote(value)}".rstrip("' ") for name, value in options.items()]
        return " ".join([*([f"{_VARIABLE}={allocator}"] if allocator else []), *words])

    def revised(self, options: Mapping[str, str], allocator: str = "") -> str:
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
            kept += [name, value] if value else [name]
        own = self.is_official and not set(options) <= {"--batch"}
        program = ("memplan", "train") if own else self.program
        words = [*self.variables, *([f"{_VARIABLE}={allocator}"] if allocator else [])]
        return " ".join([*words, shlex.join([*program, *kept])])
