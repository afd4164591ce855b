"""Records the life of a training on a CUDA device that need not be there."""

from __future__ import annotations

import contextlib
import gc
import itertools
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memplan import tape
from memplan._version import __version__
from memplan.capabilities import Crowds, SavesItself, validation_batch
from memplan.errors import BadInputError, UsageError
from memplan.spec import StepSpec
from memplan.step.run import TrainingStep, as_specified, library_settings
from memplan.trace.build import build, make_fake
from memplan.trace.dynamic import DynamicRecorder
from memplan.trace.engine import BackwardWalk, SavedTensors
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.operators_base import is_dense
from memplan.trace.recorder import Recorder
from memplan.workload import Batch, CrowdedBatch, OptimizerSettings, Workload

# What a workload's own code raises where it cannot run a step, and the machine where it has not the
# memory to record one.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def versions() -> dict[str, str]:
    """Return the versions that decide what a recording contains."""
    return {
        "memplan": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


class _Observer:
    """Tells the recorder the phase, and holds what forward saves for backward."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.saved = SavedTensors(lambda tensor: recorder.categorize(tensor, "activation"))
        self.walk = BackwardWalk(
            self.saved,
            on_node=recorder.enter_node,
            on_gradient=recorder.keep_gradient,
        )

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        hooks = self.saved.hooks() if name == "forward" else contextlib.nullcontext()
        with self._recorder.phase(name), hooks:
            yield
        if name == "backward" and self._recorder.modules is not None:
            self._recorder.modules.forget()


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's cycle collector from freeing tensors at moments that depend on chance."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _name_optimizer_state(recorder: Recorder, step: TrainingStep) -> None:
    """Say what the optimizer and the scaler keep.

    A function of its own, so that no variable of it holds on to what the scaler drops later.
    """
    state = [value for row in step.optimizer.state.values() for value in row.values()]
    for value in [*state, *vars(step.scaler).values()]:
        if isinstance(value, torch.Tensor):
            recorder.categorize(value, "optimizer_state")


@dataclass(frozen=True)
class _Batches:
    """What a life reads, on the CPU."""

    training: Batch
    validation: Batch | None
    crowded: CrowdedBatch | None


def _record_sections(recorder: Recorder, step: TrainingStep, batches: _Batches) -> None:
    """Run each section of a life once, in the order of `tape.SECTIONS`.

    The optimizer steps twice on the same gradients: first to create its state, then with it. The
    crowded micro-batch comes last, and what it leaves is freed after the recording.
    """
    recorder.begin("micro_batch")
    _accumulate(step, batches.training)
    recorder.begin("first_update")
    step.apply_gradients()
    _name_optimizer_state(recorder, step)
    recorder.begin("update")
    step.apply_gradients()
    recorder.begin("release")
    step.release_gradients()
    recorder.begin("average")
    step.move_average()
    if batches.validation is not None:
        recorder.begin("validation")
        step.evaluate(step.to_device(batches.validation))
    if not _saves_without_memory(step):
        recorder.begin("checkpoint")
        step.save()
    if batches.crowded is not None:
        recorder.begin("crowded_micro_batch")
        _accumulate(step, batches.crowded.batch)


def _saves_without_memory(step: TrainingStep) -> bool:
    """Return whether a checkpoint asks nothing of the allocator.

    A tensor that fills its memory goes to the host as it lies there (`copy_requires_temporaries` in
    aten/src/ATen/native/cuda/Copy.cu, PyTorch 2.11).
    """
    if isinstance(step.workload, SavesItself):
        return False
    models = [step.model, *([] if step.average is None else [step.average.model])]
    return all(
        is_dense(one)
        for model in models
        for one in itertools.chain(model.parameters(), model.buffers())
    )


def _accumulate(step: TrainingStep, batch: Batch) -> None:
    """Run a micro-batch, letting go of what it returns."""
    step.accumulate(step.training_batch(batch))


def record(
    workload: Workload,
    micro_batch_size: int,
    spec: StepSpec | None = None,
    optimizer: OptimizerSettings | None = None,
) -> tape.Tape:
    """Return the tape of a training's life at one micro-batch size, with no GPU needed.

    Each section of a life is recorded once: build, a micro-batch, the first optimizer step (its
    state appears), a later one, the release of gradients, the average's step, a validation batch
    where the workload validates, a checkpoint where it takes memory, and a micro-batch with more
    objects where sizes depend on them. `memplan.device.life` puts a life together from them.

    Args:
        workload: what is trained.
        micro_batch_size: images in one forward and backward, >= 1.
        spec: how the step runs; None takes the defaults.
        optimizer: its numbers, where they decide what it keeps; None takes the defaults.

    Raises:
        UsageError: the micro-batch size is below 1, or the spec asks for torch.compile.
        BadInputError: the step fails at this size, or asks for data-dependent shapes.
    """
    if micro_batch_size < 1:
        raise UsageError(f"--batch {micro_batch_size} is below 1. Give at least one image.")
    if spec is not None and spec.compiled:
        raise UsageError("A step under torch.compile cannot be recorded. Leave out --compile.")
    try:
        return _recorded(workload, micro_batch_size, spec or StepSpec(), optimizer)
    except FAILURES as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise BadInputError(
            f"{workload.name} cannot run a step of {micro_batch_size} images at "
            f"{workload.image_size} px: {reason}. Try another --img, --batch or --set."
        ) from error


def recorder_of(workload: Workload, micro_batch_size: int, fake_mode: FakeTensorMode) -> Recorder:
    """Return the plain recorder, or the one that follows values where the workload states sizes."""
    if workload.states_sizes:
        return DynamicRecorder(DEVICE, fake_mode, workload, micro_batch_size)
    return Recorder(DEVICE, fake_mode)


def _recorded(
    workload: Workload,
    micro_batch_size: int,
    spec: StepSpec,
    optimizer: OptimizerSettings | None,
) -> tape.Tape:
    workload = as_specified(workload, spec)
    built = build(workload)
    with no_garbage_collection(), library_settings(spec), fake_cuda() as fake_mode:
        recorder = recorder_of(workload, micro_batch_size, fake_mode)
        observer = _Observer(recorder)
        with recorder:
            model = make_fake(built)
            batches = _Batches(
                training=workload.make_batch(micro_batch_size),
                validation=validation_batch(workload, micro_batch_size),
                crowded=workload.make_crowded_batch(micro_batch_size)
                if isinstance(workload, Crowds)
                else None,
            )
            step = TrainingStep(
                workload,
                spec,
                DEVICE,
                optimizer=optimizer,
                model=model,
                observer=observer,
                run_backward=observer.walk,
            )
            with recorder.watch(step.model):
                _record_sections(recorder, step, batches)
        description = tape.Description(
            workload=workload.name,
            micro_batch_size=micro_batch_size,
            image_size=workload.image_size,
            spec=step.spec,
            cublas_workspace_config=workload.cublas_workspace_config,
            parameters=sum(parameter.numel() for parameter in step.model.parameters()),
            objects_per_image=workload.objects_per_image,
            crowded_objects_per_image=batches.crowded.objects_per_image if batches.crowded else 0,
            origin="predicted",
            versions=versions(),
            unknown_operators=dict(recorder.unknown),
        )
        return recorder.finish(description)
