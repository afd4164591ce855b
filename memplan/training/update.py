"""The optimizer's step taken whole or not at all, where memory may run out in its middle.

Before a step everything that it changes is copied: weights, gradients, optimizer state, average and
scaler. The copies lie on the device where memory that the allocator holds already has room for them
(after backward the activations' blocks are free, so a plan's peak stays what it is), else on the
host. Where that memory turns out to be in too small pieces, so that the allocator had to take more
from the device, they are dropped there and lie on the host from then on. A step that fails is
undone bit for bit and taken again one parameter at a time: each gradient goes once it is consumed,
and the temporaries are those of one parameter; where even that finds no room, the average goes to
the host for good. The kernels are elementwise, so the result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from memplan.step.run import TrainingStep
from memplan.training.guard import OutOfMemory, attempt, make_room

_ROOM = 1.2  # of the copies' bytes must be free in held memory: it is in pieces
_PIECE_TRIES = 2


class SafeUpdate:
    """Takes a training step's update so that it can be taken again.

    Args:
        step: whose gradients are complete when `take` is called.
    """

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.on_host = False
        """Whether copies lie on the host for good, since on the device they took more of it."""

    def take(self) -> OutOfMemory | None:
        """Update weights and average, or say why there was no room, everything as it was before."""
        copies = self._copies()
        if isinstance(copies, OutOfMemory):
            return copies
        refusal = attempt(self.step.update)
        if refusal is None:
            return None
        copies.restore()
        copies.leave_device()
        for _ in range(_PIECE_TRIES):
            make_room()
            refusal = attempt(self._update_in_pieces)
            if refusal is None:
                return None
            copies.restore()
        del copies  # of the average where it is now
        return self.take() if self.step.spare_average() else refusal

    def _copies(self) -> _Copies | OutOfMemory:
        is_cuda = self.step.device.type == "cuda"
        held = self._held_bytes() if is_cuda else 0
        on_host = is_cuda and (self.on_host or not self._has_room(held))
        found = attempt(lambda: _Copies(self.step, on_host=on_host))
        if isinstance(found, OutOfMemory):
            return attempt(lambda: _Copies(self.step, on_host=True))
        if is_cuda and self._held_bytes() > held:
            self.on_host = True
            found.leave_device()
            make_room()
        return found

    def _held_bytes(self) -> int:
        return torch.cuda.memory_reserved(self.step.device)

    def _has_room(self, held_bytes: int) -> bool:
        device = self.step.device.type  # the average may be on the host
        wanted = sum(one.nbytes for one in _changed(self.step) if one.device.type == device)
        return held_bytes - torch.cuda.memory_allocated(self.step.device) >= _ROOM * wanted

    def _update_in_pieces(self) -> None:
        optimizer = self.step.optimizer

        def one_by_one() -> None:
            groups = optimizer.param_groups
            try:
                for group in groups:
                    for parameter in group["params"]:
                        optimizer.param_groups = [{**group, "params": [parameter]}]
                        type(optimizer).step(optimizer)
                        parameter.grad = None
            finally:
                optimizer.param_groups = groups

        # The scaler calls the optimizer's step, or leaves it out after an overflow.
        vars(optimizer)["step"] = one_by_one
        try:
            self.step.update()
        finally:
            del vars(optimizer)["step"]


def _state_tensors(step: TrainingStep) -> Iterable[torch.Tensor]:
    for state in step.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _trained(step: TrainingStep) -> list[torch.nn.Parameter]:
    return [one for one in step.model.parameters() if one.grad is not None]


def _changed(step: TrainingStep) -> list[torch.Tensor]:
    """Return the tensors that an update writes to, in one order."""
    trained = _trained(step)
    tensors: list[torch.Tensor] = [parameter.detach() for parameter in trained]
    tensors += [parameter.grad for parameter in trained if parameter.grad is not None]
    tensors += _state_tensors(step)
    if step.average is not None:
        averaged = step.average.model
        tensors += [one.detach() for one in (*averaged.parameters(), *averaged.buffers())]
    return tensors


class _Copies:
    """What an update changes, as it was."""

    @torch.no_grad()
    def __init__(self, step: TrainingStep, *, on_host: bool) -> None:
        self._step = step
        self._tensors = _changed(step)
        self._gradients = [(one, one.grad) for one in _trained(step)]
        self._state = {key: dict(value) for key, value in step.optimizer.state.items()}
        self._scaler = step.scaler.state_dict()
        self._updates = 0 if step.average is None else step.average.updates
        self._values = [
            one.to("cpu", copy=True) if on_host else one.detach().clone() for one in self._tensors
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; the tensors are the same objects."""
        step = self._step
        for tensor, value in zip(self._tensors, self._values, strict=True):
            tensor.copy_(value)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        step.optimizer.state.clear()
        step.optimizer.state.update({key: dict(value) for key, value in self._state.items()})
        if step.average is not None:
            step.average.updates = self._updates
        # A fresh one, since the old one remembers that it has unscaled these gradients.
        enabled = step.scaler.is_enabled()
        step.scaler = torch.amp.grad_scaler.GradScaler(step.device.type, enabled=enabled)
        if self._scaler:
            step.scaler.load_state_dict(self._scaler)

    def leave_device(self) -> None:
        """Move the copies to the host, since the device is short of room."""
        for place, value in enumerate(self._values):
            self._values[place] = value.cpu()
