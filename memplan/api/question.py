"""What is asked: a workload, how its step runs, and the cards it runs on."""

from __future__ import annotations

import contextlib
import copy
import pickle
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from memplan._version import __version__
from memplan.acceptance import check_object, check_step
from memplan.answers import (
    GpuFacts,
)
from memplan.bounds import check_number
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.device.chosen import with_calibrations
from memplan.device.context import under_cuda
from memplan.device.cudnn import installed_version
from memplan.device.distributed import ModelTensors, training_policy, with_data_parallel
from memplan.device.replay import (
    Simulator,
)
from memplan.errors import BadInputError, UsageError
from memplan.planner.crowd import Crowd
from memplan.processes import is_worker
from memplan.registry import make_workload, takes
from memplan.spec import StepSpec
from memplan.tape import Int64, Tape
from memplan.trace.build import build
from memplan.trace.record import record
from memplan.workload import OptimizerSettings, Workload

DEFAULT_WORKLOAD = "yolov9-s"
DEFAULT_SAFETY = 0.05


def silent(_: str) -> None:
    """Say nothing; what is done unless somebody wants to be told."""


@contextlib.contextmanager
def explained(workload: Workload) -> Iterator[None]:
    """Turn what building a model raises into one line, as recording does."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise BadInputError(
            f"{workload.name} cannot be built: {reason}. Try another --img or --set."
        ) from error


@lru_cache(maxsize=4)
def _made_once(name: str, arguments: bytes) -> Workload:
    """Return a process's own copy of a workload, made when it is first asked for."""
    return make_workload(name, pickle.loads(arguments))  # noqa: S301 - pickled beside the call


def versions() -> dict[str, str]:
    """Return the versions that decide an answer."""
    import torch

    return {
        "memplan": __version__,
        "torch": str(torch.__version__),
        "cudnn": installed_version(),
        "python": platform.python_version(),
    }


# Arguments of workloads that are numbers, and the options that set them.
_OPTIONS = {
    "image_size": "--img",
    "objects_per_image": "--objects-per-image",
    "validation_batch_size": "--val-batch",
    "assigner_parts": "--assigner-parts",
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
    deterministic: bool = False
    """Ask for deterministic algorithms; a workload that does so always gets them."""
    cudnn_benchmark: bool = False
    """Let convolutions take the plan that proves fastest."""
    allow_tf32: bool = True
    """Let float32 convolutions use TF32."""
    lean: bool = False
    """Let blocks keep only what they cannot rebuild cheaply."""
    fused: bool = False
    """Let the optimizer step in one kernel a list."""
    sync_batch_norm: bool = False
    """Let batch norm see the images of all devices."""
    calibration: Path | Calibration | None = None
    """What was measured on one of the cards; a file must be of one of them. None takes what is
    kept of each."""
    cuda_version: str | None = None
    """The CUDA that the training's torch was built for, such as `11.3`, which decides the context;
    None takes the installed one's way of loading kernels."""
    cudnn_version: str | None = None
    """The cuDNN that training uses, such as `8.9.2`; the installed one is asked all the same, and
    the answer says so where they differ."""
    object_counts: Int64 | None = None
    """Objects in each image of the data set, int64 `[images]`; None where no data was given."""

    def __post_init__(self) -> None:
        """Refuse what no workload can take.

        Raises:
            UsageError: a number is outside its bounds, such as an image size below 1, or a version
                is none.
        """
        if self.cudnn_version is not None and not re.fullmatch(r"[0-9.]+", self.cudnn_version):
            raise UsageError(
                f"--cudnn {self.cudnn_version!r} is no version of cuDNN. Write it as 8.9.2 or 9.1."
            )
        for name, option in _OPTIONS.items():
            check_number(option, self.arguments.get(name))
        check_number("--devices", self.devices)

    @cached_property
    def made(self) -> Workload:
        """The workload, made once."""
        if isinstance(self.workload, Workload):
            check_object(self.workload.name, self.arguments)
            return self.workload
        if is_worker():
            return _made_once(self.workload, pickle.dumps(self.arguments))
        return make_workload(self.workload, self.arguments)

    def check(self) -> None:
        """Refuse what the workload does not take, before anything is recorded.

        Raises:
            MemplanError: the workload cannot be made so, or does not offer what is asked.
        """
        check_step(self.made, lean=self.lean, fused=self.fused)

    def takes(self, argument: str) -> bool:
        """Return whether the workload can be made with an argument, such as `image_size`."""
        return isinstance(self.workload, str) and takes(self.workload, argument)

    @cached_property
    def crowd(self) -> Crowd | None:
        """Objects in training images; None where the workload has no such notion.

        Objects given as a number are those of an image as the network sees it.
        """
        if self.object_counts is not None:
            return Crowd.of_data(self.made, self.object_counts)
        mean = self.made.objects_per_image
        return Crowd.around(mean) if mean else None

    def objects(self, micro_batch_size: int) -> tuple[int, ...]:
        """Return the objects in the fullest image of each step's batches."""
        return self.crowd.steps(micro_batch_size) if self.crowd is not None else ()

    def cards(self) -> list[Card]:
        """Return the cards asked about, with what was measured on them.

        Raises:
            BadInputError: there is no such card in this machine, or none named and none present,
                or the calibration is of none of them.
            BadTapeError: a calibration cannot be read.
            UnknownNameError: the catalogue has no such card.
        """
        chosen = [found.applied_to(card) if found else card for card, found in self._calibrated]
        if self.cuda_version is not None:
            chosen = [under_cuda(card, self.cuda_version) for card in chosen]
        if self.capacity_bytes is None:
            return chosen
        return [card.with_capacity(self.capacity_bytes) for card in chosen]

    @cached_property
    def _calibrated(self) -> list[tuple[Card, Calibration | None]]:
        """The cards as they were asked for, each with its calibration."""
        return with_calibrations(self.gpus, self.calibration)

    def calibration_warnings(self) -> list[str]:
        """Return a sentence for each library other than a card was calibrated under."""
        installed = versions()
        found = [calibration for _, calibration in self._calibrated if calibration is not None]
        return [line for calibration in found for line in calibration.warnings(installed)]

    def simulators(self) -> list[Simulator]:
        """Return the cards with their libraries and allocator settings."""
        import torch

        release = torch.__version__.partition("+")[0]
        major, minor = release.split(".")[:2]
        settings = AllocatorSettings.parse(self.allocator, (int(major), int(minor)))
        return [
            Simulator(
                card,
                settings,
                torch_version=release,
                devices=self.devices,
                cudnn_benchmark=self.cudnn_benchmark,
                cublas_workspace_config=self.made.cublas_workspace_config,
            )
            for card in self.cards()
        ]

    def with_assigner_parts(self, parts: int) -> Question:
        """Return the same question with objects matched in parts, one after another."""
        if isinstance(self.workload, str):
            return replace(self, arguments={**self.arguments, "assigner_parts": parts})
        workload = copy.copy(self.workload)
        workload.assigner_parts = parts
        return replace(self, workload=workload)

    def recompute_paths(self) -> tuple[str, ...]:
        """Return the module paths that recompute, `all` spelt out."""
        if isinstance(self.recompute, tuple):
            return self.recompute
        if self.recompute == "none":
            return ()
        if self.recompute == "auto":
            raise UsageError("--recompute auto is for `memplan plan`. Give none, all or paths.")
        if self.recompute == "all":
            return self.all_blocks
        return tuple(path.strip() for path in self.recompute.split(",") if path.strip())

    @cached_property
    def all_blocks(self) -> tuple[str, ...]:
        """Every module that the workload says may recompute."""
        with explained(self.made):
            return tuple(self.made.recompute_blocks(build(self.made)))

    @cached_property
    def model_tensors(self) -> ModelTensors:
        """The model's parameters and buffers, as DDP meets them."""
        with explained(self.made):
            return ModelTensors.of(build(self.made))

    def record(self, micro_batch_size: int, settings: StepSpec) -> Tape:
        """Return the tape at a micro-batch size: of rank 0 where several devices train together.

        Raises:
            MemplanError: the step cannot be recorded; the message says why.
        """
        tape = record(self.made, micro_batch_size, settings)
        if self.devices == 1:
            return tape
        parallel = training_policy(self.devices, sync_batch_norm=self.sync_batch_norm)
        return with_data_parallel(tape, self.model_tensors, parallel)

    def recorder(self, settings: StepSpec) -> Callable[[int], Tape]:
        """Return the function that records a step so set, by micro-batch size."""
        return partial(self.record, settings=settings)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the workload made of a name, which that makes anew."""
        state = dict(vars(self))
        if isinstance(self.workload, str):
            state.pop("made", None)
        return state

    def step_settings(self, recompute: tuple[str, ...] | None = None) -> StepSpec:
        """Return how the step runs.

        Args:
            recompute: module paths that replace those asked for; None keeps them.

        Raises:
            UsageError: a name that does not exist.
        """
        return StepSpec(
            precision=self.precision,
            memory_format=self.memory_format,
            optimizer=OptimizerSettings(name=self.optimizer, fused=self.fused),
            recompute=self.recompute_paths() if recompute is None else recompute,
            deterministic=self.deterministic or self.made.deterministic,
            cudnn_benchmark=self.cudnn_benchmark,
            allow_tf32=self.allow_tf32,
            lean=self.lean,
        )


def gpu_facts(simulator: Simulator) -> GpuFacts:
    """Return what an answer says of its card."""
    return GpuFacts(
        name=simulator.card.name,
        capacity_bytes=simulator.card.capacity_bytes,
        context_bytes=simulator.outside.num_bytes,
        context_uncertainty_bytes=simulator.outside.uncertainty_bytes,
        source=simulator.outside.source,
        calibrated=simulator.card.rates.is_measured,
    )


def check_precision(card: Card, precision: str) -> None:
    """Refuse a precision that a card has no kernels for.

    Raises:
        BadInputError: the card lacks it.
    """
    if precision == "amp-bf16" and not card.supports_bfloat16:
        raise BadInputError(
            f"{card.title} has no bfloat16 tensor cores (that takes compute capability 8.0). "
            "Use --precision amp-fp16 or fp32."
        )
