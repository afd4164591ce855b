"""The answers memplan gives, as records that are printed, saved, reported and read back.

Each has a schema version and the same field names in JSON as in Python. Memory is integer bytes.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from memplan.errors import BadInputError, BadTapeError

PREDICTED = "predicted"
SIMULATED = "simulated"
MEASURED = "measured"

DISPLAY_CATEGORIES = (
    "parameter",
    "optimizer_state",
    "gradient",
    "input",
    "activation",
    "workspace",
    "temporary",
    "cached",
    "context",
)


@dataclass(frozen=True, kw_only=True)
class WorkloadFacts:
    """What was trained in a prediction."""

    name: str
    img: int
    precision: str
    memory_format: str
    optimizer: str
    recompute: tuple[str, ...]
    parameters: int
    devices: int = 1
    objects_per_image: int = 0
    deterministic: bool = False
    """Whether PyTorch's deterministic algorithms run."""
    cudnn_benchmark: bool = False
    allow_tf32: bool = True


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """The card a prediction is for."""

    name: str
    capacity_bytes: int
    context_bytes: int
    context_uncertainty_bytes: int
    source: str
    """Where the figures come from: the catalogue, NVML, or a calibration file."""


@dataclass(frozen=True, kw_only=True)
class FitFacts:
    """Memory versus batch as a line, and how well the line holds."""

    base_bytes: int
    """Reserved bytes at batch 0 on the line."""
    bytes_per_image: int
    max_residual_bytes: int
    """Largest distance of the evaluated program from the line, bytes."""
    recorded_batches: tuple[int, ...]
    not_affine: dict[str, int] = field(default_factory=dict)
    """Operators whose bytes are not affine in the batch, and by how many bytes at most."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class BatchPeaks:
    """Peaks of a training's whole life at one micro-batch size."""

    micro_batch_size: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    device_used_peak_bytes: int
    peak_phase: str
    """`forward`, `backward`, `optimizer_step`, `transfer`, `average` or `predict`."""
    peak_period: str
    """`build`, `first_step`, `accumulation_step`, `steady_step` or `validation`."""
    peak_module: str
    """Path of the module that was running at the peak of allocated memory."""
    fits: bool
    objects_in_fullest_image: int = 0
    """In the fullest image of one batch in ten thousand; 0 where the notion does not apply."""
    num_alloc_retries: int = 0
    """Times the allocator must empty its cache to go on; such a batch fits, but slowly."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class ModuleMemory:
    """A module's share at the reference batch, without its children's."""

    path: str
    type: str
    output_shape: tuple[int, ...]
    activation_bytes: int
    workspace_bytes: int
    """Largest single workspace asked for inside the module."""
    forward_flops: int


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Memory through a life at the reference batch, thinned to its local peaks."""

    periods: tuple[tuple[str, str, int], ...]
    """Period, phase and the index of the first sample in it, in order."""
    categories: dict[str, tuple[int, ...]]
    """Bytes by category at each sample; `cached` is reserved minus allocated."""
    origin: str = PREDICTED


class Answer:
    """Base of the records that are saved as files of their own."""

    SCHEMA: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON-ready values, its schema first."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"schema": self.SCHEMA, **values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the record that `to_json` described.

        Raises:
            BadTapeError: the schema is another one, or fields are missing.
        """
        schema = values.get("schema")
        if schema != cls.SCHEMA:
            raise BadTapeError(f"Schema {schema!r} is not {cls.SCHEMA!r}, which was expected here.")
        try:
            record: Self = _revived(cls, {k: v for k, v in values.items() if k != "schema"})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BadTapeError(f"A {cls.SCHEMA} record is incomplete: {error}.") from None
        return record


def _revived(kind: Any, value: Any) -> Any:
    """Rebuild nested dataclasses, tuples and dicts from plain JSON values."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _revived(hints[name], item) for name, item in value.items()})
    if origin is tuple:
        inner = arguments[0] if len(arguments) == 2 and arguments[1] is ... else None
        if inner is not None:
            return tuple(_revived(inner, item) for item in value)
        return tuple(_revived(k, item) for k, item in zip(arguments, value, strict=True))
    if origin is dict:
        return {key: _revived(arguments[1], item) for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _revived(inner, value)
    return value


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a plan expects of the run."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    device_used_peak_bytes: int
    peak_phase: str
    images_per_second: float
    epoch_seconds: float | None
    """None when the data set is not known."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to run a training, with what it is expected to take."""

    micro_batch_size: int
    accumulation_steps: int
    effective_batch_size: int
    nominal_batch_size: int
    precision: str
    memory_format: str
    recompute: tuple[str, ...]
    allocator: str
    """PyTorch's option string; empty for the defaults."""
    devices: int
    predicted: Predicted


@dataclass(frozen=True, kw_only=True)
class PlanAnswer(Answer):
    """The fastest setting that fits a card, and those it was chosen from."""

    SCHEMA: ClassVar[str] = "memplan.plan/1"

    workload: WorkloadFacts
    gpu: GpuFacts
    micro_batch_size: int
    accumulation_steps: int
    effective_batch_size: int
    nominal_batch_size: int
    precision: str
    memory_format: str
    recompute: tuple[str, ...]
    allocator: str
    devices: int
    predicted: Predicted
    budget_bytes: int
    headroom_bytes: int
    alternatives: tuple[Setting, ...]
    """The Pareto set in memory and images per second, the chosen setting included."""
    command: str
    """The `memplan train` line that runs the plan."""
    versions: dict[str, str]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ProbeAnswer(Answer):
    """Where a training's memory goes on one card, and how it grows with the batch."""

    SCHEMA: ClassVar[str] = "memplan.probe/1"

    workload: WorkloadFacts
    gpu: GpuFacts
    fit: FitFacts
    batches: tuple[BatchPeaks, ...]
    reference_batch: int
    """The micro-batch size that categories, modules and timeline are about."""
    categories_at_peak: dict[str, int]
    modules: tuple[ModuleMemory, ...]
    largest_batch: int
    """Largest micro-batch size that fits; 0 when not even one image does."""
    edge: tuple[BatchPeaks, ...] = ()
    """Peaks at the largest micro-batch size that fits, and at one image more."""
    recommended: Setting | None
    timeline: Timeline
    unknown_operators: dict[str, int]
    command: str
    """The command that gave this answer."""
    versions: dict[str, str]
    seconds: float
    notes: tuple[str, ...] = ()


def save_answers(path: Path, answers: typing.Sequence[Answer], *, force: bool) -> None:
    """Write one record, or several as a list, as indented JSON.

    Raises:
        BadInputError: the file exists and `force` is False, or it cannot be written.
    """
    if path.exists() and not force:
        raise BadInputError(f"{path} exists. Give another --output, or --force to overwrite it.")
    values = [answer.to_json() for answer in answers]
    try:
        path.write_text(json.dumps(values[0] if len(values) == 1 else values, indent=1) + "\n")
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}.") from None


def load_answers(path: Path) -> list[Answer]:
    """Return the records in a saved file, each as its own kind.

    Raises:
        BadTapeError: the file is missing, no JSON, or holds a schema this version does not know.
    """
    kinds: dict[str, type[Answer]] = {
        ProbeAnswer.SCHEMA: ProbeAnswer,
        PlanAnswer.SCHEMA: PlanAnswer,
    }
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadTapeError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise BadTapeError(f"{path} cannot be read as JSON: {error}.") from None
    answers = []
    for item in values if isinstance(values, list) else [values]:
        schema = item.get("schema") if isinstance(item, dict) else None
        if schema not in kinds:
            raise BadTapeError(
                f"{path} has schema {schema!r}; this memplan reads {', '.join(kinds)}."
            )
        answers.append(kinds[schema].from_json(item))
    return answers
