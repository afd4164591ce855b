"""Records a trained network that is run, not trained, on a CUDA device that need not be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from memplan import tape
from memplan.capabilities import Infers
from memplan.errors import BadInputError, UsageError
from memplan.spec import StepSpec
from memplan.step.run import AUTOCAST, library_settings, move_model
from memplan.trace.build import build, make_fake
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.record import FAILURES, no_garbage_collection, recorder_of, versions
from memplan.trace.recorder import Recorder
from memplan.workload import Workload


def record_inference(
    workload: Workload, batch_size: int, spec: StepSpec, *, mode: str, half: bool = False
) -> tape.Tape:
    """Return the tape of a network moved to the device and run on one batch, without gradients.

    The pass is recorded as the section `micro_batch`; `memplan.device.life.Life(trains=False)`
    puts passes together. A workload that `Infers` says itself what runs; of others the model in
    evaluation is, on the batch that it validates or trains with.

    Args:
        workload: whose network runs.
        batch_size: images at once, >= 1.
        spec: precision, layout and switches of libraries.
        mode: `val` or `predict`, which decides the size of images.
        half: whether the network is in float16.

    Raises:
        UsageError: the batch size is below 1.
        BadInputError: the network fails at this size.
    """
    if batch_size < 1:
        raise UsageError(f"--batch {batch_size} is below 1. Give at least one image.")
    try:
        return _recorded(_Pass(workload, batch_size, mode, spec), spec, half=half)
    except FAILURES as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise BadInputError(
            f"{workload.name} cannot run {batch_size} images at {workload.image_size} px: "
            f"{reason}. Try another --img, --batch or --set."
        ) from error


@dataclass(frozen=True)
class _Pass:
    """A network and its images, as a mode has them."""

    workload: Workload
    batch_size: int
    mode: str
    spec: StepSpec

    def build_model(self) -> torch.nn.Module:
        """Return the network on the host."""
        if isinstance(self.workload, Infers):
            return self.workload.build_inference()
        return self.workload.build_model().eval()

    def images(self) -> Any:
        """Return images, or a batch of what the workload validates with, on the host."""
        if isinstance(self.workload, Infers):
            return self.workload.make_inference_batch(self.batch_size, self.mode)
        return self.workload.make_batch(self.batch_size)

    def run(self, model: torch.nn.Module, images: Any) -> None:
        """Run them; what comes out is given back."""
        if isinstance(self.workload, Infers):
            self.workload.infer(model, images.to(DEVICE, non_blocking=True))
            return
        moved = {name: one.to(DEVICE, non_blocking=True) for name, one in images.items()}
        dtype = AUTOCAST.get(self.spec.precision)
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype is not None):
            self.workload.predict(model, self.workload.prepare(moved))


def _recorded(one: _Pass, spec: StepSpec, *, half: bool) -> tape.Tape:
    workload = one.workload
    built = build(one)
    if half:
        for name, child in built.named_modules():
            is_decoder = "dfl" in name.split(".")
            if not is_decoder and not list(child.children()):
                child.half()
    with no_garbage_collection(), library_settings(spec), fake_cuda() as fake_mode:
        recorder = recorder_of(workload, one.batch_size, fake_mode)
        with recorder:
            model = make_fake(built)
            images = one.images()
            with recorder.phase("transfer"):
                move_model(model, DEVICE, spec.memory_format)
            with recorder.watch(model):
                _record_pass(recorder, one, model, images)
        return recorder.finish(
            tape.Description(
                workload=workload.name,
                micro_batch_size=one.batch_size,
                image_size=workload.image_size,
                spec=spec,
                cublas_workspace_config=workload.cublas_workspace_config,
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                objects_per_image=0,
                crowded_objects_per_image=0,
                origin="predicted",
                versions=versions(),
                unknown_operators=dict(recorder.unknown),
            )
        )


@torch.no_grad()
def _record_pass(recorder: Recorder, one: _Pass, model: torch.nn.Module, images: Any) -> None:
    recorder.begin("micro_batch")
    with recorder.phase("forward"):
        one.run(model, images)
