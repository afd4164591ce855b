"""How a training step is executed, each lever declared once.

`LEVERS` is the table that command-line options, the search of a plan, command lines to copy, and
labels in text and PDF are made of. `StepSpec` and `Split` carry the values from the command line
to the step that runs; in files their fields stand at the level of the record that holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypedDict

from memplan.bounds import check_number
from memplan.errors import UsageError
from memplan.files.structures import Flat
from memplan.lean import Lean

PRECISIONS = ("amp-fp16", "amp-bf16", "fp32")
MEMORY_FORMATS = ("contiguous", "channels-last")
ALL_BLOCKS = ("all",)
"""What `StepSpec.recompute` is until the model is known that `all` is said of."""
COMMANDS = frozenset({"probe", "plan", "train"})
_PROBE = frozenset({"probe"})


@dataclass(frozen=True, kw_only=True)
class StepSpec(Flat):
    """How a step is executed: a value for each lever."""

    precision: str = "amp-fp16"
    """`amp-fp16` (autocast with a gradient scaler), `amp-bf16` (autocast) or `fp32`."""
    memory_format: str = "contiguous"
    """`contiguous` (NCHW) or `channels-last` (NHWC)."""
    optimizer: str = "SGD"
    """The optimizer's name, as the workload knows it."""
    recompute: tuple[str, ...] = ()
    """Paths of modules that recompute their activations in backward; empty recomputes none."""
    lean: bool = False
    """Whether blocks keep for backward only what they cannot rebuild cheaply; see
    `memplan.lean.Lean`."""
    assigner_parts: int = 0
    """Parts of a batch whose objects the loss matches one after another; 0 leaves it to the
    workload, which may have no such choice."""
    fused: bool = False
    """Whether an optimizer step is one kernel a list of parameters, with no temporaries and, under
    a gradient scaler, without asking the device whether gradients overflowed."""
    sync_bn: bool = False
    """Whether batch norm sees the images of all devices."""
    allocator: str = ""
    """PyTorch's allocator options; empty for the defaults."""
    compiled: bool = False
    """Whether the model runs through `torch.compile`; such a step cannot be recorded."""
    deterministic: bool = False
    """Whether `torch.use_deterministic_algorithms(True)` holds, and cuDNN's like."""
    cudnn_benchmark: bool = False
    """Whether `torch.backends.cudnn.benchmark` holds: the fastest plan by trial."""
    allow_tf32: bool = True
    """Whether `torch.backends.cudnn.allow_tf32` holds, as it does by default; for fp32 only."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: a choice that does not exist, or a number out of its bounds.
        """
        for lever in LEVERS:
            lever.check(getattr(self, lever.name))

    def words(self, *, leave_out: Collection[str] = ()) -> str:
        """Return how the step runs, as people say it: `amp-fp16, channels-last, lean`.

        Levers at their defaults are not named, but for choices that
        every step has to make.

        Args:
            leave_out: levers not to name.
        """
        said = (one.words(getattr(self, one.name)) for one in LEVERS if one.name not in leave_out)
        return ", ".join(word for word in said if word)

    def options(self, command: str, *, blocks: Sequence[str] = ()) -> list[str]:
        """Return the words of a command line that make a step run so.

        Args:
            command: the command, such as `train`; levers that it has no options for are left out.
            blocks: all that may recompute, which are written as `all`.
        """
        words: list[str] = []
        for lever in LEVERS:
            value = getattr(self, lever.name)
            if command in lever.commands and (lever.is_always_typed or lever.words(value)):
                whole = lever.kind == MODULES and bool(value) and value == tuple(blocks)
                words += lever.typed(ALL_BLOCKS if whole else value)
        return words

    def variables(self, command: str) -> list[str]:
        """Return what the environment of a command sets that has no options for it."""
        return [
            f"{lever.variable}={value}"
            for lever in LEVERS
            if lever.variable
            and command not in lever.commands
            and (value := getattr(self, lever.name)) != lever.plain
        ]


class Levers(TypedDict, total=False):
    """Levers as keyword arguments of the Python functions; see `StepSpec`."""

    precision: str
    memory_format: str
    optimizer: str
    recompute: str | tuple[str, ...]
    lean: bool
    assigner_parts: int
    fused: bool
    sync_bn: bool
    allocator: str
    compiled: bool
    deterministic: bool
    cudnn_benchmark: bool
    allow_tf32: bool


@dataclass(frozen=True, kw_only=True)
class Split(Flat):
    """How the images of an optimizer step are divided."""

    DERIVED: ClassVar[tuple[str, ...]] = ("effective_batch_size",)

    micro_batch_size: int
    """Images in one forward and backward on one device."""
    accumulation_steps: int = 1
    """Micro-batches to an optimizer step."""
    devices: int = 1
    """Devices that train together."""
    others_batch_size: int | None = None
    """Images of a micro-batch on all other devices together; None where each has as many."""

    @property
    def effective_batch_size(self) -> int:
        """Images an optimizer step sees on all devices."""
        return self.images_at_once * self.accumulation_steps

    @property
    def images_at_once(self) -> int:
        """Images of one micro-batch on all devices."""
        if self.others_batch_size is not None:
            return self.micro_batch_size + self.others_batch_size
        return self.micro_batch_size * self.devices

    @property
    def accumulates(self) -> bool:
        """Whether gradients of several micro-batches are summed before a step."""
        return self.accumulation_steps > 1

    @property
    def words(self) -> str:
        """The factors of a device's images, such as `16 x 4`."""
        return f"{self.micro_batch_size} x {self.accumulation_steps}"


CHOICE, NAME, FLAG, NUMBER, MODULES, TEXT = "choice", "name", "flag", "number", "modules", "text"


@dataclass(frozen=True, kw_only=True)
class Lever:
    """One way in which steps differ; its plain value is the default of its field of `StepSpec`."""

    name: str
    """Field of `StepSpec`, and parameter of the Python functions."""
    kind: str
    """`choice` (of `values`), `name` (checked by the workload), `flag`, `number`, `modules` (paths
    of modules) or `text`."""
    option: str
    """The option that sets it; for a flag that holds by default, the one that unsets it."""
    help: str
    """Of the option."""
    column: str
    """Its title in tables."""
    negative: str = ""
    """The option that unsets a flag."""
    values: tuple[str, ...] = ()
    """Of a choice."""
    commands: frozenset[str] = COMMANDS
    """Commands that have the option."""
    variable: str = ""
    """Environment variable that sets it where a command has no option."""
    said: Callable[[Any], str] = str
    """Returns the value in words, where it is not the plain one."""
    cell: Callable[[Any], str] = str
    """Returns the value in a table."""
    is_always_typed: bool = False
    """Whether command lines state it when it is plain too."""
    tried: tuple[Any, ...] = ()
    """Values that a plan tries of itself, the plain one first; empty where it is not a plan's to
    choose."""
    changes_numbers: bool = False
    """Whether losses differ by it, so that a plan chooses it only on request."""
    costs_speed: bool = False
    """Whether other values than the plain one only cost speed, so that they are tried where a
    faster setting does not fit, and count as a departure in its score."""
    is_recorded: bool = True
    """Whether tapes differ by it."""
    is_predicted: bool = True
    """Whether plans know it; what they do not know stays as a run's own options have it."""
    offered: Callable[[Any], bool] | None = None
    """Returns whether a workload can do it; None where all can."""
    refusal: str = ""
    """Why a workload cannot, after its name, and what to do."""

    def __str__(self) -> str:
        """Return its name."""
        return self.name

    @property
    def plain(self) -> Any:
        """The value of a step by default."""
        return _PLAIN[self.name]

    def words(self, value: Any) -> str:
        """Return the value as people say it; empty where there is nothing to say."""
        return self.said(value) if self.kind == CHOICE or value != self.plain else ""

    def typed(self, value: Any) -> list[str]:
        """Return the words of a command line that set a value."""
        if self.kind == FLAG:
            return [self.option if value != self.plain else self.negative or self.option]
        return [self.option, ",".join(value) if self.kind == MODULES else str(value)]

    def read(self, value: Any) -> Any:
        """Return a value as an option gives it, as `StepSpec` has it; None is the plain one."""
        if value is None:
            return self.plain
        if self.kind == FLAG:
            return not value if self.plain else bool(value)
        return read_modules(value) if self.kind == MODULES else value

    def check(self, value: Any) -> None:
        """Refuse a value that there is none of.

        Raises:
            UsageError: a choice that does not exist, or a number out of its bounds.
        """
        if self.kind == CHOICE and value not in self.values:
            raise UsageError(f"{self.option} {value!r} is not one of {', '.join(self.values)}.")
        if self.kind == NUMBER and value != self.plain:
            check_number(self.option, value)

    def choices(self, workload: Any, value: Any) -> tuple[Any, ...]:
        """Return the values that a plan tries for a workload; one where there is no choice.

        What only costs speed is tried where the workload does not do so anyway.
        """
        rest = [one for one in self.tried if one != self.tried[0]]
        is_set = self.costs_speed and value not in {self.plain, *self.tried[:1]}
        if is_set or not all(self.is_offered(workload, one) for one in rest):
            return (value,)
        return self.tried

    def is_offered(self, workload: Any, value: Any) -> bool:
        """Return whether a workload can do a value."""
        return value == self.plain or self.offered is None or self.offered(workload)

    def check_offered(self, workload: Any, value: Any) -> None:
        """Refuse a value that a workload does not offer.

        Raises:
            UsageError: it is not the plain one, and the workload has no other.
        """
        if not self.is_offered(workload, value):
            raise UsageError(f"{self.option}: workload {workload.name!r} {self.refusal}")


def read_modules(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return paths of modules as `--recompute` gives them: `none`, `all`, or a list with commas.

    Raises:
        UsageError: `auto`, which only a plan can choose.
    """
    if not isinstance(value, str):
        return tuple(value)
    if value == "auto":
        raise UsageError("--recompute auto is for `memplan plan`. Give none, all or paths.")
    if value in {"", "none"}:
        return ()
    return tuple(path.strip() for path in value.split(",") if path.strip())


def _num_blocks(paths: tuple[str, ...]) -> str:
    blocks = "all blocks" if paths == ALL_BLOCKS else f"{len(paths)} blocks"
    return f"recompute {blocks}"


LEVERS = (
    Lever(
        name="precision",
        kind=CHOICE,
        option="--precision",
        help="amp-fp16, amp-bf16 or fp32; plan: auto chooses.  [amp-fp16; on a CPU fp32]",
        column="Precision",
        values=PRECISIONS,
        is_always_typed=True,
        tried=PRECISIONS,
        changes_numbers=True,
    ),
    Lever(
        name="memory_format",
        kind=CHOICE,
        option="--memory-format",
        help="contiguous or channels-last.  [contiguous; a plan chooses]",
        column="Layout",
        values=MEMORY_FORMATS,
        is_always_typed=True,
        tried=MEMORY_FORMATS,
    ),
    Lever(
        name="optimizer",
        kind=NAME,
        option="--optimizer",
        help="SGD, Adam, AdamW, RMSprop, Adagrad or LION.  [SGD]",
        column="Optimizer",
        is_always_typed=True,
    ),
    Lever(
        name="lean",
        kind=FLAG,
        option="--lean",
        negative="--no-lean",
        help="Keep for backward only what cannot be rebuilt cheaply: a third to a half less "
        "memory, the same results.  [no; a plan chooses]",
        column="Lean",
        said=lambda _: "lean",
        cell=lambda value: "yes" if value else "no",
        tried=(False, True),
        costs_speed=True,
        offered=lambda workload: isinstance(workload, Lean),
        refusal="has no lean blocks. Leave it out, or use --recompute.",
    ),
    Lever(
        name="assigner_parts",
        kind=NUMBER,
        option="--assigner-parts",
        help="Assign the boxes of crowded batches in N parts: less memory, the same results.  "
        "[1; a plan chooses]",
        column="Parts",
        said=lambda value: f"objects matched in {value} parts" if value > 1 else "",
        cell=lambda value: str(max(value, 1)),
        tried=(1, 4),
        costs_speed=True,
        offered=lambda workload: workload.assigner_parts > 0,
        refusal="matches no objects in parts. Leave it out.",
    ),
    Lever(
        name="fused",
        kind=FLAG,
        option="--fused",
        help="Step the optimizer in fused kernels: SGD, Adam and AdamW have them.",
        column="Fused",
        said=lambda _: "fused optimizer",
        cell=lambda value: "yes" if value else "no",
        offered=lambda workload: workload.offers_fused,
        refusal="makes its optimizer without fused kernels. Leave it out.",
    ),
    Lever(
        name="sync_bn",
        kind=FLAG,
        option="--sync-bn",
        help="Batch norm over the images of all devices.",
        column="Sync norm",
        said=lambda _: "batch norm over all devices",
        cell=lambda value: "yes" if value else "no",
    ),
    Lever(
        name="compiled",
        kind=FLAG,
        option="--compile",
        help="Run the model through torch.compile; its memory is not predicted.",
        column="Compiled",
        commands=frozenset({"train"}),
        said=lambda _: "torch.compile",
        is_predicted=False,
    ),
    Lever(
        name="deterministic",
        kind=FLAG,
        option="--deterministic",
        help="As under use_deterministic_algorithms(True).",
        column="Deterministic",
        commands=_PROBE,
        said=lambda _: "deterministic",
    ),
    Lever(
        name="cudnn_benchmark",
        kind=FLAG,
        option="--cudnn-benchmark",
        help="As under torch.backends.cudnn.benchmark.",
        column="Benchmark",
        commands=_PROBE,
        said=lambda _: "cudnn.benchmark",
    ),
    Lever(
        name="allow_tf32",
        kind=FLAG,
        option="--no-tf32",
        help="As without torch.backends.cudnn.allow_tf32.",
        column="TF32",
        commands=_PROBE,
        said=lambda _: "no TF32",
    ),
    Lever(
        name="recompute",
        kind=MODULES,
        option="--recompute",
        help="Trade time for memory: none, all, or module paths with commas; a plan: auto.  "
        "[none; plan: auto]",
        column="Recomputed",
        said=_num_blocks,
        cell=lambda paths: str(len(paths)),
        tried=((),),
        costs_speed=True,
    ),
    Lever(
        name="allocator",
        kind=TEXT,
        option="--allocator",
        help="PyTorch's own syntax, such as expandable_segments:True.",
        column="Allocator",
        commands=frozenset({"probe", "plan"}),
        variable="PYTORCH_CUDA_ALLOC_CONF",
        cell=lambda value: "expandable" if "expandable" in value else value or "default",
        # What ends most fragmentation, at no cost in speed that anybody measured.
        # Source: "Optimizing memory usage with PYTORCH_ALLOC_CONF", PyTorch 2.11's notes on CUDA.
        tried=("", "expandable_segments:True"),
        costs_speed=True,
        is_recorded=False,
    ),
)
"""Every lever, in the order in which words, options and columns name them."""

_PLAIN = {field.name: field.default for field in fields(StepSpec)}
LEVER = {lever.name: lever for lever in LEVERS}
"""The levers by name."""
FREE = frozenset(one.name for one in LEVERS if one.tried and not one.changes_numbers)
"""What a plan chooses by itself unless it is given."""


def spec_of(values: Mapping[str, Any], names: Iterable[str] | None = None) -> StepSpec:
    """Return the spec that options or keyword arguments give, by name; others are left alone.

    Args:
        values: by name of the lever or of its option's parameter; None is not given.
        names: the levers to read; None reads all that there are values of.

    Raises:
        UsageError: a value cannot be used.
    """
    known = LEVER if names is None else names
    given = {name: LEVER[name].read(values[name]) for name in known if name in values}
    for name, value in given.items():
        if LEVER[name].kind == NUMBER and values[name] is not None:
            check_number(LEVER[name].option, value)
    return StepSpec(**given)


def free_levers(given: Mapping[str, Any]) -> frozenset[str]:
    """Return what a plan may choose by itself: what is not given, or given as `auto`.

    Args:
        given: values of levers as they were typed, by name.
    """
    chosen = {name for name, value in given.items() if value == "auto" and LEVER[name].tried}
    return (FREE - given.keys()) | chosen


def check_step(workload: Any, spec: StepSpec) -> None:
    """Refuse ways to run a step that a workload does not offer.

    Raises:
        UsageError: the spec has one.
    """
    for lever in LEVERS:
        lever.check_offered(workload, getattr(spec, lever.name))


def of_tape(spec: StepSpec) -> StepSpec:
    """Return a spec with what tapes do not differ by at its default."""
    return replace(spec, **{one.name: one.plain for one in LEVERS if not one.is_recorded})


def of_plan(spec: StepSpec) -> StepSpec:
    """Return a spec with what plans do not know at its default."""
    return replace(spec, **{one.name: one.plain for one in LEVERS if not one.is_predicted})
