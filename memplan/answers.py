"""The answers memplan gives, as records that are printed, saved, reported and read back.

Each has a schema version and the same field names in JSON as in Python. Memory is integer bytes.
"""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from memplan.answer import Answer
from memplan.errors import BadInputError, BadTapeError
from memplan.files import Source, decoded, write_text
from memplan.files.structures import NotStructuredError, sealed, unsealed
from memplan.plan_answers import CardChoice, CommandFit, Edge, ImageOption, SecondCard
from memplan.script_answer import ScriptAnswer
from memplan.spec import Split, StepSpec
from memplan.units import format_bytes

PREDICTED = "predicted"
SIMULATED = "simulated"
MEASURED = "measured"

# So many batches are named one by one.
_FEW_BATCHES = 4

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
    spec: StepSpec
    parameters: int
    devices: int = 1
    objects_per_image: int = 0


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """The card a prediction is for."""

    name: str
    capacity_bytes: int
    context_bytes: int
    context_uncertainty_bytes: int
    source: str
    """Where the figures come from: the catalogue, NVML, or a calibration file."""
    calibrated: bool = False
    """Whether context and rates were measured on such a card."""
    compute_capability: str = ""
    """Such as `8.6`; empty in answers of older versions."""


@dataclass(frozen=True, kw_only=True)
class FitFacts:
    """Memory versus batch as a line, and how well the line holds."""

    base_bytes: int
    """Reserved bytes at batch 0 on the line."""
    bytes_per_image: int
    max_residual_bytes: int
    """Largest distance of the evaluated program from the line, bytes, at `line_batches`."""
    recorded_batches: tuple[int, ...]
    not_affine: dict[str, int] = field(default_factory=dict)
    """Operators whose bytes are not affine in the batch, and by how many bytes at most."""
    line_batches: tuple[int, ...] = ()
    """Micro-batch sizes at which the line was compared; it says nothing of others."""
    grows_faster: float | None = None
    """Bytes that operators allocate at the largest batch recorded, over what the line through
    smaller ones says of it; None where memory grows no faster than affine."""
    origin: str = PREDICTED

    @property
    def error_words(self) -> str:
        """How far the line is off, and at which batches that was looked at."""
        off = f"off by at most {format_bytes(self.max_residual_bytes)}"
        batches = self.line_batches
        if not batches:
            return off
        if len(batches) <= _FEW_BATCHES:
            return f"{off} at batch {', '.join(map(str, batches))}"
        return f"{off} at {len(batches)} batches from {batches[0]} to {batches[-1]}"


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
    num_slower_plans: int = 0
    """Convolutions that run another plan than the best, whose workspace finds no memory."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class RankPeaks:
    """Peaks of a process that trains along with rank 0: no average, validation or checkpoint."""

    micro_batch_size: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    device_used_peak_bytes: int
    bucket_bytes: int
    """DDP's flat buckets, which every rank has."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class BatchRisk:
    """How likely a run at one micro-batch size meets an image too full for its memory."""

    micro_batch_size: int
    tolerated_objects: int | None
    """Most objects in an image that stay within the budget; None where any number does."""
    chance: float
    """That a step of the run exceeds the budget, 0 to 1."""
    chance_low: float
    """5th percentile over resampled data sets."""
    chance_high: float
    """95th percentile over resampled data sets."""
    chance_of_running_out: float
    """That a step of the run exceeds the card, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class RunRisk:
    """What crowded images may do to a run on a data set."""

    num_epochs: int
    num_images: int
    """Training images in an epoch."""
    num_steps: int
    """Micro-batches of the whole run at the chosen size, on all devices."""
    safety_fraction: float
    mean_objects: float
    """In a training image, as augmentation makes it."""
    usual_objects: int
    """In the fullest image of half the runs."""
    fullest_objects: int
    """In the fullest image of 99 in 100 runs."""
    batches: tuple[BatchRisk, ...]
    """The chosen micro-batch and its neighbours, ascending."""
    objects: tuple[int, ...] = ()
    """Objects in a training image at the shares of `shares`."""
    shares: tuple[float, ...] = ()
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class PhasePeak:
    """The most that tensors hold in one phase of a life."""

    period: str
    phase: str
    allocated_peak_bytes: int
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class BlockSaving:
    """What recomputing one block buys and costs in a micro-batch."""

    path: str
    activation_bytes: int
    """That the block keeps for backward unless it recomputes."""
    forward_seconds: float
    """Of its forward pass, which runs again; a roofline's."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class ModuleMemory:
    """A module's share at the reference batch, without its children's."""

    path: str
    type: str
    output_shape: tuple[int, ...]
    activation_bytes: int
    workspace_bytes: int
    """Largest single workspace requested inside the module."""
    forward_flops: int


@dataclass(frozen=True, kw_only=True)
class TensorAtPeak:
    """A block that is alive at the peak of allocated memory, and what made it."""

    num_bytes: int
    category: str
    operator: str
    """That allocated it, such as `aten::convolution`."""
    phase: str
    module: str
    """Path of the module that was running; empty outside of any."""
    module_type: str
    shape: tuple[int, ...]
    """Of the module's output where the block holds exactly that; else empty."""
    element_bytes: int
    """Bytes of an element of that shape; 0 where the shape is not known."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Memory through a life at the reference batch, thinned to its local peaks."""

    periods: tuple[tuple[str, str, int], ...]
    """Period, phase and the index of the first sample in it, in order."""
    categories: dict[str, tuple[int, ...]]
    """Bytes by category at each sample; `cached` is reserved minus allocated."""
    origin: str = PREDICTED


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

    spec: StepSpec
    split: Split
    nominal_batch_size: int
    """The recipe's own."""
    predicted: Predicted


@dataclass(frozen=True, kw_only=True)
class InputPipeline:
    """How fast images are read and augmented, which training cannot exceed."""

    num_workers: int
    images_per_second_per_worker: float
    images_per_second: float
    origin: str
    """`measured` in this machine, or `given`."""


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """What a plan's batch means for the training, beside the requested batch."""

    asked_batch_size: int
    """Images a step, as requested."""
    rounding_gain_fraction: float | None
    """How much faster the plan is than the best that gives the very batch requested, 0 when it
    does so itself; None where no such plan fits."""
    accumulation_cost_fraction: float | None
    """How much faster all images of a step at once would be, whether they fit or not; None where
    the plan has them at once."""
    weight_decay_factor: float
    """What `memplan train` scales the recipe's weight decay by: effective over nominal batch."""
    learning_rate_factor: float = 1.0
    """What `memplan train` scales the recipe's learning rate by."""
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class PlanAnswer(Answer):
    """The fastest setting that fits a card, and those it was chosen from."""

    SCHEMA: ClassVar[str] = "memplan.plan/1"

    workload: WorkloadFacts
    gpu: GpuFacts
    spec: StepSpec
    split: Split
    nominal_batch_size: int
    """The recipe's own."""
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
    unchecked: tuple[str, ...] = ()
    """What could not be checked by a recording, and why, a sentence each."""
    other_ranks: RankPeaks | None = None
    """What the other processes take; None for one device."""
    risk: RunRisk | None = None
    """What crowded images may do; None without a data set and a number of epochs."""
    safety_source: str = ""
    """Where the margin comes from, a sentence."""
    phase_peaks: tuple[PhasePeak, ...] = ()
    """Of the chosen setting, in the order of a life."""
    block_savings: tuple[BlockSaving, ...] = ()
    """Of the blocks that recompute, in the order they run."""
    share_fraction: float | None = None
    """This card's part of the effective batch among unequal cards; None where cards are alike."""
    feasible: bool = True
    """Always; an `InfeasibleAnswer` says False in its place."""
    taken_bytes: int = 0
    """What others hold of the card now, which the budget leaves to them."""
    batch: BatchFacts | None = None
    """What the batch means for the training; None among unequal cards."""
    input_pipeline: InputPipeline | None = None
    """What loading limits training to; None where it was not requested."""
    edge: Edge | None = None
    """What would push the run over; None where that was not looked into."""
    fit: CommandFit | None = None
    """Of the user's own command; None where none was given."""
    cards: CardChoice | None = None
    """The catalogue for this run; None where it was not requested."""
    largest_image: tuple[ImageOption, ...] = ()
    """The largest images that fit; empty where it was not requested."""
    second_card: SecondCard | None = None
    """What another card buys; None where it was not requested."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that would make a training fit, recorded and replayed."""

    what: str
    """As the user would do it, such as `--img 512` or `--gpu rtx-4080`."""
    micro_batch_size: int
    device_used_peak_bytes: int
    budget_bytes: int
    origin: str = PREDICTED


@dataclass(frozen=True, kw_only=True)
class InfeasibleAnswer(Answer):
    """Why nothing fits a card, by how much, and what would."""

    SCHEMA: ClassVar[str] = "memplan.infeasible/1"

    workload_name: str
    img: int
    gpu: GpuFacts
    reason: str
    """A sentence with the least that is needed and the budget."""
    budget_bytes: int
    over_bytes: int
    """How much more the least setting takes than the budget."""
    least: Setting | None
    """The setting that takes least memory; None where not even the context fits."""
    changes: tuple[Change, ...]
    """Each would make it fit, the nearest first."""
    versions: dict[str, str]
    seconds: float
    feasible: bool = False
    """Never; a `PlanAnswer` says True in its place."""

    @property
    def message(self) -> str:
        """What a user must know, one line."""
        if self.least is None:
            return f"{self.reason} Give a larger --capacity, or another --gpu."
        if not self.changes:
            return f"{self.reason} Lower --img, or take a smaller model."
        ways = ", or ".join(one.what for one in self.changes)
        return f"{self.reason} Nearest change that fits (predicted): {ways}."


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The training run in another way, replayed at the reference batch."""

    options: str
    """What to type for it, such as `--fused`; empty for the training as asked."""
    spec: StepSpec
    micro_batch_size: int
    allocated_peak_bytes: int = 0
    reserved_peak_bytes: int = 0
    device_used_peak_bytes: int = 0
    fits: bool = False
    largest_batch: int = 0
    """Largest micro-batch size that fits, by the program of two recordings; as asked, recorded."""
    images_per_second: float = 0.0
    """Of all devices, at this batch without accumulation."""
    refusal: str = ""
    """Why the training cannot run so, and there are no figures; empty where it can."""
    origin: str = PREDICTED


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
    """Largest micro-batch size that was recorded and fits; 0 when not even one image does."""
    largest_is_edge: bool = True
    """Whether one image more was recorded too, and does not fit."""
    edge: tuple[BatchPeaks, ...] = ()
    """Peaks at the largest micro-batch size that fits, and at one image more."""
    one_by_one_range_bytes: tuple[int, int] | None = None
    """Device-used bytes at the reference batch, least and most, as the workspaces of 1x1
    convolutions leave them open; None where there are none."""
    recommended: Setting | None
    other_ranks: RankPeaks | None = None
    """What the other processes take at the reference batch; None for one device."""
    timeline: Timeline
    tensors_at_peak: tuple[TensorAtPeak, ...] = ()
    """The largest at the reference batch, largest first."""
    what_if: tuple[WhatIf, ...] = ()
    """The training as asked, then with one lever set otherwise, then all that saves and changes no
    number together; empty where it was not asked."""
    unknown_operators: dict[str, int]
    command: str
    """The command that gave this answer."""
    versions: dict[str, str]
    seconds: float
    notes: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    """What could not be checked by a recording, and why, a sentence each."""
    mode: str = "train"
    """`train`; `val` or `predict` of an answer about running a trained network."""
    half: bool = False
    """Whether a trained network runs in half precision."""


def save_answers(path: Path, answers: typing.Sequence[Answer], *, force: bool) -> None:
    """Write one record, or several as a list, as indented JSON.

    Raises:
        BadInputError: the file exists and `force` is False, or it cannot be written.
    """
    if path.exists() and not force:
        raise BadInputError(f"{path} exists. Give another --output, or --force to overwrite it.")
    values = [sealed(answer.to_json()) for answer in answers]
    try:
        write_text(path, json.dumps(values[0] if len(values) == 1 else values, indent=1) + "\n")
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}.") from None


def load_answers(path: Path) -> list[Answer]:
    """Return the records in a saved file, each as its own kind.

    Raises:
        BadTapeError: the file is missing, no JSON, or holds a schema this version does not know.
    """
    known = (ProbeAnswer, PlanAnswer, InfeasibleAnswer, ScriptAnswer)
    kinds: dict[str, type[Answer]] = {one.SCHEMA: one for one in known}
    values = decoded(
        Source(
            path=path,
            what="a saved answer",
            way_out="Save it anew with --output.",
            missing="`memplan probe --output` and `memplan plan --output` write such files.",
            error=BadTapeError,
        )
    )
    answers: list[Answer] = []
    for item in values if isinstance(values, list) else [values]:
        schema = item.get("schema") if isinstance(item, dict) else None
        if not isinstance(schema, str) or schema not in kinds:
            raise BadTapeError(
                f"{path} has schema {schema!r}; this memplan reads {', '.join(kinds)}."
            )
        try:
            answers.append(kinds[schema].from_json(unsealed(item)))
        except (BadTapeError, NotStructuredError) as error:
            raise BadTapeError(
                f"{path} is damaged: {str(error).rstrip('.')}. Save it anew with --output."
            ) from None
    return answers
