"""The functions behind the commands: probe, plan, record and replay."""

from __future__ import annotations

import contextlib
import itertools
import platform
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from memplan import tape as tapes
from memplan._version import __version__
from memplan.answers import (
    BatchPeaks,
    FitFacts,
    GpuFacts,
    ModuleMemory,
    PlanAnswer,
    ProbeAnswer,
    Setting,
    Timeline,
    WorkloadFacts,
)
from memplan.device import catalogue, nvml
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.card import Card
from memplan.device.cudnn import installed_version
from memplan.device.replay import (
    UNLIMITED_BYTES,
    Life,
    Peaks,
    Program,
    Simulator,
    categories_at,
)
from memplan.device.replay import replay as replay_on
from memplan.errors import BadInputError, UsageError
from memplan.fit.predictor import Predictor, Say
from memplan.planner.search import (
    Budget,
    Space,
    fits_budget,
    pareto,
    search,
    settings_at,
)
from memplan.registry import make_workload
from memplan.tape import Int64, Tape
from memplan.trace.fake_cuda import fake_cuda, warm_up
from memplan.trace.record import record as record_step
from memplan.trace.step import MEMORY_FORMATS, StepSettings
from memplan.units import parse_bytes
from memplan.workload import OptimizerSettings, Workload

DEFAULT_WORKLOAD = "yolov9-s"
DEFAULT_SAFETY = 0.05
# Up to so many batches, cuDNN is asked about each; of more, between powers of two it is not.
_MOST_EXACT = 4
# Samples of a timeline that a page can show.
_TIMELINE_SAMPLES = 600


def _silent(_: str) -> None:
    pass


@contextlib.contextmanager
def _explained(workload: Workload) -> Iterator[None]:
    """Turn what building a model raises into one line, as recording does."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise BadInputError(
            f"{workload.name} cannot be built: {reason}. Try another --img or --set."
        ) from error


def versions() -> dict[str, str]:
    """Return the versions that decide an answer."""
    import torch

    return {
        "memplan": __version__,
        "torch": torch.__version__,
        "cudnn": installed_version(),
        "python": platform.python_version(),
    }


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is trained and on what, as the user asked it."""

    workload: str | Workload = DEFAULT_WORKLOAD
    """A name, or a workload itself."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the workload's factory."""
    gpus: tuple[str | int | Card, ...] = ()
    """Cards by catalogue name, index in this machine, or as they are; empty takes the present."""
    capacity_bytes: int | None = None
    """Overrides the cards' memory."""
    precision: str = "amp-fp16"
    """`amp-fp16`, `amp-bf16` or `fp32`."""
    memory_format: str = "contiguous"
    """`contiguous` or `channels-last`."""
    optimizer: str = "SGD"
    """The optimizer's name."""
    recompute: str | tuple[str, ...] = "none"
    """`none`, `all`, or module paths."""
    allocator: str = ""
    """PyTorch's option string."""
    devices: int = 1
    """Cards that train together."""

    def __post_init__(self) -> None:
        """Refuse what no workload can take.

        Raises:
            UsageError: an image size below 1, a negative number of objects, or no devices.
        """
        bounds = (("image_size", "--img", 1), ("objects_per_image", "--objects-per-image", 0))
        given = [(option, self.arguments.get(key), least) for key, option, least in bounds]
        for option, value, least in [*given, ("--devices", self.devices, 1)]:
            if isinstance(value, int) and value < least:
                raise UsageError(f"{option} {value} is below {least}.")

    @cached_property
    def made(self) -> Workload:
        """The workload, made once."""
        if isinstance(self.workload, Workload):
            return self.workload
        return make_workload(self.workload, self.arguments)

    def cards(self) -> list[Card]:
        """Return the cards asked about.

        Raises:
            BadInputError: there is no such card in this machine, or none named and none present.
            UnknownNameError: the catalogue has no such card.
        """
        chosen = [_card(gpu) for gpu in self.gpus] or [_present_card()]
        if self.capacity_bytes is None:
            return chosen
        return [card.with_capacity(self.capacity_bytes) for card in chosen]

    def simulators(self) -> list[Simulator]:
        """Return the cards with their libraries and allocator settings."""
        import torch

        release = torch.__version__.partition("+")[0]
        major, minor = release.split(".")[:2]
        settings = AllocatorSettings.parse(self.allocator, (int(major), int(minor)))
        return [
            Simulator(card, settings, torch_version=release, devices=self.devices)
            for card in self.cards()
        ]

    def recompute_paths(self) -> tuple[str, ...]:
        """Return the module paths that recompute, `all` spelt out."""
        if isinstance(self.recompute, tuple):
            return self.recompute
        if self.recompute == "none":
            return ()
        if self.recompute == "all":
            return self.all_blocks
        return tuple(path.strip() for path in self.recompute.split(",") if path.strip())

    @cached_property
    def all_blocks(self) -> tuple[str, ...]:
        """Every module that the workload says may recompute."""
        with _explained(self.made), fake_cuda():
            return tuple(self.made.recompute_blocks(self.made.build_model()))

    def step_settings(self) -> StepSettings:
        """Return how the step runs.

        Raises:
            UsageError: a name that does not exist.
        """
        return StepSettings(
            precision=self.precision,
            memory_format=self.memory_format,
            optimizer=OptimizerSettings(name=self.optimizer),
            recompute=self.recompute_paths(),
        )


def _card(gpu: str | int | Card) -> Card:
    if isinstance(gpu, Card):
        return gpu
    if isinstance(gpu, int) or gpu.isdecimal():
        return nvml.card_at(int(gpu)).card
    return catalogue.card(gpu)


def _present_card() -> Card:
    present = nvml.present()
    if not present:
        raise BadInputError(
            "No NVIDIA card is in this machine, and no --gpu names one. Give --gpu NAME, such as "
            "rtx-3090 or a100-80gb; `memplan gpus` lists them all."
        )
    return present[0].card


def _gpu_facts(simulator: Simulator) -> GpuFacts:
    return GpuFacts(
        name=simulator.card.name,
        capacity_bytes=simulator.card.capacity_bytes,
        context_bytes=simulator.outside.num_bytes,
        context_uncertainty_bytes=simulator.outside.uncertainty_bytes,
        source=simulator.card.source,
    )


def _workload_facts(tape: Tape, devices: int) -> WorkloadFacts:
    about = tape.description
    return WorkloadFacts(
        name=about.workload,
        img=about.image_size,
        precision=about.precision,
        memory_format=about.memory_format,
        optimizer=about.optimizer,
        recompute=about.recompute,
        parameters=about.parameters,
        devices=devices,
        objects_per_image=about.objects_per_image,
    )


def _batch_peaks(batch: int, peaks: Peaks) -> BatchPeaks:
    return BatchPeaks(
        micro_batch_size=batch,
        allocated_peak_bytes=peaks.allocated_peak_bytes,
        reserved_peak_bytes=peaks.reserved_peak_bytes,
        device_used_peak_bytes=peaks.device_used_peak_bytes,
        peak_phase=peaks.peak_phase,
        peak_period=peaks.peak_period,
        peak_module=peaks.peak_module,
        fits=peaks.fits,
        num_alloc_retries=peaks.num_alloc_retries,
    )


def _line(batches: Sequence[BatchPeaks], predictor: Predictor, card: int) -> FitFacts:
    """Return the least-squares line through reserved peaks, and its largest miss.

    Batches that fit only by emptying the cache hold less than they would like; they are left out.
    Of one batch alone, the line goes through it and its double.
    """
    batches = [row for row in batches if not row.num_alloc_retries] or batches
    sizes = np.array([row.micro_batch_size for row in batches], dtype=np.float64)
    reserved = np.array([row.reserved_peak_bytes for row in batches], dtype=np.float64)
    if len(batches) > 1:
        slope, base = np.polyfit(sizes, reserved, 1)
    else:
        batch = batches[0].micro_batch_size
        doubled = predictor.peaks(card, 2 * batch).reserved_peak_bytes
        slope = max(0.0, (doubled - reserved[0]) / batch)
        base = reserved[0] - slope * batch
    return FitFacts(
        base_bytes=round(base),
        bytes_per_image=round(slope),
        max_residual_bytes=round(float(np.abs(reserved - (base + slope * sizes)).max())),
        recorded_batches=predictor.fit.recorded_batches,
        not_affine=predictor.fit.residual_bytes,
    )


def _modules(tape: Tape, workspace_bytes: Int64) -> tuple[ModuleMemory, ...]:
    """Return what each module keeps for backward, asks for, and computes, without its children."""
    events, operators = tape.events, tape.operators
    in_step = events.section == tapes.SECTIONS.index("micro_batch")
    phase = operators.phase[events.operator]
    forward = tapes.PHASES.index("forward")
    owner = operators.module[events.operator]
    kept = (
        in_step
        & (phase == forward)
        & (events.kind == tapes.ALLOCATE)
        & (tape.block_category[events.block] == tapes.CATEGORY_INDEX["activation"])
        & (owner >= 0)
    )
    activation = np.zeros(len(tape.modules), dtype=np.int64)
    np.add.at(activation, owner[kept], events.requested_bytes[kept])
    asks = in_step & (events.request >= 0) & (owner >= 0)
    workspace = np.zeros(len(tape.modules), dtype=np.int64)
    np.maximum.at(workspace, owner[asks], workspace_bytes[events.request[asks]])
    computes = (
        (operators.section == tapes.SECTIONS.index("micro_batch"))
        & (operators.phase == forward)
        & (operators.module >= 0)
    )
    flops = np.zeros(len(tape.modules), dtype=np.int64)
    np.add.at(flops, operators.module[computes], operators.flops[computes])
    return tuple(
        ModuleMemory(
            path=module.path,
            type=module.type,
            output_shape=module.output_shape,
            activation_bytes=int(activation[index]),
            workspace_bytes=int(workspace[index]),
            forward_flops=int(flops[index]),
        )
        for index, module in enumerate(tape.modules)
    )


def _timeline(program: Program, sizes: Int64, simulator: Simulator, peaks: Peaks) -> Timeline:
    """Return memory by category through a life, one sample at the peak of each stretch."""
    live = program.live_by_category(sizes)
    available = simulator.card.capacity_bytes - simulator.outside.num_bytes
    capacity = available if peaks.fits else UNLIMITED_BYTES
    result = simulator.run(program, sizes, capacity, timeline=True)
    assert result.reserved_timeline_bytes is not None
    total = live.sum(axis=0)
    edges = np.linspace(0, len(total), min(_TIMELINE_SAMPLES, len(total)) + 1).astype(int)
    picks = np.array([a + int(total[a:b].argmax()) for a, b in itertools.pairwise(edges)])
    bands = {name: live[index, picks] for index, name in enumerate(tapes.CATEGORIES)}
    bands["cached"] = np.maximum(0, result.reserved_timeline_bytes[picks] - total[picks])
    bands["context"] = np.full(len(picks), simulator.outside.num_bytes)
    marks: list[tuple[str, str, int]] = []
    for sample, event in enumerate(picks):
        period, phase, _ = program.place(int(event))
        if not marks or marks[-1][:2] != (period, phase):
            marks.append((period, phase, sample))
    return Timeline(
        periods=tuple(marks),
        categories={name: tuple(int(v) for v in band) for name, band in bands.items()},
    )


def _reference(batches: Sequence[BatchPeaks]) -> int:
    """Return the batch that details are about: the largest asked for that fits, or the smallest."""
    fitting = [row.micro_batch_size for row in batches if row.fits]
    return max(fitting) if fitting else min(row.micro_batch_size for row in batches)


def _recommended(
    predictor: Predictor, card: int, question: Question, settings: StepSettings, largest: int
) -> Setting | None:
    """Return the fastest micro-batch of this very configuration that leaves a margin."""
    nominal = question.made.nominal_batch_size
    space = Space(
        precisions=(settings.precision,),
        memory_formats=(settings.memory_format,),
        recomputes=(settings.recompute,),
        effective_batch_size=nominal * question.devices,
        nominal_batch_size=nominal,
        devices=question.devices,
        allocator=question.allocator,
    )
    batches = [batch for batch in space.micro_batches() if batch <= largest]
    if not batches:
        return None
    capacity = predictor.simulators[card].card.capacity_bytes
    budget = Budget(capacity_bytes=capacity, safety_fraction=DEFAULT_SAFETY)
    found = settings_at(predictor, card, space, settings, batches, None)
    feasible = [setting for setting, peaks in found if fits_budget(peaks, budget)]
    return pareto(feasible)[-1] if feasible else None


def _notes(simulator: Simulator) -> tuple[str, ...]:
    return (simulator.oracle.note,) if simulator.oracle.note else ()


def probe_many(
    question: Question, batches: Sequence[int], *, command: str = "", say: Say = _silent
) -> list[ProbeAnswer]:
    """Return, for each card, where a training's memory goes and how it grows with the batch.

    Args:
        question: what is trained and on what.
        batches: micro-batch sizes to answer for, each >= 1.
        command: how it was asked, for the record.
        say: told what is being done.

    Raises:
        MemplanError: something in the question cannot be used; the message says what.
    """
    start = time.perf_counter()
    wanted = sorted(set(batches))
    if not wanted or wanted[0] < 1:
        least = wanted[0] if wanted else "(none)"
        raise UsageError(f"--batch {least} is below 1. Give at least one image.")
    workload, settings = question.made, question.step_settings()
    simulators = question.simulators()
    for simulator in simulators:
        _check_precision(simulator.card, settings.precision)
    life = Life(accumulates=False)
    warm_up()
    predictor = Predictor(
        lambda batch: record_step(workload, batch, settings),
        simulators,
        life,
        wanted[0],
        # One batch says nothing about how memory grows, and so nothing about the largest that fits.
        wanted[-1] if len(wanted) > 1 else 2 * wanted[0],
        say,
    )
    answers = []
    for card, simulator in enumerate(simulators):
        say(f"Replaying on {simulator.card.name}")
        if len(wanted) <= _MOST_EXACT:
            predictor.ask_exactly(card, wanted)
        rows = [
            _batch_peaks(batch, peaks)
            for batch, peaks in zip(wanted, predictor.peaks_many(card, wanted), strict=True)
        ]
        largest = predictor.largest_batch(card)
        reference = _reference(rows)
        program, sizes = predictor.loaded(card, reference)
        peaks = simulator.peaks(program, sizes)
        tape = predictor.fit.tape(reference)
        unknown = tape.description.unknown_operators
        answers.append(
            ProbeAnswer(
                workload=_workload_facts(tape, question.devices),
                gpu=_gpu_facts(simulator),
                fit=_line(rows, predictor, card),
                batches=tuple(rows),
                reference_batch=reference,
                categories_at_peak=categories_at(
                    program, sizes, peaks, simulator.outside.num_bytes
                ),
                modules=_modules(tape, predictor.workspaces(card, reference)),
                largest_batch=largest,
                edge=tuple(
                    _batch_peaks(batch, predictor.peaks(card, batch, exact=True))
                    for batch in (largest, largest + 1)
                    if batch
                ),
                recommended=_recommended(predictor, card, question, settings, largest),
                timeline=_timeline(program, sizes, simulator, peaks),
                unknown_operators=unknown,
                command=command,
                versions=versions(),
                seconds=time.perf_counter() - start,
                notes=_notes(simulator),
            )
        )
    return answers


def _check_precision(card: Card, precision: str) -> None:
    if precision == "amp-bf16" and not card.supports_bfloat16:
        raise BadInputError(
            f"{card.title} has no bfloat16 tensor cores (that takes compute capability 8.0). "
            "Use --precision amp-fp16 or fp32."
        )


def plan_one(
    question: Question,
    *,
    effective_batch_size: int | None = None,
    safety_fraction: float = DEFAULT_SAFETY,
    num_images: int | None = None,
    free_formats: bool = True,
    data: str = "data.yaml",
    say: Say = _silent,
) -> PlanAnswer:
    """Return the fastest setting that fits the first card of the question.

    Args:
        question: what is trained and on what; `recompute="auto"` tries none and all blocks.
        effective_batch_size: images a step, >= 1; None takes the workload's nominal batch.
        safety_fraction: part of the capacity left alone, in 0-1.
        num_images: training images in an epoch, for the time of one.
        free_formats: whether both tensor layouts may be tried.
        data: what to call the data set in the command.
        say: told what is being done.

    Raises:
        InfeasibleError: nothing fits.
        UsageError: a value is out of its range.
    """
    start = time.perf_counter()
    workload = question.made
    nominal = workload.nominal_batch_size
    effective = nominal if effective_batch_size is None else effective_batch_size
    _check_plan(effective, safety_fraction, question.devices)
    simulator = question.simulators()[0]
    _check_precision(simulator.card, question.precision)
    automatic = question.recompute == "auto"
    base = StepSettings(
        precision=question.precision,
        memory_format=question.memory_format,
        optimizer=OptimizerSettings(name=question.optimizer),
    )
    space = Space(
        precisions=(question.precision,),
        memory_formats=MEMORY_FORMATS if free_formats else (question.memory_format,),
        recomputes=((), question.all_blocks) if automatic else (question.recompute_paths(),),
        effective_batch_size=effective,
        nominal_batch_size=nominal,
        devices=question.devices,
        allocator=question.allocator,
    )
    budget = Budget(capacity_bytes=simulator.card.capacity_bytes, safety_fraction=safety_fraction)
    warm_up()

    def recorder_of(chosen: StepSettings) -> Callable[[int], Tape]:
        return lambda batch: record_step(workload, batch, chosen)

    outcome = search(recorder_of, simulator, base, space, budget, num_images=num_images, say=say)
    chosen = outcome.chosen
    return PlanAnswer(
        workload=WorkloadFacts(
            name=workload.name,
            img=workload.image_size,
            precision=chosen.precision,
            memory_format=chosen.memory_format,
            optimizer=question.optimizer,
            recompute=chosen.recompute,
            parameters=_num_parameters(workload),
            devices=question.devices,
            objects_per_image=workload.objects_per_image,
        ),
        gpu=_gpu_facts(simulator),
        **{name: getattr(chosen, name) for name in Setting.__dataclass_fields__},
        budget_bytes=budget.num_bytes,
        headroom_bytes=budget.num_bytes - chosen.predicted.device_used_peak_bytes,
        alternatives=outcome.pareto,
        command=_train_command(question, chosen, data),
        versions=versions(),
        seconds=time.perf_counter() - start,
        notes=_notes(simulator),
    )


def _check_plan(effective: int, safety_fraction: float, devices: int) -> None:
    if effective < 1:
        raise UsageError(f"--effective-batch {effective} is below 1. Give the images a step.")
    if effective % devices:
        nearest = max(devices, round(effective / devices) * devices)
        raise UsageError(
            f"--effective-batch {effective} cannot be shared evenly by --devices {devices}. "
            f"Nearest: {nearest}."
        )
    if not 0 <= safety_fraction < 1:
        raise UsageError(f"--safety {safety_fraction} is not in 0 to 1, such as 0.05.")


def _num_parameters(workload: Workload) -> int:
    with _explained(workload), fake_cuda():
        return sum(parameter.numel() for parameter in workload.build_model().parameters())


def _train_command(question: Question, chosen: Setting, data: str) -> str:
    """Return the line that runs a plan."""
    words = ["memplan", "train"]
    cfg = getattr(question.made, "cfg", None)
    words += ["--cfg", cfg] if cfg else ["--workload", question.made.name]
    words += ["--data", data, "--img", str(question.made.image_size)]
    words += ["--batch", str(chosen.micro_batch_size)]
    words += ["--accumulate", str(chosen.accumulation_steps)]
    words += ["--precision", chosen.precision, "--memory-format", chosen.memory_format]
    words += ["--optimizer", question.optimizer]
    if chosen.recompute:
        everything = chosen.recompute == question.__dict__.get("all_blocks")
        words += ["--recompute", "all" if everything else ",".join(chosen.recompute)]
    return shlex.join(words)


def _question(
    workload: str | Workload, gpu: Any, img: int | None, options: dict[str, Any]
) -> Question:
    gpus = gpu if isinstance(gpu, list | tuple) else () if gpu is None else (gpu,)
    capacity = options.pop("capacity", None)
    if isinstance(capacity, str):
        capacity = parse_bytes(capacity)
    arguments = dict(options.pop("arguments", None) or {})
    if img is not None:
        arguments["image_size"] = img
    if (objects := options.pop("objects_per_image", None)) is not None:
        arguments["objects_per_image"] = objects
    return Question(
        workload=workload,
        arguments=arguments,
        gpus=tuple(gpus),
        capacity_bytes=capacity,
        **options,
    )


def probe(
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    gpu: str | int | Card | Sequence[str | int | Card] | None = None,
    batch: int | Sequence[int] = 16,
    img: int | None = None,
    **options: Any,
) -> ProbeAnswer | list[ProbeAnswer]:
    """Return where a training's memory goes on a card, and how it grows with the batch.

    Args:
        workload: a name as on the command line, or a workload.
        gpu: a card or several; None takes the one in this machine.
        batch: micro-batch sizes to answer for.
        img: side of the images, pixels; None takes the workload's default.
        **options: `precision`, `memory_format`, `optimizer`, `recompute`, `allocator`, `devices`,
            `capacity` (bytes, or text such as `24GiB`), `objects_per_image`, and `arguments` for
            the workload's factory.

    Returns:
        One answer, or a list when several cards were given.

    Raises:
        MemplanError: something cannot be used; the message says what and the way out.
    """
    question = _question(workload, gpu, img, options)
    batches = [batch] if isinstance(batch, int) else list(batch)
    answers = probe_many(question, batches)
    return answers if isinstance(gpu, list | tuple) else answers[0]


def plan(
    workload: str | Workload = DEFAULT_WORKLOAD,
    *,
    gpu: str | int | Card | None = None,
    effective_batch: int | None = None,
    img: int | None = None,
    images: int | None = None,
    safety: float = DEFAULT_SAFETY,
    memory_format: str | None = None,
    recompute: str | tuple[str, ...] = "auto",
    say: Say = _silent,
    **options: Any,
) -> PlanAnswer:
    """Return the fastest setting that fits a card.

    Args:
        workload: a name as on the command line, or a workload.
        gpu: a card; None takes the one in this machine.
        effective_batch: images a step; None takes the workload's nominal batch.
        img: side of the images, pixels; None takes the workload's default.
        images: training images in an epoch, for the time of one.
        safety: part of the capacity left alone, in 0-1.
        memory_format: fixes the tensor layout; None tries both.
        recompute: `auto`, `none`, `all`, or module paths.
        say: told what is being done.
        **options: as for `probe`.

    Raises:
        InfeasibleError: nothing fits; the message says by how much and what would.
        MemplanError: something cannot be used.
    """
    data = options.pop("data", "data.yaml")
    question = _question(
        workload,
        gpu,
        img,
        {**options, "recompute": recompute, "memory_format": memory_format or "contiguous"},
    )
    return plan_one(
        question,
        effective_batch_size=effective_batch,
        safety_fraction=safety,
        num_images=images,
        free_formats=memory_format is None,
        data=data,
        say=say,
    )


def record(workload: str | Workload = DEFAULT_WORKLOAD, batch: int = 16, **options: Any) -> Tape:
    """Return the tape of a training's life at one micro-batch size.

    Args:
        workload: a name as on the command line, or a workload.
        batch: micro-batch size, >= 1.
        **options: `img`, `precision`, `memory_format`, `optimizer`, `recompute`, `arguments`.

    Raises:
        MemplanError: something cannot be used.
    """
    question = _question(workload, None, options.pop("img", None), options)
    return record_step(question.made, batch, question.step_settings())


def replay(
    tape: Tape,
    *,
    gpu: str | int | Card | None = None,
    capacity: int | str | None = None,
    allocator: str = "",
    accumulates: bool = False,
) -> Peaks:
    """Return the peaks of a tape on a card.

    Args:
        tape: what `record` returned or `memplan.tape.load_tape` read.
        gpu: a card; None takes the one in this machine.
        capacity: overrides the card's memory, bytes or text such as `24GiB`.
        allocator: PyTorch's option string.
        accumulates: whether gradients of several micro-batches are summed before a step.

    Raises:
        MemplanError: something cannot be used.
    """
    card = _present_card() if gpu is None else _card(gpu)
    if capacity is not None:
        num_bytes = parse_bytes(capacity) if isinstance(capacity, str) else capacity
        card = card.with_capacity(num_bytes)
    settings = AllocatorSettings.parse(allocator)
    return replay_on(tape, card, settings, life=Life(accumulates=accumulates))
