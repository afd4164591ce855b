"""What a guarded loop does on a phantom card; runs in a child process."""

import torch

import memplan


def spike(samples):
    """Return the pieces, the gradient's presence and the first message of one guarded step."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8))).cuda()
    guard = memplan.guard(model)
    guard(lambda batch: model(batch).mean(), torch.ones(samples, 1024, device="cuda"))
    has_gradients = all(parameter.grad is not None for parameter in model.parameters())
    return [guard.num_pieces, has_gradients, [event.message for event in guard.events]]


def allocate(batch):
    """Take 2 MiB of the card for each sample."""
    return torch.empty(batch, 2 << 20, dtype=torch.uint8, device="cuda")
