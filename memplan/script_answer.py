"""What `memplan run` answers about a script, and its JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from memplan.answer import Answer


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """Where memory ran out, from the real error."""

    message: str
    """PyTorch's own text; empty where the script caught the error."""
    requested_bytes: int
    file: str
    line: int
    module: str
    phase: str
    step: int
    """Optimizer steps that had ended before."""
    is_caught: bool
    """Whether the script went on."""


@dataclass(frozen=True, kw_only=True)
class ScriptError:
    """An error other than out of memory that ended the script."""

    kind: str
    message: str
    file: str
    line: int
    read_by_rule: str = ""
    """The line that last read a value that a rule answered, and the value, of the same step."""


@dataclass(frozen=True, kw_only=True)
class HostRead:
    """Values that the host read and that a rule answered."""

    line: str
    answer: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ScriptTimeline:
    """Allocated memory over the history, thinned to the fullest moment of each stretch."""

    categories: dict[str, tuple[int, ...]]
    """Bytes at each point, by category."""
    step_ends: tuple[int, ...]
    """Points at which optimizer steps ended."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One batch size that was run."""

    batch: int
    runs: bool
    device_used_peak_bytes: int
    """0 where the command ended before it used the card."""
    error: str = ""
    """Why it did not run, where that was not memory."""


@dataclass(frozen=True, kw_only=True)
class ScriptAnswer(Answer):
    """One watched process of a script on a phantom card; bytes unless named otherwise."""

    SCHEMA: ClassVar[str] = "memplan.run/1"
    PLACES: ClassVar[dict[str, str]] = {
        "origin": "origin",
        "gpu.name": "gpu",
        "gpu.title": "title",
        "gpu.capacity_bytes": "capacity_bytes",
        "steps": "num_steps",
        "peaks.allocated_peak_bytes": "allocated_peak_bytes",
        "peaks.reserved_peak_bytes": "reserved_peak_bytes",
        "peaks.device_used_peak_bytes": "device_used_peak_bytes",
        "host_reads.from_host": "from_host",
        "host_reads.by_rule": "num_by_rule",
        "host_reads.lines": "by_rule",
    }

    command: str
    gpu: str
    title: str
    capacity_bytes: int
    num_devices: int
    versions: dict[str, str]
    num_steps: int
    stopped: bool
    """Whether memplan stopped the script, having seen enough."""
    num_evaluations: int
    """Forward passes of outermost modules without gradients."""
    unseen_validation_steps: int | None
    """Training steps that were left before a validation that was not waited for."""
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    device_used_peak_bytes: int
    num_alloc_retries: int
    peak_phase: str
    peak_module: str
    categories_at_peak: dict[str, int]
    modules: list[dict[str, Any]]
    """At the peak: `path` and bytes by category, the largest first."""
    growth: list[dict[str, int]]
    """Allocated and reserved bytes, now and at their peak, after each optimizer step."""
    timeline: ScriptTimeline
    out_of_memory: OutOfMemory | None
    error: ScriptError | None
    from_host: int
    by_rule: list[HostRead] = field(default_factory=list)
    unmatched_reads: list[str] = field(default_factory=list)
    """Lines that were given a value and never read one."""
    missing_calls: list[str] = field(default_factory=list)
    num_processes: int = 1
    """Processes that used the card; the one with the largest peak is described."""
    together_bytes: int = 0
    """The sum of all processes' device-used peaks: what one card needs if they come at once."""
    timed_out: bool = False
    """Whether the script was ended for it took too long."""
    seconds: float = 0.0
    batch_option: str = ""
    """The option whose largest value was looked for; empty where none was."""
    largest_batch: int | None = None
    """The largest that ran of those tried; None where none did."""
    trials: list[Trial] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """Where the numbers are from."""
        return "phantom"

    @property
    def num_by_rule(self) -> int:
        """Values that the host read and that a rule answered."""
        return sum(one.count for one in self.by_rule)

    @property
    def runs(self) -> bool:
        """Whether the script ran as far as it was watched."""
        caught = self.out_of_memory is None or self.out_of_memory.is_caught
        return self.error is None and caught

    @property
    def error_place(self) -> str:
        """`file.py:12` where the script failed; empty where that is not known."""
        if self.error is None or not self.error.file:
            return ""
        return f"{Path(self.error.file).name}:{self.error.line}"
