"""A training's life run for real on a device, and what it took there.

What `memplan.trace.record` records with no device is run here on one, by the same `TrainingStep`
and in the order in which `memplan.device.life` puts a life together. On a card the allocator's
history is kept from before the first CUDA allocation; on a CPU only times can be read, and all
that a card alone knows stays None. A process measures once: memory outside the allocator is told
by what the driver's library says before and after.

Limits: memory outside the allocator is the process's own where the driver says it, else what the
card's use grew by, which other processes must not change meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from memplan.capabilities import validation_batch
from memplan.device import nvml
from memplan.spec import StepSpec
from memplan.step.run import TrainingStep, library_settings
from memplan.trace.record import no_garbage_collection
from memplan.trace.snapshot import Snapshot, snapshot_of
from memplan.workload import Batch, Workload

Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How steps are timed."""

    warmup: int = 3
    """Optimizer steps before the clock counts."""
    repeats: int = 10
    """Steps that count, at most."""
    most_seconds: float = 20.0
    """Begin no further step after so long."""


@dataclass(kw_only=True)
class Measurement:
    """What a life took on a device; bytes, None where the device cannot tell."""

    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    device_used_peak_bytes: int | None = None
    """Reserved at its peak plus what the process held outside the allocator at the end."""
    outside_bytes: dict[str, int] = field(default_factory=dict)
    """Held outside the allocator after `initialized` and after `step`."""
    outside_origin: str = ""
    """`process` or `card`: whose memory the driver told; empty where there is no card."""
    num_alloc_retries: int | None = None
    num_ooms: int | None = None
    out_of_memory: str = ""
    """PyTorch's message where the life ended early."""
    seconds: Seconds = field(default_factory=dict)
    """Each repeat's time by `section/phase`, and of a whole optimizer step as `step/all`."""
    overflowed: bool = False
    """Whether half-precision gradients overflowed, so that an update was left out."""
    loss: float | None = None
    """Of the last step; a life that learns nothing but nan has measured nothing."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class OutsideGauge:
    """Tells what this process holds of a card outside PyTorch's allocator.

    Made before CUDA is initialized.

    Args:
        index: of the card in this machine; None where there is none.
    """

    def __init__(self, index: int | None) -> None:
        self._index = index
        self._before = nvml.card_at(index).used_bytes if index is not None else 0
        self.origin = ""

    def read(self) -> int | None:
        """Return the bytes now, None without a card."""
        if self._index is None:
            return None
        torch.cuda.synchronize(self._index)
        now = nvml.card_at(self._index)
        own = [one.used_bytes for one in now.processes if one.pid == os.getpid()]
        told = own[0] if own else None
        self.origin = "card" if told is None else "process"
        used = now.used_bytes - self._before if told is None else told
        return max(0, used - torch.cuda.memory_reserved(self._index))


class _Clock:
    """Notes when phases begin and end, by the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self.is_running = False
        self.section = ""
        self._marks: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of the current section."""
        with self.timed(f"{self.section}/{name}"):
            yield

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time what runs inside, under a name."""
        if not self.is_running:
            yield
            return
        start = self._now()
        yield
        self._marks.append((name, start, self._now()))

    def take(self) -> dict[str, float]:
        """Return seconds by name since the last call, summed; waits for the device."""
        if self._is_cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, start, end in self._marks:
            took = start.elapsed_time(end) / 1e3 if self._is_cuda else end - start
            found[name] = found.get(name, 0.0) + took
        self._marks.clear()
        return found


def with_random_images(batch: Batch) -> Batch:
    """Return the batch with noise in its images: kernels run faster on zeros than on data."""
    generator = torch.Generator().manual_seed(0)

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() != 4:
            return tensor
        if tensor.dtype == torch.uint8:
            return torch.randint(0, 256, tensor.shape, dtype=torch.uint8, generator=generator)
        return torch.rand(tensor.shape, dtype=tensor.dtype, generator=generator)

    return {name: filled(tensor) for name, tensor in batch.items()}


@dataclass(frozen=True, kw_only=True)
class Batches:
    """What a life reads, on the CPU."""

    training: Batch
    validation: Batch | None

    @classmethod
    def of(cls, workload: Workload, micro_batch_size: int) -> Batches:
        """Return a workload's own batches, with noise in their images."""
        validation = validation_batch(workload, micro_batch_size)
        return cls(
            training=with_random_images(workload.make_batch(micro_batch_size)),
            validation=None if validation is None else with_random_images(validation),
        )


def _ignore(_: str) -> None:
    pass


def run_life(
    step: TrainingStep,
    batches: Batches,
    *,
    accumulates: bool = False,
    num_steps: int = 3,
    begin: Callable[[str], None] = _ignore,
) -> None:
    """Run a life's steps, validation and checkpoint, in the order of `memplan.device.life.Life`.

    Args:
        step: freshly built.
        batches: what it reads.
        accumulates: whether two micro-batches make a step.
        num_steps: optimizer steps, >= 2.
        begin: told the section that starts: `micro_batch`, `accumulation`, `first_update`,
            `update`, `release`, `average`, `validation` or `checkpoint`.
    """
    for number in range(num_steps):
        if batches.validation is not None and number == num_steps - 1:
            begin("validation")
            step.evaluate(step.to_device(batches.validation))
            begin("checkpoint")
            step.save()
        begin("micro_batch")
        _accumulate(step, batches.training)
        if accumulates:
            begin("accumulation")
            _accumulate(step, batches.training)
        begin("update" if number else "first_update")
        step.apply_gradients()
        begin("release")
        step.release_gradients()
        begin("average")
        step.move_average()


def _accumulate(step: TrainingStep, batch: Batch) -> None:
    """Run a micro-batch, letting go of what it returns."""
    step.accumulate(step.training_batch(batch))


def _time_steps(
    step: TrainingStep, batches: Batches, clock: _Clock, accumulation_steps: int, timing: Timing
) -> tuple[Seconds, float]:
    """Return the times of optimizer steps by stretch, and the last loss."""
    seconds: Seconds = {}
    loss = float("nan")
    end = time.monotonic() + timing.most_seconds
    for number in range(timing.warmup + timing.repeats):
        clock.is_running = number >= timing.warmup
        if clock.is_running and seconds and time.monotonic() > end:
            break
        with clock.timed("step/all"):
            for _ in range(accumulation_steps):
                clock.section = "micro_batch"
                value, _parts = step.accumulate(step.training_batch(batches.training))
            for clock.section, work in (
                ("update", step.apply_gradients),
                ("release", step.release_gradients),
                ("average", step.move_average),
            ):
                work()
        for name, took in clock.take().items():
            # A recording has one micro-batch, whose mean is told.
            parts = accumulation_steps if name.startswith("micro_batch/") else 1
            seconds.setdefault(name, []).append(took / parts)
        loss = float(value)
        del value, _parts
    clock.is_running = False
    return seconds, loss


def measure(
    workload: Workload,
    micro_batch_size: int,
    settings: StepSpec,
    device: torch.device,
    *,
    accumulation_steps: int = 1,
    memory_limit_bytes: int | None = None,
    timing: Timing | None = None,
    outside: bool = True,
) -> tuple[Measurement, Snapshot | None]:
    """Return what a training's life took on a device, and the allocator's history of it.

    The life is measured first, then steps are timed without the history.

    Args:
        workload: what is trained.
        micro_batch_size: images in one forward and backward, >= 1.
        settings: how the step runs.
        device: a card that this process has not used yet, or the CPU.
        accumulation_steps: micro-batches to a timed step; above 1, lives have two.
        memory_limit_bytes: most that the allocator may hold; None lets it have the whole card.
        timing: how steps are timed; None times nothing.
        outside: whether the driver is asked what lies outside the allocator; a card that is not
            there has none to ask.
    """
    index = None if device.type != "cuda" else device.index or 0
    gauge = OutsideGauge(index if outside else None)
    batches = Batches.of(workload, micro_batch_size)
    found = Measurement()
    clock = _Clock(device)
    with no_garbage_collection(), library_settings(settings):
        if index is not None:
            _start_history(index, memory_limit_bytes)
            _note_outside(found, gauge, "initialized")
        step: TrainingStep | None = None
        try:
            step = TrainingStep(workload, settings, device, observer=clock)
            _scale_little(step)
            run_life(step, batches, accumulates=accumulation_steps > 1)
        except torch.OutOfMemoryError as error:
            found.out_of_memory = str(error)
        snapshot = None if index is None else _end_history(found, gauge, index)
        found.overflowed = step is not None and _has_overflowed(step)
        if timing is not None and step is not None and not found.out_of_memory:
            found.seconds, found.loss = _time_steps(
                step, batches, clock, accumulation_steps, timing
            )
    return found, snapshot


def _scale_little(step: TrainingStep) -> None:
    """Start the gradient scaler at 1: fresh weights overflow at the scale that training begins at.

    An update that is left out creates no optimizer state, which the recorded life has from the
    first update on.
    """
    state = step.scaler.state_dict()
    if state:
        step.scaler.load_state_dict({**state, "scale": 1.0})


def _has_overflowed(step: TrainingStep) -> bool:
    """Return whether the scaler has had to lower its scale."""
    return step.scaler.is_enabled() and step.scaler.get_scale() < 1.0


def _start_history(index: int, memory_limit_bytes: int | None) -> None:
    torch.cuda.set_device(index)
    torch.cuda.init()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(index)
    if memory_limit_bytes is not None:
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_limit_bytes / total), index)
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python")


def _note_outside(found: Measurement, gauge: OutsideGauge, phase: str) -> None:
    value = gauge.read()
    found.outside_origin = gauge.origin
    if value is not None:
        found.outside_bytes[phase] = value


def _end_history(found: Measurement, gauge: OutsideGauge, index: int) -> Snapshot:
    """Stop the history and note what the allocator counted."""
    _note_outside(found, gauge, "step")
    stats = torch.cuda.memory_stats(index)
    found.allocated_peak_bytes = stats["allocated_bytes.all.peak"]
    found.reserved_peak_bytes = stats["reserved_bytes.all.peak"]
    found.num_alloc_retries = stats["num_alloc_retries"]
    found.num_ooms = stats["num_ooms"]
    if "step" in found.outside_bytes:
        found.device_used_peak_bytes = found.reserved_peak_bytes + found.outside_bytes["step"]
    content = torch.cuda.memory._snapshot(index)
    torch.cuda.memory._record_memory_history(None)
    return snapshot_of(content, index)


def outside_by_phase(device: torch.device) -> dict[str, int]:
    """Return what a process holds outside the allocator after each first use, bytes.

    In turn: `initialized`, `first_kernel`, `cublas`, `cudnn`. Empty on a CPU, which runs the same
    operators. To be called in a process that has not used CUDA.
    """
    index = None if device.type != "cuda" else device.index or 0
    gauge = OutsideGauge(index)
    found: dict[str, int] = {}

    def note(name: str) -> None:
        if index is not None:
            torch.cuda.empty_cache()
        value = gauge.read()
        if value is not None:
            found[name] = value

    if index is not None:
        torch.cuda.set_device(index)
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(index)
    note("initialized")
    torch.zeros(1024, device=device).add_(1)
    note("first_kernel")
    square = torch.rand(256, 256, device=device)
    torch.mm(square, square)
    note("cublas")
    images = torch.rand(4, 16, 32, 32, device=device)
    torch.nn.functional.conv2d(images, torch.rand(16, 16, 3, 3, device=device), padding=1)
    note("cudnn")
    return found
