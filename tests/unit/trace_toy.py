"""A workload whose bytes can be counted by hand, and recordings of whole runs of it."""

import itertools

import numpy as np
import torch

from memplan import tape as tapes
from memplan.step.run import TrainingStep
from memplan.trace.fake_cuda import DEVICE, fake_cuda
from memplan.trace.record import _Observer, no_garbage_collection
from memplan.trace.recorder import Recorder
from memplan.workload import Workload


class Counted(Workload):
    """Convolution, batch norm, ReLU, convolution, linear on 8x8 images; squared outputs summed."""

    name = "counted"
    image_size = 8

    def __init__(self, *, keeps_average=False, validates=False):
        self.keeps_average = keeps_average
        self.validates = validates

    def build_model(self):
        """Return the layers in a row."""
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Conv2d(4, 8, 3, stride=2, padding=1),
            torch.nn.Flatten(),
            torch.nn.Linear(128, 10),
        )

    def make_batch(self, micro_batch_size):
        """Return images alone."""
        return {"images": torch.ones(micro_batch_size, 3, 8, 8)}

    def make_validation_batch(self, micro_batch_size):
        """Return twice the images, where it validates."""
        return self.make_batch(2 * micro_batch_size) if self.validates else None

    def compute_loss(self, model, batch):
        """Return the sum of squares of the outputs."""
        loss = model(batch["images"]).square().sum()
        return loss, loss.detach()[None]


def record_run(workload, micro_batch_size, settings, run):
    """Return the events of a whole run, recorded as it happens and not put together.

    Args:
        workload: what is trained.
        micro_batch_size: images a micro-batch.
        settings: how the step runs.
        run: called with the training step and the batch on the host.
    """
    with no_garbage_collection(), fake_cuda() as mode:
        recorder = Recorder(DEVICE, mode)
        observer = _Observer(recorder)
        with recorder:
            model = workload.build_model()
            batch = workload.make_batch(micro_batch_size)
            step = TrainingStep(
                workload,
                settings,
                DEVICE,
                model=model,
                observer=observer,
                run_backward=observer.walk,
            )
            with recorder.watch(step.model):
                run(step, batch)
            # What dies with the run, after this line, is no part of it.
            return recorder.events()


def train(steps, accumulation_steps):
    """Return a run of so many optimizer steps, each over so many micro-batches."""

    def run(step, batch):
        for _ in range(steps):
            for _ in range(accumulation_steps):
                loss, parts = step.accumulate(step.to_device(batch))
                del loss, parts
            step.update()

    return run


def signature(kinds, blocks, sizes, questions, subjects):
    """Return what an allocator sees of a stream: kind, bytes and question of each event.

    Frees with no allocation between them are sorted: their order changes nothing.
    """
    of_block = {}
    lines = []
    columns = (kinds, blocks, sizes, questions, subjects)
    for kind, block, size, asks, about in zip(*columns, strict=True):
        # Each launch has a number of its own; its buffers stay apart.
        asked = int(asks), int(about) if asks == tapes.CONVOLUTION else 0
        if kind == tapes.ALLOCATE:
            assert int(block) not in of_block, "allocated twice"
            of_block[int(block)] = int(size), asked
        if kind == tapes.FREE:
            lines.append((int(kind), *of_block.pop(int(block))))
        elif kind not in {tapes.KEEP_GRADIENT, tapes.KEEP_COPY}:
            lines.append((int(kind), int(size), asked))
    runs = itertools.groupby(lines, key=lambda line: line[0] == tapes.FREE)
    return [line for is_free, run in runs for line in (sorted(run) if is_free else list(run))]


def live_bytes(lines):
    """Return the bytes live after each event of a signature."""
    sign = {tapes.ALLOCATE: 1, tapes.FREE: -1, tapes.SCRATCH: 0}
    return np.cumsum([sign[kind] * size for kind, size, _ in lines])
