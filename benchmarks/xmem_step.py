"""The training loop of the xMem study, recorded as it ran, and replayed on its cards.

`memplan.device.life` puts a life together from sections of memplan's own loop, which drops the
loss and frees gradients before the next forward pass. The study's loop keeps both, so its four
iterations are recorded here straight through, from the same recorder, backward walk and allocator.

Source: `exp/trainer/train_loop.py` of the artifact (GitHub Stone-ResearchLife/xMem, MIT).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from memplan import tape as tapes
from memplan.convolution import ConvolutionProblem
from memplan.device.allocator_replay import StreamResult, replay_stream
from memplan.device.card import Card
from memplan.device.cublas import release_of
from memplan.device.one_by_one import OneByOne
from memplan.device.replay import UNLIMITED_BYTES, Simulator
from memplan.launches import AnyLaunch
from memplan.spec import StepSpec
from memplan.step.run import move_model
from memplan.trace.build import build, make_fake
from memplan.trace.engine import BackwardWalk, SavedTensors
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.record import no_garbage_collection
from memplan.trace.recorder import Recorder

# The loop was asked for 3 iterations and left after the index had reached 3.
NUM_ITERATIONS = 4
LEARNING_RATE = 0.001
TORCH_VERSION = "2.6.0"
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one record of the study trained."""

    build_model: Callable[[], torch.nn.Module]
    """In training mode."""
    make_batch: Callable[[], Batch]
    compute_loss: Callable[[torch.nn.Module, Batch], tuple[Any, torch.Tensor]]
    """Returns the outputs, which live on into the next forward pass, and the loss."""
    after_step: Callable[[Any], Any]
    """Makes of the outputs what the loop keeps besides them."""
    optimizer: str
    """Class in `torch.optim`, built with its defaults but the learning rate."""
    zeroes_before_forward: bool
    """Their mode 0: gradients go before the batch is copied. Else, mode 1, after forward."""


@dataclass(frozen=True)
class Recording:
    """Everything four iterations asked of the allocator."""

    events: tapes.Events
    convolutions: tuple[ConvolutionProblem, ...]
    launches: tuple[AnyLaunch, ...]
    parameter_bytes: int
    """Parameters and buffers, as they are moved to the device before the first iteration."""
    unknown_operators: dict[str, int]


def record_training(training: Training) -> Recording:
    """Return what the study's loop asks of the allocator, with no GPU needed."""
    model = build(training)
    parameter_bytes = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    with no_garbage_collection(), fake_cuda() as mode:
        recorder = Recorder(DEVICE, mode)
        with recorder:
            _train(training, make_fake(model), recorder)
        tape = recorder.finish(_NOTHING_SAID)
        return Recording(
            events=tape.events,
            convolutions=tape.convolutions,
            launches=tape.launches,
            parameter_bytes=parameter_bytes,
            unknown_operators=dict(recorder.unknown),
        )


# The tape's description is for files; nothing here is written to one.
_NOTHING_SAID = tapes.Description(
    workload="xmem",
    micro_batch_size=1,
    image_size=0,
    spec=StepSpec(precision="fp32"),
    parameters=0,
    objects_per_image=0,
    origin="predicted",
)


def _train(training: Training, model: torch.nn.Module, recorder: Recorder) -> None:
    """Run the loop; `StepLR` and printing touch nothing on the device and are left out.

    Each assignment frees what the name held before, where the original's does.
    """
    saved = SavedTensors(lambda _: None)
    walk = BackwardWalk(saved, recorder.enter_node, lambda _leaf, _copied: None)
    recorder.begin("build")
    move_model(model, DEVICE, "contiguous")
    kind = getattr(torch.optim, training.optimizer)
    optimizer = kind(params=model.parameters(), lr=LEARNING_RATE)
    for group in optimizer.param_groups:
        if "foreach" in group:  # the default on CUDA, which fake parameters hide
            group["foreach"] = True
    recorder.begin("micro_batch")
    for _ in range(NUM_ITERATIONS):
        batch = training.make_batch()
        if training.zeroes_before_forward:
            optimizer.zero_grad()
        with recorder.phase("transfer"):
            batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
        with recorder.phase("forward"), saved.hooks():
            outputs, loss = training.compute_loss(model, batch)
        if not training.zeroes_before_forward:
            optimizer.zero_grad()
        with recorder.phase("backward"):
            walk(loss)
        with recorder.phase("optimizer_step"):
            optimizer.step()
        kept = training.after_step(outputs)
    del kept


@dataclass(frozen=True)
class Run:
    """A recording replayed on a card, bytes."""

    reserved_bytes: int
    """Most that the allocator reserves; where memory runs out, on a card that has enough."""
    runs_out: bool


def replay_training(
    recording: Recording,
    card: Card,
    *,
    has_matrix_workspace: bool,
    one_by_one: OneByOne = OneByOne.AS_ASKED,
) -> Run:
    """Return what the allocator reserves on a card, and whether its memory suffices.

    Args:
        recording: of four iterations.
        card: its capacity less its context is what the allocator can get.
        has_matrix_workspace: False where the study ran with `CUBLAS_WORKSPACE_CONFIG=:0:0`.
        one_by_one: which workspace cuBLASLt is taken to want for 1x1 convolutions.
    """
    program, sizes = _program(recording, card, one_by_one, has_matrix=has_matrix_workspace)
    result = _replay(program, sizes, card.capacity_bytes - card.context_bytes)
    if result.oom_event < 0:
        return Run(result.reserved_peak_bytes, runs_out=False)
    return Run(_replay(program, sizes, UNLIMITED_BYTES).reserved_peak_bytes, runs_out=True)


_Program = tuple[tapes.Int8, tapes.Int32]


def _program(
    recording: Recording, card: Card, one_by_one: OneByOne, *, has_matrix: bool
) -> tuple[_Program, tapes.Int64]:
    """Return event kinds with their blocks, and sizes with the card's answers filled in."""
    events = recording.events
    simulator = _simulator(card, None if has_matrix else ":0:0")
    answers = simulator.device_bytes(recording.convolutions, recording.launches)
    workspaces = one_by_one.applied(recording.convolutions, answers.convolutions)
    answers = replace(answers, convolutions=workspaces)
    if not has_matrix:
        answers = replace(answers, light_matrix=0)
    sizes = answers.filled(events.requested_bytes, events)
    happens = events.kind <= tapes.SCRATCH
    return (events.kind[happens], events.block[happens]), sizes[happens]


@functools.cache
def _simulator(card: Card, cublas_workspace_config: str | None) -> Simulator:
    return Simulator(
        card, torch_version=TORCH_VERSION, cublas_workspace_config=cublas_workspace_config
    )


def _replay(program: _Program, sizes: tapes.Int64, capacity_bytes: int) -> StreamResult:
    return replay_stream(*program, sizes, capacity_bytes, torch_version=release_of(TORCH_VERSION))
