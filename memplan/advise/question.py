"""A question: a workload, how its step runs, and the cards it runs on."""

from __future__ import annotations

import contextlib
import gc
import pickle
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from memplan._version import __version__
from memplan.acceptance import check_object
from memplan.answers import (
    GpuFacts,
)
from memplan.bounds import check_number
from memplan.device import cudnn_asking
from memplan.device.allocator_settings import AllocatorSettings
from memplan.device.calibration import Calibration
from memplan.device.card import Card
from memplan.device.chosen import with_calibrations
from memplan.device.context import under_cuda
from memplan.device.cudnn import installed_version
from memplan.device.cudnn_beside import CudnnBeside, beside, in_folder, is_version
from memplan.device.distributed import ModelTensors, training_policy, with_data_parallel
from memplan.device.replay import (
    Simulator,
)
from memplan.errors import BadInputError
from memplan.planner.crowd import Crowd
from memplan.processes import is_worker, num_processes
from memplan.registry import make_workload, takes
from memplan.spec import ALL_BLOCKS, StepSpec, check_step
from memplan.tape import AMPERE, Int64, Tape
from memplan.workload import Workload

DEFAULT_WORKLOAD = "yolov9-s"
DEFAULT_SAFETY = 0.05


def silent(_: str) -> None:
    """Say nothing; what is done by default."""


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
    """Return a process's own copy of a workload, made at its first use."""
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
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is trained and on what, as the user gave it."""

    workload: str | Workload = DEFAULT_WORKLOAD
    """A name, or a workload itself."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the workload's factory."""
    gpus: tuple[str | int | Card, ...] = ()
    """Cards by catalogue name, index in this machine, or as they are; empty takes the present."""
    capacity_bytes: int | None = None
    """Overrides the cards' memory."""
    spec: StepSpec = field(default_factory=StepSpec)
    """How the step runs, as it was given; see `step_spec`."""
    devices: int = 1
    """Cards that train together."""
    calibration: Path | Calibration | None = None
    """What was measured on one of the cards; a file must be of one of them. None takes what is
    kept of each."""
    cuda_version: str | None = None
    """The CUDA that the training's torch was built for, such as `11.3`, which decides the context;
    None takes the installed one's way of loading kernels."""
    cudnn_version: str | None = None
    """The cuDNN that training uses, such as `9.12`, or a folder that holds one; where it is not
    the installed one nor beside it, that one answers all the same, and the answer says so."""
    object_counts: Int64 | None = None
    """Objects in each image of the data set, int64 `[images]`; None where no data was given."""

    def __post_init__(self) -> None:
        """Refuse what no workload can take.

        Raises:
            UsageError: a number is outside its bounds, such as an image size below 1, or a version
                is none.
            BadInputError: a folder holds no cuDNN that can be asked.
        """
        if self.cudnn_version is not None and not is_version(self.cudnn_version):
            in_folder(self.cudnn_version)
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
            MemplanError: the workload cannot be made so, or does not offer a lever's value.
        """
        check_step(self.made, self.spec)

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
        """Return the question's cards, with what was measured on them.

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
        """The cards as they were given, each with its calibration."""
        return with_calibrations(self.gpus, self.calibration)

    def calibration_warnings(self) -> list[str]:
        """Return a sentence for each library other than a card was calibrated under."""
        installed = versions()
        found = [calibration for _, calibration in self._calibrated if calibration is not None]
        return [line for calibration in found for line in calibration.warnings(installed)]

    @cached_property
    def cudnn(self) -> CudnnBeside | None:
        """The cuDNN that is asked in place of the installed one."""
        return None if self.cudnn_version is None else beside(self.cudnn_version)

    @property
    def versions(self) -> dict[str, str]:
        """The versions that decide this question's answer."""
        own = versions()
        return own if self.cudnn is None else {**own, "cudnn": self.cudnn.version}

    def simulators(self) -> list[Simulator]:
        """Return the cards with their libraries and allocator settings."""
        import torch

        release = torch.__version__.partition("+")[0]
        major, minor = release.split(".")[:2]
        settings = AllocatorSettings.parse(self.spec.allocator, (int(major), int(minor)))
        return [
            Simulator(
                card,
                settings,
                torch_version=release,
                devices=self.devices,
                cudnn_benchmark=self.spec.cudnn_benchmark,
                cudnn=self.cudnn,
                cublas_workspace_config=self.made.cublas_workspace_config,
            )
            for card in self.cards()
        ]

    def under(self, allocator: str) -> Question:
        """Return the same question under other allocator options."""
        return replace(self, spec=replace(self.spec, allocator=allocator))

    def simulator(self, allocator: str) -> Simulator:
        """Return the first card under other allocator options."""
        return self.under(allocator).simulators()[0]

    @cached_property
    def all_blocks(self) -> tuple[str, ...]:
        """Every module that the workload says may recompute."""
        from memplan.trace.build import build

        with explained(self.made):
            return tuple(self.made.recompute_blocks(build(self.made)))

    @cached_property
    def model_tensors(self) -> ModelTensors:
        """The model's parameters and buffers, as DDP meets them."""
        from memplan.trace.build import build

        with explained(self.made):
            return ModelTensors.of(build(self.made))

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in the model that training may change."""
        from memplan.trace.build import build

        with explained(self.made):
            return sum(parameter.numel() for parameter in build(self.made).parameters())

    def record(self, micro_batch_size: int, spec: StepSpec) -> Tape:
        """Return the tape at a micro-batch size: of rank 0 where several devices train together.

        Raises:
            MemplanError: the step cannot be recorded; the message says why.
        """
        from memplan.trace.record import record

        with self.recording():
            tape = record(self.made, micro_batch_size, spec)
        if self.devices == 1:
            return tape
        parallel = training_policy(self.devices, sync_batch_norm=spec.sync_bn)
        return with_data_parallel(tape, self.model_tensors, parallel)

    def recording(self) -> AbstractContextManager[None]:
        """Return a context in which operators are recorded that depend on the first card."""
        from memplan.trace.operators_attention import attention_of

        return attention_of(self.cards()[0].compute_capability if self.gpus else AMPERE)

    def recorder(self, spec: StepSpec) -> Callable[[int], Tape]:
        """Return the function that records a step so set, by micro-batch size."""
        return partial(self.record, spec=spec)

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without the workload made of a name, which that makes anew."""
        state = dict(vars(self))
        if isinstance(self.workload, str):
            state.pop("made", None)
        return state

    @cached_property
    def step_spec(self) -> StepSpec:
        """How the step runs, with what the workload has a say in."""
        recompute = self.spec.recompute
        return replace(
            self.spec,
            recompute=self.all_blocks if recompute == ALL_BLOCKS else recompute,
            assigner_parts=self.spec.assigner_parts or self.made.assigner_parts,
            deterministic=self.spec.deterministic or self.made.deterministic,
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
        compute_capability=".".join(map(str, simulator.card.compute_capability)),
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


def warm_up() -> None:
    """Let what recording needs be made while there is nothing else to do.

    Where other processes record, they import it; see `memplan.advise.preload`.
    """
    if num_processes() > 1 and not is_worker():
        cudnn_asking.start()
        gc.freeze()  # modules live as long as the process
        return
    from memplan.trace.fake_cuda import warm_up as warm_recorder_up

    warm_recorder_up()
