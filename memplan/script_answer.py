"""What `memplan run` answers about a script, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memplan.errors import BadTapeError

SCHEMA = "memplan.run/1"
_NESTED = {"schema", "origin", "gpu", "steps", "peaks", "host_reads", "timeline", "trials"}


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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScriptTimeline:
        """Return the timeline that was written as plain lists."""
        return cls(
            categories={name: tuple(points) for name, points in values["categories"].items()},
            step_ends=tuple(values["step_ends"]),
        )


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
class ScriptAnswer:
    """One watched process of a script on a phantom card; bytes unless named otherwise."""

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
    """Processes that used the card; the one with the largest peak is told of."""
    timed_out: bool = False
    """Whether the script was ended for it took too long."""
    seconds: float = 0.0
    batch_option: str = ""
    """The option whose largest value was looked for; empty where none was."""
    largest_batch: int | None = None
    """The largest that ran of those tried; None where none did."""
    trials: list[Trial] = field(default_factory=list)

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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ScriptAnswer:
        """Return the answer that `to_json` wrote.

        Raises:
            BadTapeError: it is of another schema, or incomplete.
        """
        if values.get("schema") != SCHEMA:
            raise BadTapeError(f"Schema {values.get('schema')!r} is not {SCHEMA!r}.")
        try:
            plain = {k: v for k, v in values.items() if k not in _NESTED}
            gpu, reads = values["gpu"], values["host_reads"]
            memory, error = plain.pop("out_of_memory"), plain.pop("error")
            return cls(
                **plain,
                **values["peaks"],
                gpu=gpu["name"],
                title=gpu["title"],
                capacity_bytes=gpu["capacity_bytes"],
                num_steps=values["steps"],
                timeline=ScriptTimeline.from_json(values["timeline"]),
                trials=[Trial(**one) for one in values["trials"]],
                from_host=reads["from_host"],
                by_rule=[HostRead(**one) for one in reads["lines"]],
                out_of_memory=None if memory is None else OutOfMemory(**memory),
                error=None if error is None else ScriptError(**error),
            )
        except (KeyError, TypeError, AttributeError) as problem:
            raise BadTapeError(f"A {SCHEMA} record is incomplete: {problem}.") from None

    def to_json(self) -> dict[str, Any]:
        """Return the answer as `memplan.run/1`."""
        plain = asdict(self)
        peaks = {
            name: plain.pop(name)
            for name in ("allocated_peak_bytes", "reserved_peak_bytes", "device_used_peak_bytes")
        }
        gpu = {"name": plain.pop("gpu"), "title": plain.pop("title")}
        gpu["capacity_bytes"] = plain.pop("capacity_bytes")
        by_rule = plain.pop("by_rule")
        reads = {
            "from_host": plain.pop("from_host"),
            "by_rule": sum(one["count"] for one in by_rule),
            "lines": by_rule,
        }
        return {
            "schema": SCHEMA,
            "origin": "phantom",
            "gpu": gpu,
            "steps": plain.pop("num_steps"),
            "peaks": peaks,
            "host_reads": reads,
            **plain,
        }
