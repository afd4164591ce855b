"""Runs on a phantom card whose memory goes wrong in one way each; in a child process."""

import io
import json
import tempfile
import time
from pathlib import Path

import torch
from train_toy import Toy, toy_options

from memplan.answers import Predicted
from memplan.training import train
from memplan.training.checkpoint import load_checkpoint, save_checkpoint
from memplan.training.memory import MemoryWatch
from memplan.training.saving import Standing, checkpoint_of
from memplan.training.setup import prepare
from memplan.training.update import SafeUpdate


class _Goes(Toy):
    """Keeps 4 MiB of each pass on the card, or takes 600 MiB in one of them."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong
        self.passes = 0
        self.kept = []

    def compute_loss(self, model, batch):
        self.passes += 1
        time.sleep(0.01)  # a step as long as a short one, so that none is left out
        device = batch["images"].device
        if self.wrong == "leak" and 20 < self.passes < 240:
            self.kept.append(torch.empty(4 << 20, dtype=torch.uint8, device=device))
        if self.wrong == "fragmentation" and self.passes > 20:
            # Freed at once, and never of a size that what is held has room for.
            torch.empty((20 << 20) + (self.passes << 21), dtype=torch.uint8, device=device)
        if self.wrong == "crowd" and self.passes == 60:
            torch.empty(600 << 20, dtype=torch.uint8, device=device)
        return super().compute_loss(model, batch)

    def predict(self, model, batch):
        """Return predictions where the toy's evaluator is."""
        return super().predict(model, batch).cpu()


def run(folder, wrong, epochs):
    """Return the events of a run and what its checkpoint says of the next session."""
    options = toy_options(
        Path(folder), device="0", epochs=epochs, noval=True, batch=2, effective_batch=2,
        precision="fp32", noplots=True, workers=0,
    )  # fmt: skip
    summary = train(_Goes(wrong), options, stream=io.StringIO())
    lines = (summary.run_folder / "events.jsonl").read_text().splitlines()
    saved = load_checkpoint(summary.run_folder / "weights/last.pt").options
    return [json.loads(line) for line in lines], saved["allocator"], summary.micro_batch_size


def cost():
    """Return what share of the time had gone into readings before each one, and what each took."""
    memory = MemoryWatch(torch.device("cuda", 0), None)
    kept = torch.empty(1 << 20, device="cuda")
    started = time.perf_counter()
    shares, seconds = [], []
    for step in range(300):
        before, spent, now = memory.reading, memory.watching_seconds, time.perf_counter()
        memory.follow(step)
        if memory.reading is not before:
            shares.append(spent / max(now - started, 1e-9))
            seconds.append(memory.watching_seconds - spent)
        time.sleep(0.002)
    del kept
    return shares, seconds


def copies(num_pieces):
    """Return by how much copies made the allocator hold more, and whether they went to the host.

    Args:
        num_pieces: into which each 20 MiB that it holds are cut, every other one free; a copy of
            the weights is of 4 MiB.
    """
    options = toy_options(Path(tempfile.mkdtemp()), device="0", precision="fp32")
    step = prepare(_Wide(), options).step
    size = (20 << 20) // num_pieces
    pieces = [torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(6 * num_pieces)]
    del pieces[::2]  # those left keep what is free apart
    for parameter in step.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    update = SafeUpdate(step)
    held = torch.cuda.memory_reserved()
    update._copies()
    return torch.cuda.memory_reserved() - held, update.on_host


class _Wide(Toy):
    def build_model(self):
        """Return two layers of 4 MiB."""
        return torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 1024))


def above(allocated, reserved, used):
    """Return what 5 MiB on the card are above, of a plan of so many MiB each."""
    predicted = Predicted(
        allocated_peak_bytes=allocated << 20,
        reserved_peak_bytes=reserved << 20,
        device_used_peak_bytes=used << 20,
        peak_phase="backward",
        images_per_second=1.0,
        epoch_seconds=None,
    )
    memory = MemoryWatch(torch.device("cuda", 0), predicted)
    kept = torch.empty(5 << 20, dtype=torch.uint8, device="cuda")
    memory.follow(1)
    del kept
    return memory.above_prediction()


def spared():
    """Return the MiB that an average gives back, where it is, and where a saved model was.

    An update finds no room until the average has left; then the average is evaluated and saved.
    """
    options = toy_options(Path(tempfile.mkdtemp()), device="0", precision="fp32", workers=0)
    setup = prepare(_Wide(), options)
    step = setup.step

    def look(*_):
        if not step.average.is_away:
            raise torch.OutOfMemoryError("no room beside the average")

    step.optimizer.register_step_pre_hook(look)
    for parameter in step.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = torch.cuda.memory_allocated()
    refusal = SafeUpdate(step).take()
    given = before - torch.cuda.memory_allocated()
    with step.evaluating():
        inside = next(step.average.model.parameters()).device.type
    saved = checkpoint_of(
        setup, Standing(), [{}], micro_batch_size=1, validation_size=1, position=None,
        finished=False, spec=step.spec, in_pieces=True,
    )  # fmt: skip
    path = options.project / "last.pt"
    save_checkpoint(path, saved)
    held = torch.cuda.memory_allocated()
    loaded = load_checkpoint(path)
    return {
        "refused": refusal is not None,
        "given": given >> 20,
        "devices": [inside, next(step.average.model.parameters()).device.type],
        "saved": [saved.model["0.weight"].device.type, loaded.model["0.weight"].device.type],
        "held": torch.cuda.memory_allocated() - held,
    }
