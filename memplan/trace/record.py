"""Records the life of a training on a CUDA device that need not be there."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch

from memplan import tape
from memplan._version import __version__
from memplan.errors import UsageError
from memplan.trace.engine import BackwardWalk, SavedTensors
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.recorder import Recorder
from memplan.trace.step import StepSettings, TrainingStep
from memplan.workload import Batch, Workload


def versions() -> dict[str, str]:
    """Return the versions that decide what a recording contains."""
    return {"memplan": __version__, "torch": torch.__version__, "python": platform.python_version()}


class _Observer:
    """Tells the recorder the phase, and holds what forward saves for backward."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.saved = SavedTensors(lambda tensor: recorder.categorize(tensor, "activation"))
        self.walk = BackwardWalk(
            self.saved,
            on_node=recorder.enter_node,
            on_gradient=lambda leaf: recorder.categorize(leaf.grad, "gradient"),
        )

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        hooks = self.saved.hooks() if name == "forward" else contextlib.nullcontext()
        with self._recorder.phase(name), hooks:
            yield
        if name == "backward" and self._recorder.modules is not None:
            self._recorder.modules.forget()


class _Life:
    """Runs the parts of a training one after the other inside a recorder."""

    def __init__(self, recorder: Recorder, step: TrainingStep, batch: Batch) -> None:
        self._recorder = recorder
        self._step = step
        self._batch = batch

    def _enter(self, period: str) -> None:
        self._recorder.period = tape.PERIODS.index(period)

    def _micro_batch(self) -> None:
        loss, parts = self._step.accumulate(self._step.to_device(self._batch))
        del loss, parts

    def first_step(self) -> None:
        self._enter("first_step")
        self._micro_batch()
        self._step.update()
        state = [value for row in self._step.optimizer.state.values() for value in row.values()]
        for value in [*state, *vars(self._step.scaler).values()]:
            if isinstance(value, torch.Tensor):
                self._recorder.categorize(value, "optimizer_state")

    def steady_step(self) -> None:
        self._enter("steady_step")
        self._micro_batch()
        self._enter("accumulation_step")
        self._micro_batch()
        self._enter("steady_step")
        self._step.update()

    def validation(self, batch: Batch) -> None:
        self._enter("validation")
        self._step.predict(self._step.to_device(batch))


def record(
    workload: Workload, micro_batch_size: int, settings: StepSettings | None = None
) -> tape.Tape:
    """Return the tape of a training's life at one micro-batch size, with no GPU needed.

    The life is: build, first step (optimizer state appears), a steady step with one accumulation
    step inside it, and a validation batch where the workload validates. On the tape each part
    but the first two begins and ends with the same memory held, so a replay may leave it out or
    repeat it.

    Args:
        workload: what is trained.
        micro_batch_size: images in one forward and backward, >= 1.
        settings: how the step runs; None takes the defaults.

    Raises:
        UsageError: the micro-batch size is below 1.
        BadInputError: the step asks for data-dependent shapes.
    """
    if micro_batch_size < 1:
        raise UsageError(f"--batch {micro_batch_size} is below 1. Give at least one image.")
    settings = settings or StepSettings()
    with fake_cuda():
        recorder = Recorder(DEVICE)
        observer = _Observer(recorder)
        model = workload.build_model()
        batch = workload.make_batch(micro_batch_size)
        validation_batch = workload.make_validation_batch(micro_batch_size)
        with recorder:
            step = TrainingStep(
                workload,
                settings,
                DEVICE,
                model=model,
                observer=observer,
                run_backward=observer.walk,
            )
            life = _Life(recorder, step, batch)
            with recorder.watch(step.model):
                life.first_step()
                life.steady_step()
                if validation_batch is not None:
                    life.validation(validation_batch)
        description = tape.Description(
            workload=workload.name,
            micro_batch_size=micro_batch_size,
            image_size=workload.image_size,
            precision=settings.precision,
            memory_format=settings.memory_format,
            optimizer=settings.optimizer.name,
            recompute=settings.recompute,
            parameters=sum(parameter.numel() for parameter in step.model.parameters()),
            objects_per_image=workload.objects_per_image,
            origin="predicted",
            versions=versions(),
            unknown_operators=dict(recorder.unknown),
        )
        return recorder.finish(description)
