"""What a guarded loop does on a phantom card; runs in a child process."""

import time

import torch

import memplan
from memplan.trainers.deferred import deferred
from memplan.trainers.passes import Passes


def spike(samples):
    """Return the pieces, the gradient's presence and the first message of one guarded step."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8))).cuda()
    guard = memplan.guard(model)
    guard(lambda batch: model(batch).mean(), torch.ones(samples, 1024, device="cuda"))
    has_gradients = all(parameter.grad is not None for parameter in model.parameters())
    return [guard.num_pieces, has_gradients, [event.message for event in guard.events]]


def deferred_spike(samples):
    """Return the same of a loss whose backward pass the loop starts itself, on the card's thread.

    What runs out is the backward pass: it doubles what each layer kept.
    """
    model = torch.nn.Sequential(*(_Doubling() for _ in range(8))).cuda()
    passes = Passes(model)
    loss, _ = deferred(
        passes, lambda batch: (model(batch).mean(), None), torch.ones(samples, 1024, device="cuda")
    )
    before_backward = len(passes.pieces.events)
    (loss * 2).backward()
    has_gradients = all(parameter.grad is not None for parameter in model.parameters())
    messages = [event.message for event in passes.pieces.events[before_backward:]]
    return [passes.pieces.held, has_gradients, messages]


def leak(steps, kib):
    """Return what the watch finds in a loop that keeps some memory of each step, and its pieces."""
    model = torch.nn.Linear(64, 64).cuda()
    guard, kept = memplan.guard(model), []
    for _ in range(steps):
        guard(lambda batch: model(batch).mean(), torch.ones(32, 64, device="cuda"))
        kept.append(torch.empty(kib << 10, dtype=torch.uint8, device="cuda"))
        time.sleep(0.005)
    return [[found.cause, found.action] for found in guard.findings]


class _Doubling(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1024))

    def forward(self, x):
        return _Double.apply(x, self.weight)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        wide = torch.cat([x] * 8)
        return gradient, (wide[: len(x)] * gradient).sum(0)


def allocate(batch):
    """Take 2 MiB of the card for each sample."""
    return torch.empty(batch, 2 << 20, dtype=torch.uint8, device="cuda")


def untouched(batch):
    """Stay on the CPU."""
    return torch.empty(batch)


def broken(batch):
    """Fail for another reason than memory."""
    raise ValueError(f"shapes 3 and {3 + batch}")
